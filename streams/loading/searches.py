"""The newest searches of each user in a file of any size."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

import polars as pl

from models.logs.log import SEARCH_COLUMNS, Place, checked_searches
from models.logs.row_batches import Wanted, read_batches
from streams.history.log_rows import ROW
from streams.loading.histories import Searches
from streams.messages import Search

LONGEST = 2000  # characters of a query, as in the messages on the topics


def read_searches(path: Path, keep: int) -> Searches:
    """Raises LogError naming file, row and column."""
    wanted = Wanted(SEARCH_COLUMNS, SEARCH_COLUMNS, {})
    return newest_searches(read_batches(path, wanted), keep, source=f"{path}")


def newest_searches(frames: Iterable[pl.DataFrame], keep: int, *, source: str = "searches") -> Searches:
    """The newest `keep` of each user, oldest first."""
    newest, rows = pl.DataFrame(), 0
    for frame in frames:
        checked = checked_searches(frame, Place(source, rows))
        rows += frame.height
        told = checked.filter(pl.col("query") != "").unique(maintain_order=True)
        both = pl.concat([newest, told]) if newest.height else told
        newest = both.sort("event_ms", maintain_order=True).group_by("user_id", maintain_order=True).tail(keep)
    found: dict[str, tuple[Search, ...]] = {}
    for (user_id,), own in newest.group_by("user_id", maintain_order=True) if newest.height else ():
        rows_of = own.unique(maintain_order=True).select("query", "event_ms").iter_rows()
        found[str(user_id)] = tuple(
            Search(query[:LONGEST], event_ms, _search_id(str(user_id), query, event_ms), -1)
            for query, event_ms in rows_of
        )
    return found


def _search_id(user_id: str, query: str, event_ms: int) -> str:
    content = f"{len(user_id)} {user_id} {query} {event_ms}".encode()
    return ROW + blake2b(content, digest_size=12).hexdigest()
