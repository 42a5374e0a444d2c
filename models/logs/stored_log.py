"""A log of any size as memory-mapped columns in order of time: checked, sorted and coded without ever being in memory.

Events are written to disk as they come and put in order there (models.logs.time_order); in memory are a buffer of rows
and the ids. The checks and the result are those of models.logs.log, so that a log which fits into memory may be read
either way.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from models.arrays import Array, Flags, Floats, Rows
from models.catalogue.vocabulary import Vocabulary
from models.logs.array_file import ArrayFile, mapped
from models.logs.log import (
    CONTEXT_COLUMNS,
    CONTEXT_NAMES,
    CONTEXT_SHARES,
    LOG_COLUMNS,
    SIGNAL,
    LogError,
    Place,
    checked_rows,
    require,
)
from models.logs.row_batches import BATCH_ROWS, Wanted, count_rows, read_batches
from models.logs.time_order import blocks_in_time

Progress = Callable[[str, int, int], None]

BUFFER_ROWS = 1_000_000
FACTS = "log.json"  # written last: a directory without it holds no whole log
SCRATCH = ".unsorted"
CORE: dict[str, Any] = {
    "users": np.int32,
    "items": np.int32,
    "event_ms": np.int64,
    "watch_s": np.float32,
    "duration_s": np.float32,
    "completed": np.bool_,
}
CONTEXT: dict[str, Any] = dict.fromkeys(CONTEXT_NAMES, np.int32) | dict.fromkeys(CONTEXT_SHARES, np.float32)
CONTEXT[SIGNAL] = np.int32


class _Facts(msgspec.Struct, frozen=True):
    """The content of log.json about the arrays beside it."""

    completed_s: float
    duplicates: int
    watch_times: bool
    vocabularies: dict[str, list[str]]
    contexts: list[str]


@dataclass(frozen=True)
class StoredLog:
    """Columns of [N] rows in order of time, read-only maps of files in `directory`.

    users, items: places in user_ids and item_ids, int32; event_ms int64; watch_s, duration_s: float32, NaN where not
    known; completed: bool. `contexts` has the columns that say anything: region, language, device, surface and signal
    as int32 places in `vocabularies` (0: not known), signed_in, gender and age as float32 (NaN: not known).
    `duplicates` rows of the same user, item and time were left out.
    """

    directory: Path
    users: npt.NDArray[np.int32]
    items: npt.NDArray[np.int32]
    event_ms: Rows
    watch_s: Floats
    duration_s: Floats
    completed: Flags
    user_ids: list[str]
    item_ids: list[str]
    contexts: dict[str, Array]
    vocabularies: dict[str, list[str]]
    completed_s: float
    duplicates: int
    watch_times: bool

    def __len__(self) -> int:
        return len(self.users)

    def frame(self, start: int = 0, stop: int | None = None) -> pl.DataFrame:
        """These rows as a table of the columns that models.logs.log.Log has (seconds in single precision)."""
        rows = slice(start, stop)
        columns = {
            "user_id": _taken(self.user_ids, self.users[rows]),
            "item_id": _taken(self.item_ids, self.items[rows]),
            "event_ms": pl.Series(self.event_ms[rows]),
            "watch_s": pl.Series(self.watch_s[rows]).fill_nan(None),
            "duration_s": pl.Series(self.duration_s[rows]).fill_nan(None),
        }
        for name, values in self.contexts.items():
            named = name in self.vocabularies
            known = _taken(self.vocabularies[name], values[rows]) if named else pl.Series(values[rows])
            columns[name] = known.replace("", None) if named else known.fill_nan(None)
        return pl.DataFrame(columns).with_columns(completed=pl.Series(self.completed[rows]))

    def item_durations(self) -> Floats:
        """float32 [I]: the last duration that the log tells of each item, NaN for none."""
        durations = np.full(len(self.item_ids), np.nan, np.float32)
        for start in range(0, len(self), BUFFER_ROWS):
            rows = slice(start, start + BUFFER_ROWS)
            known = ~np.isnan(self.duration_s[rows])
            durations[self.items[rows][known]] = self.duration_s[rows][known]
        return durations


def store_log(
    path: Path,
    directory: Path,
    *,
    mapping: Mapping[str, str] | None = None,
    completed_s: float,
    progress: Progress = lambda stage, done, total: None,
    buffer_rows: int = BUFFER_ROWS,
) -> StoredLog:
    """Read a Parquet, CSV or JSON-lines log into `directory`. `mapping` gives the file's name of a column of ours.

    `progress(stage, done, total)` is called with `reading` and `sorting`. Raises LogError naming file, row and column.
    """
    path = Path(path)
    wanted = Wanted((*LOG_COLUMNS, *CONTEXT_COLUMNS, SIGNAL), LOG_COLUMNS[:3], mapping or {})
    total = count_rows(path)
    with LogWriter(directory, completed_s=completed_s, source=f"{path}", buffer_rows=buffer_rows) as writer:
        for batch in read_batches(path, wanted, min(BATCH_ROWS, buffer_rows)):
            writer.add(batch)
            progress("reading", writer.rows, max(total, writer.rows))
        return writer.finish(progress)


def store_frame(
    frame: pl.DataFrame, directory: Path, *, completed_s: float, source: str = "log", buffer_rows: int = BUFFER_ROWS
) -> StoredLog:
    """The same for a table. Raises LogError naming row and column."""
    require(frame.columns, source)
    with LogWriter(directory, completed_s=completed_s, source=source, buffer_rows=buffer_rows) as writer:
        for batch in frame.iter_slices(buffer_rows):
            writer.add(batch)
        return writer.finish()


def open_log(directory: Path) -> StoredLog:
    """Open a stored log. Raises LogError when there is no whole log."""
    path = Path(directory) / FACTS
    try:
        facts = msgspec.json.decode(path.read_bytes(), type=_Facts)
        columns = {name: mapped(_place(directory, name)) for name in [*CORE, *facts.contexts]}
        ids = {name: pl.read_parquet(directory / f"{name}.parquet")[name].to_list() for name in ("user_id", "item_id")}
    except (OSError, msgspec.DecodeError, ValueError, pl.exceptions.PolarsError) as error:
        raise LogError(f"{directory}: holds no stored log: {error}") from None
    contexts = {name: columns.pop(name) for name in facts.contexts}
    told: dict[str, Any] = columns | msgspec.structs.asdict(facts) | {"contexts": contexts}
    return StoredLog(Path(directory), user_ids=ids["user_id"], item_ids=ids["item_id"], **told)


class LogWriter:
    """Writes a stored log from frames that come one after the other, in any order of time.

    Used as a context manager: what an error leaves unfinished is cleared away.
    """

    def __init__(
        self, directory: Path, *, completed_s: float, source: str = "log", buffer_rows: int = BUFFER_ROWS
    ) -> None:
        self.rows = 0
        self._directory, self._scratch = Path(directory), Path(directory) / SCRATCH
        self._completed_s, self._source, self._buffer_rows = completed_s, source, buffer_rows
        self._users, self._items = Vocabulary(), Vocabulary()
        self._names = {name: Vocabulary([""]) for name in (*CONTEXT_NAMES, SIGNAL)}
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir(parents=True)
        (self._directory / FACTS).unlink(missing_ok=True)
        self._files = {name: ArrayFile(_place(self._scratch, name), dtype) for name, dtype in CORE.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def add(self, frame: pl.DataFrame) -> None:
        """Check and write rows: user_id, item_id, event_ms and, where known, watch_s, duration_s and a context.

        Raises LogError with the row's number among all that were added.
        """
        if frame.height == 0:
            return
        checked = checked_rows(frame, self._completed_s, Place(self._source, self.rows))
        columns = {
            "users": self._users.codes(checked["user_id"]),
            "items": self._items.codes(checked["item_id"]),
            "event_ms": checked["event_ms"].to_numpy(),
            "watch_s": _floats(checked["watch_s"]),
            "duration_s": _floats(checked["duration_s"]),
            "completed": checked["completed"].to_numpy(),
        }
        for name in [name for name in CONTEXT if name in checked.columns]:
            column, names = checked[name], self._names.get(name)
            if column.null_count() < checked.height:
                columns[name] = _floats(column) if names is None else names.codes(column.fill_null(""))
        for name in columns.keys() - self._files.keys():  # known for the first time
            self._files[name] = ArrayFile(_place(self._scratch, name), CONTEXT[name])
        self.rows += checked.height
        for name, file in self._files.items():
            known = columns.get(name, np.empty(0, file.dtype))
            missing = self.rows - len(file) - len(known)
            for start in range(0, missing, self._buffer_rows):
                unknown = np.nan if file.dtype.kind == "f" else 0
                file.append(np.full(min(self._buffer_rows, missing - start), unknown, file.dtype))
            file.append(known)

    def finish(self, progress: Progress = lambda stage, done, total: None) -> StoredLog:
        """Put all rows in order of time and leave out duplicates. Raises LogError when there are no rows."""
        if not self.rows:
            raise LogError(f"{self._source}: has no rows")
        done, kept, watch_times = 0, 0, False
        ordered = {name: ArrayFile(_place(self._directory, name), file.dtype) for name, file in self._files.items()}
        for block in blocks_in_time(self._files, self._buffer_rows):
            done += len(block["event_ms"])
            first = ~is_repeat(block["event_ms"], block["users"], block["items"])
            for name, file in ordered.items():
                file.append(block[name][first])
            kept += int(first.sum())
            watch_times = watch_times or not np.isnan(block["watch_s"][first]).all()
            progress("sorting", done, self.rows)
        for file in ordered.values():
            file.close()
        self._write_facts(self.rows - kept, watch_times)
        return open_log(self._directory)

    def _write_facts(self, duplicates: int, watch_times: bool) -> None:
        for name, ids in (("user_id", self._users.names), ("item_id", self._items.names)):
            pl.DataFrame({name: pl.Series(ids, dtype=pl.String)}).write_parquet(self._directory / f"{name}.parquet")
        contexts = [name for name in CONTEXT if name in self._files]
        vocabularies = {name: self._names[name].names for name in contexts if name in self._names}
        facts = _Facts(self._completed_s, duplicates, watch_times, vocabularies, contexts)
        (self._directory / FACTS).write_bytes(msgspec.json.encode(facts))


def is_repeat(event_ms: Array, *keys: Array) -> Flags:
    """bool [B]: whether an earlier row has the same time and keys. `event_ms` is sorted."""
    same = event_ms[1:] == event_ms[:-1]
    tied = np.flatnonzero(np.r_[False, same] | np.r_[same, False])  # few: all others cannot be repeats
    columns = [key[tied] for key in (event_ms, *keys)]
    order = np.lexsort(columns)  # stable: equal rows stay in their order
    equal = np.ones(max(0, len(tied) - 1), np.bool_)
    for column in columns:
        equal &= column[order][1:] == column[order][:-1]
    repeat = np.zeros(len(event_ms), np.bool_)
    repeat[tied[order[1:]][equal]] = True
    return repeat


def _place(directory: Path, name: str) -> Path:
    return Path(directory) / f"{name}.npy"


def _floats(column: pl.Series) -> Floats:
    return column.cast(pl.Float32).fill_null(np.nan).to_numpy()


def _taken(names: list[str], codes: npt.NDArray[np.int32]) -> pl.Series:
    return pl.Series(names, dtype=pl.String).gather(np.asarray(codes, np.int64))
