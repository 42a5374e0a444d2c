"""The searches of a log's users in order of time, already as tokens.

A query's tokens lie one after the other (`starts` says where each query's begin), since most queries have few. Training
asks for the tokens before some time, and gets what serving would have had then
(models.logs.searches.history_tokens).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from models.arrays import Array, Rows
from models.catalogue.vocabulary import Vocabulary
from models.logs.log import SEARCH_COLUMNS, Place, checked_searches, require
from models.logs.row_batches import Wanted, read_batches
from models.logs.searches import MOST_HISTORY, MOST_SEARCHES, tokens_of
from models.logs.stored_log import StoredLog

COLUMNS: dict[str, Any] = {"users": pl.Int32, "event_ms": pl.Int64, "query": pl.UInt64, "tokens": pl.List(pl.Int32)}


@dataclass(frozen=True)
class StoredSearches:
    """[S] searches in order of time: users int32 (places in the log's user_ids), event_ms int64; the tokens of search s
    are `tokens[starts[s]:starts[s + 1]]` (int32, from 1 to `buckets` - 1). `strangers` searches of users whom the log
    does not have and `duplicates` (same user, time and query) were left out."""

    users: npt.NDArray[np.int32]
    event_ms: Rows
    starts: Rows
    tokens: npt.NDArray[np.int32]
    buckets: int
    strangers: int
    duplicates: int

    def __len__(self) -> int:
        return len(self.users)


class SearchTimeline:
    """The earlier searches of each user. Memory: 16 bytes for each search and 4 for each token."""

    def __init__(self, searches: StoredSearches) -> None:
        self._event_ms = searches.event_ms
        self._stride = len(searches) + 1
        order = np.argsort(searches.users, kind="stable")  # user by user, in time
        self._keys = searches.users[order].astype(np.int64) * self._stride + order
        counts = np.diff(searches.starts)[order]
        self._starts = np.r_[0, np.cumsum(counts)]
        places = np.repeat(searches.starts[:-1][order] - self._starts[:-1], counts) + np.arange(len(searches.tokens))
        self._tokens = searches.tokens[places]

    def before(
        self, users: Array, event_ms: Array, *, most: int = MOST_SEARCHES, most_tokens: int = MOST_HISTORY
    ) -> Rows:
        """int64 [B, T]: the tokens of each user's last `most` searches before that moment, as history_tokens gives
        them, 0 behind; T is as long as the longest needs and at least 1."""
        users = np.asarray(users, np.int64)
        past = np.searchsorted(self._event_ms, event_ms, side="left")  # searches of all users before that moment
        first = np.searchsorted(self._keys, users * self._stride)
        end = np.searchsorted(self._keys, users * self._stride + past)
        stops = self._starts[end]
        starts = np.maximum(self._starts[np.maximum(first, end - most)], stops - most_tokens)
        width = max(1, int((stops - starts).max(initial=0)))
        places = starts[:, None] + np.arange(width)  # [B, T]
        inside = places < stops[:, None]
        if not inside.any():
            return np.zeros(places.shape, np.int64)
        return np.where(inside, self._tokens[np.where(inside, places, 0)], 0).astype(np.int64)


def store_searches(
    source: Path | pl.DataFrame, log: StoredLog, *, buckets: int, mapping: Mapping[str, str] | None = None
) -> StoredSearches:
    """Read a Parquet, CSV or JSON-lines file or a table (user_id, query, event_ms).

    Raises LogError naming file or table, row and column. No rows are no error.
    """
    if isinstance(source, pl.DataFrame):
        require(source.columns, "searches", SEARCH_COLUMNS)
        return store_search_batches([source], log, buckets=buckets)
    frames = read_batches(Path(source), Wanted(SEARCH_COLUMNS, SEARCH_COLUMNS, mapping or {}))
    return store_search_batches(frames, log, buckets=buckets, source=f"{source}")


def store_search_batches(
    frames: Iterable[pl.DataFrame], log: StoredLog, *, buckets: int, source: str = "searches"
) -> StoredSearches:
    """The same for frames that come one after the other. In memory: 20 bytes for each search and 4 for each token."""
    if buckets < 2:
        raise ValueError(f"buckets must be at least 2 (0 is no token), got {buckets}")
    people, rows, parts = Vocabulary(log.user_ids), 0, [pl.DataFrame(schema=COLUMNS)]
    for frame in frames:
        checked = checked_searches(frame, Place(source, rows))
        rows += checked.height
        users = pl.Series("users", people.known_codes(checked["user_id"]), pl.Int32)
        coded = checked.with_columns(users).filter(users >= 0)
        queries = coded["query"].unique()
        tokens = pl.Series([tokens_of(query, buckets) for query in queries], dtype=COLUMNS["tokens"])
        known = pl.DataFrame({"query": queries, "tokens": tokens})
        coded = coded.join(known, on="query", how="left", maintain_order="left")
        parts.append(coded.select("users", "event_ms", pl.col("query").hash(), "tokens"))
    everything = pl.concat(parts)
    first = everything.unique(["users", "event_ms", "query"], keep="first", maintain_order=True)
    first = first.sort("event_ms", maintain_order=True)
    return StoredSearches(
        users=first["users"].to_numpy(),
        event_ms=first["event_ms"].to_numpy(),
        starts=np.r_[0, np.cumsum(first["tokens"].list.len().cast(pl.Int64))],
        tokens=first["tokens"].explode().drop_nulls().to_numpy(),
        buckets=buckets,
        strangers=rows - everything.height,
        duplicates=everything.height - first.height,
    )
