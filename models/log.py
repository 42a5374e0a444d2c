"""A log of watches or exposures, read from a file or a frame and checked before anything is trained on it.

Whoever starts a training of an hour learns of a bad row in the first second, with its number and its column. Rows may
come in any order and some twice; both are put right here, so that everything after sees one clean sequence in time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

LOG_COLUMNS = ("user_id", "item_id", "event_ms", "watch_s", "duration_s")
ITEM_COLUMNS = ("item_id", "channel", "topics", "duration_s", "published_ms")
SUFFIXES = (".parquet", ".csv", ".jsonl", ".ndjson")
LATEST_MS = 4_102_444_800_000
LONGEST_ID = 256  # as in the messages on the topics


class LogError(ValueError):
    """A log or catalogue cannot be used; the text names file or frame, row (from 1, without a header) and column."""


@dataclass(frozen=True)
class Log:
    """`frame` is sorted by time: user_id, item_id, event_ms, watch_s (null: watched, for how long is not known),
    duration_s (null: not known), completed. `watch_times` says whether any watch_s is known."""

    frame: pl.DataFrame
    completed_s: float
    duplicates: int

    @property
    def watch_times(self) -> bool:
        return self.frame["watch_s"].null_count() < self.frame.height


def parse_mapping(pairs: Iterable[str]) -> dict[str, str]:
    """`["user_id=uid", ...]`, as given to `--map`, as {"user_id": "uid"}. Raises LogError for anything else."""
    mapping = {}
    for pair in pairs:
        ours, equals, theirs = pair.partition("=")
        if not equals or not ours or not theirs:
            raise LogError(f"--map {pair}: expected OURS=THEIRS, for example user_id=uid")
        mapping[ours.strip()] = theirs.strip()
    return mapping


def read_log(path: Path, *, mapping: Mapping[str, str] | None = None, completed_s: float) -> Log:
    """Read a Parquet, CSV or JSON-lines log. `mapping` gives the file's name of a column of ours.

    Raises LogError naming file, row and column.
    """
    frame = _rename(_read(Path(path)), mapping or {}, LOG_COLUMNS, f"{path}")
    return log_from_frame(frame, completed_s, source=f"{path}")


def read_items(path: Path, *, mapping: Mapping[str, str] | None = None) -> pl.DataFrame:
    """Read a catalogue: item_id and, where known, channel, topics (a list, or text split at `|` or `,`), duration_s,
    published_ms. Raises LogError naming file, row and column."""
    frame = _rename(_read(Path(path)), mapping or {}, ITEM_COLUMNS, f"{path}")
    return items_from_frame(frame, source=f"{path}")


def log_from_frame(frame: pl.DataFrame, completed_s: float, *, source: str = "log") -> Log:
    """Check, sort and de-duplicate a log. A watch is completed (positive) when it lasted min(duration, `completed_s`);
    a row without watch_s is one. Raises LogError naming row and column."""
    _require(frame, ("user_id", "item_id", "event_ms"), source)
    if frame.height == 0:
        raise LogError(f"{source}: has no rows")
    frame = frame.select(
        _ids(frame, "user_id", source),
        _ids(frame, "item_id", source),
        _millis(frame, "event_ms", source),
        _seconds(frame, "watch_s", source),
        _seconds(frame, "duration_s", source).replace(0.0, None),
    )
    distinct = frame.unique(["user_id", "item_id", "event_ms"], keep="first", maintain_order=True)
    long_enough = pl.col("watch_s") >= pl.min_horizontal(pl.col("duration_s"), pl.lit(completed_s))
    ordered = distinct.sort("event_ms", maintain_order=True).with_columns(completed=long_enough.fill_null(True))
    return Log(ordered, completed_s, frame.height - distinct.height)


def items_from_frame(frame: pl.DataFrame, *, source: str = "items") -> pl.DataFrame:
    """Check a catalogue and give it our columns; the last row of an item wins. Raises LogError."""
    _require(frame, ("item_id",), source)
    return pl.DataFrame(
        [
            _ids(frame, "item_id", source),
            _text(frame, "channel"),
            _topics(frame, source),
            _seconds(frame, "duration_s", source).replace(0.0, None),
            _millis(frame, "published_ms", source, needed=False),
        ]
    ).unique("item_id", keep="last", maintain_order=True)


def _read(path: Path) -> pl.DataFrame:
    if path.suffix not in SUFFIXES:
        raise LogError(f"{path}: cannot tell the format from {path.name}; a log ends in one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise LogError(f"{path}: no such file")
    try:
        if path.suffix == ".parquet":
            return pl.read_parquet(path)
        if path.suffix == ".csv":
            return pl.read_csv(path, infer_schema=False)  # ids that look like numbers stay as they are written
        return pl.read_ndjson(path, infer_schema_length=None)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise LogError(f"{path}: cannot be read as {path.suffix}: {error}") from None


def _rename(frame: pl.DataFrame, mapping: Mapping[str, str], ours: tuple[str, ...], source: str) -> pl.DataFrame:
    for name, theirs in mapping.items():
        if name not in ours:
            raise LogError(f"--map {name}={theirs}: {name} is not a column of ours; they are {', '.join(ours)}")
        if theirs not in frame.columns:
            raise LogError(f"{source}: no column {theirs} (--map {name}={theirs}); it has {', '.join(frame.columns)}")
    theirs_of = {name: mapping.get(name, name) for name in ours}
    return frame.select(pl.col(theirs).alias(name) for name, theirs in theirs_of.items() if theirs in frame.columns)


def _require(frame: pl.DataFrame, columns: tuple[str, ...], source: str) -> None:
    for name in columns:
        if name not in frame.columns:
            has = ", ".join(frame.columns)
            raise LogError(f"{source}: column {name} is missing; it has {has} (--map {name}=NAME says which one is it)")


def _ids(frame: pl.DataFrame, name: str, source: str) -> pl.Series:
    column = frame[name]
    if not (column.dtype.is_integer() or column.dtype in (pl.String, pl.Categorical, pl.Enum)):
        raise LogError(f"{source}: column {name} must be text or whole numbers, it is {column.dtype}")
    text = column.cast(pl.String)
    _refuse(text.is_null() | (text.str.len_chars() == 0), column, source, "an id is needed")
    _refuse(text.str.len_chars() > LONGEST_ID, text.str.head(20), source, f"an id has at most {LONGEST_ID} characters")
    return text


def _text(frame: pl.DataFrame, name: str) -> pl.Series:
    if name not in frame.columns:
        return pl.Series(name, [None] * frame.height, pl.String)
    text = frame[name].cast(pl.String)
    return text.set(text == "", None)


def _topics(frame: pl.DataFrame, source: str) -> pl.Series:
    if "topics" not in frame.columns:
        return pl.Series("topics", [[]] * frame.height, pl.List(pl.String))
    column = frame["topics"]
    if isinstance(column.dtype, pl.List):
        return column.cast(pl.List(pl.String)).fill_null([])
    if isinstance(column.dtype, (pl.Struct, pl.Array)) or column.dtype.is_float():
        raise LogError(f"{source}: column topics must be a list or text, it is {column.dtype}")
    split = column.cast(pl.String).fill_null("").str.replace_all(",", "|").str.split("|")
    trimmed = split.list.eval(pl.element().str.strip_chars())
    return trimmed.list.eval(pl.element().filter(pl.element() != ""))


def _millis(frame: pl.DataFrame, name: str, source: str, *, needed: bool = True) -> pl.Series:
    if name not in frame.columns:
        return pl.Series(name, [None] * frame.height, pl.Int64)
    column = frame[name]
    if column.dtype.is_temporal() and column.dtype not in (pl.Duration, pl.Time):
        return column.cast(pl.Datetime("ms")).cast(pl.Int64)
    whole = _number(column, pl.Int64)
    if needed:
        _refuse(column.is_null(), column, source, "a time is needed")
    fraction = column != whole if column.dtype.is_float() else pl.Series([False] * frame.height)
    _refuse((column.is_not_null() & whole.is_null()) | fraction, column, source, "must be whole milliseconds")
    _refuse(whole < 0, column, source, "must not be negative")
    _refuse(whole > LATEST_MS, column, source, "lies beyond the year 2100; is it in microseconds?")
    return whole


def _seconds(frame: pl.DataFrame, name: str, source: str) -> pl.Series:
    if name not in frame.columns:
        return pl.Series(name, [None] * frame.height, pl.Float64)
    column = frame[name]
    seconds = _number(column, pl.Float64)
    _refuse(column.is_not_null() & seconds.is_null(), column, source, "must be a number of seconds")
    _refuse(~seconds.is_finite() | (seconds < 0), column, source, "must be finite and not negative")
    return seconds


def _number(column: pl.Series, dtype: type[pl.Int64] | type[pl.Float64]) -> pl.Series:
    """The column as numbers; null where a value is none, an empty text included."""
    if not (column.dtype.is_numeric() or column.dtype in (pl.String, pl.Null)):
        return pl.Series(column.name, [None] * len(column), dtype)
    if column.dtype == pl.String:
        column = column.str.strip_chars()
    return column.cast(dtype, strict=False)


def _refuse(wrong: pl.Series, column: pl.Series, source: str, why: str) -> None:
    rows = wrong.fill_null(False).arg_true()
    if len(rows):
        more = f" (and {len(rows) - 1} more rows)" if len(rows) > 1 else ""
        raise LogError(f"{source}: row {rows[0] + 1}, column {column.name}: {why}, got {column[rows[0]]!r}{more}")
