"""The searches of a log's users, of any number: memory-mapped, in order of time, already as tokens.

A query's tokens lie one after the other (`starts` says where each query's begin), since most queries have few. Training
asks for the tokens before some time, and gets what serving would have had then
(models.logs.searches.history_tokens).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from models.arrays import Array, Rows
from models.catalogue.vocabulary import Vocabulary
from models.logs.array_file import ArrayFile, mapped
from models.logs.log import SEARCH_COLUMNS, Place, checked_searches, require
from models.logs.row_batches import BATCH_ROWS, Wanted, read_batches
from models.logs.searches import MOST_HISTORY, MOST_SEARCHES, MOST_TOKENS, tokens_of
from models.logs.stored_log import BUFFER_ROWS, StoredLog, is_repeat
from models.logs.time_order import blocks_in_time

COLUMNS: dict[str, Any] = {"users": np.int32, "event_ms": np.int64, "query": np.int64, "tokens": np.int32}


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
    source: Path | pl.DataFrame,
    log: StoredLog,
    *,
    buckets: int,
    mapping: Mapping[str, str] | None = None,
    buffer_rows: int = BUFFER_ROWS // 4,
) -> StoredSearches:
    """Read a Parquet, CSV or JSON-lines file or a table (user_id, query, event_ms) into the log's directory.

    Raises LogError naming file or table, row and column. No rows are no error.
    """
    frames: Iterable[pl.DataFrame]
    if isinstance(source, pl.DataFrame):
        require(source.columns, "searches", SEARCH_COLUMNS)
        name, frames = "searches", source.iter_slices(buffer_rows)
    else:
        name = f"{source}"
        wanted = Wanted(SEARCH_COLUMNS, SEARCH_COLUMNS, mapping or {})
        frames = read_batches(Path(source), wanted, min(BATCH_ROWS, buffer_rows))
    return store_search_batches(frames, log, buckets=buckets, source=name, buffer_rows=buffer_rows)


def store_search_batches(
    frames: Iterable[pl.DataFrame],
    log: StoredLog,
    *,
    buckets: int,
    source: str = "searches",
    buffer_rows: int = BUFFER_ROWS // 4,
) -> StoredSearches:
    """The same for frames that come one after the other."""
    if buckets < 2:
        raise ValueError(f"buckets must be at least 2 (0 is no token), got {buckets}")
    people = Vocabulary(log.user_ids)
    rows = 0
    with TemporaryDirectory(dir=log.directory, prefix=".unsorted-") as scratch:
        files = _files(Path(scratch), "")
        for frame in frames:
            checked = checked_searches(frame, Place(source, rows))
            rows += checked.height
            users = people.known_codes(checked["user_id"])
            known = users >= 0
            files["users"].append(users[known])
            files["event_ms"].append(checked["event_ms"].to_numpy()[known])
            for name, values in _coded(checked["query"].filter(pl.Series(known)), buckets).items():
                files[name].append(values)
        kept = len(files["users"])
        written = _write(files, Path(scratch), log.directory, buffer_rows)
    columns = {name: mapped(log.directory / f"search_{name}.npy") for name in ("users", "event_ms", "starts", "tokens")}
    return StoredSearches(**columns, buckets=buckets, strangers=rows - kept, duplicates=kept - written)


def _coded(queries: pl.Series, buckets: int) -> dict[str, Array]:
    """A number for each query [B], and its tokens int32 [B, MOST_TOKENS], 0 behind."""
    table = np.zeros((len(queries), MOST_TOKENS), np.int32)
    numbers = np.zeros(len(queries), np.int64)
    coded: dict[str, list[int]] = {}
    for row, query in enumerate(queries):
        tokens = coded.get(query)
        if tokens is None:
            tokens = coded[query] = tokens_of(query, buckets)
        table[row, : len(tokens)] = tokens
        numbers[row] = zlib.crc32(query.encode())
    return {"query": numbers, "tokens": table}


def _write(files: Mapping[str, ArrayFile], scratch: Path, directory: Path, buffer_rows: int) -> int:
    """The columns in order of time, into the log's directory; how many searches."""
    names = {"users": np.int32, "event_ms": np.int64, "starts": np.int64, "tokens": np.int32}
    out = {name: ArrayFile(directory / f"search_{name}.npy", dtype) for name, dtype in names.items()}
    out["starts"].append(np.zeros(1, np.int64))

    def make_spare() -> dict[str, ArrayFile]:
        spare = _files(scratch, ".spare")
        for file in spare.values():
            file.extend(len(files["users"]))
        return spare

    for block in blocks_in_time(files, make_spare, buffer_rows):
        first = ~is_repeat(block["event_ms"], block["users"], block["query"])
        tokens = block["tokens"][first]
        for name in ("users", "event_ms"):
            out[name].append(block[name][first])
        out["starts"].append(len(out["tokens"]) + np.cumsum((tokens > 0).sum(axis=1)))
        out["tokens"].append(tokens[tokens > 0])
    for file in [*files.values(), *out.values()]:
        file.close()
    return len(out["users"])


def _files(directory: Path, suffix: str) -> dict[str, ArrayFile]:
    return {
        name: ArrayFile(directory / f"{name}{suffix}.npy", dtype, (MOST_TOKENS,) if name == "tokens" else ())
        for name, dtype in COLUMNS.items()
    }
