"""A log of watches or impressions, read from a file or a frame and checked before anything is trained on it.

Whoever starts a training of an hour learns of a bad row in the first second, with its number and its column. Rows may
come in any order and some twice; both are put right here, so that everything after sees one clean sequence in time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import polars as pl

from models.catalogue.content import LARGEST, LONGEST_DESCRIPTION, MOST_NUMBERS

LOG_COLUMNS = ("user_id", "item_id", "event_ms", "watch_s", "duration_s")
CONTEXT_NAMES = ("region", "language", "device", "surface")  # text
CONTEXT_SHARES = ("signed_in", "gender", "age")  # numbers from 0 to 1
CONTEXT_COLUMNS = CONTEXT_NAMES + CONTEXT_SHARES
SIGNAL = "signal"  # text: what the user has said of the item, kinds apart by | or ,
SIGNAL_KINDS = ("like", "dislike", "not_interested", "share", "save")
SEARCH_COLUMNS = ("user_id", "query", "event_ms")
ITEM_COLUMNS = ("item_id", "channel", "topics", "duration_s", "published_ms")
CONTENT_COLUMNS = ("title", "description", "vector")  # of an item, where there are any
NO_IDS = ("title", "available", "language", "ids")  # beside ITEM_COLUMNS: never an id column of its own
LIMIT = 1.000001 * LARGEST  # of a number of a vector: float32 rounds LARGEST up
ROWS_AT_ONCE = 16_384  # vectors in double precision
MOST_ID_COLUMNS = 16
SUFFIXES = (".parquet", ".csv", ".jsonl", ".ndjson")
LATEST_MS = 4_102_444_800_000
LONGEST_ID, LONGEST_TITLE = 256, 2000  # characters, as in the messages on the topics


class LogError(ValueError):
    """A log or catalogue cannot be used; the text names file or frame, row (from 1, without a header) and column."""


class Place(NamedTuple):
    """The origin of a frame, and how many of the source's rows came before its first: what an error names."""

    source: str
    before: int = 0


@dataclass(frozen=True)
class Log:
    """`frame` is sorted by time: user_id, item_id, event_ms, watch_s (null: watched, for how long is not known),
    duration_s (null: not known), those of CONTEXT_COLUMNS and SIGNAL that were given, completed. `watch_times` says
    whether any watch_s is known."""

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
    frame = rename(_read(Path(path)), mapping or {}, (*LOG_COLUMNS, *CONTEXT_COLUMNS, SIGNAL), f"{path}")
    return log_from_frame(frame, completed_s, source=f"{path}")


def read_items(path: Path, *, mapping: Mapping[str, str] | None = None) -> pl.DataFrame:
    """Read a catalogue: item_id and, where known, channel, topics (a list, or text split at `|` or `,`), duration_s,
    published_ms, title, description, vector (a list of numbers, or text split at `,`, `|` or spaces); further columns
    as items_from_frame takes them. Raises LogError naming file, row and column."""
    frame = rename(_read(Path(path)), mapping or {}, ITEM_COLUMNS + CONTENT_COLUMNS, f"{path}", others=True)
    return items_from_frame(frame, source=f"{path}")


def log_from_frame(frame: pl.DataFrame, completed_s: float, *, source: str = "log") -> Log:
    """Check, sort and de-duplicate a log. A watch is completed (positive) when it lasted min(duration, `completed_s`);
    a row without watch_s is one. Raises LogError naming row and column."""
    if frame.height == 0:
        require(frame.columns, source)
        raise LogError(f"{source}: has no rows")
    checked = checked_rows(frame, completed_s, Place(source))
    distinct = checked.unique(["user_id", "item_id", "event_ms"], keep="first", maintain_order=True)
    return Log(distinct.sort("event_ms", maintain_order=True), completed_s, frame.height - distinct.height)


def checked_rows(frame: pl.DataFrame, completed_s: float, place: Place) -> pl.DataFrame:
    """The rows as they are, in our types and with `completed`, or LogError for the first that cannot be used."""
    require(frame.columns, place.source)
    columns = [
        _ids(frame, "user_id", place),
        _ids(frame, "item_id", place),
        _millis(frame, "event_ms", place),
        _seconds(frame, "watch_s", place),
        _seconds(frame, "duration_s", place).replace(0.0, None),
    ]
    columns += [_name(frame, name, place) for name in CONTEXT_NAMES if name in frame.columns]
    columns += [_share(frame, name, place) for name in CONTEXT_SHARES if name in frame.columns]
    columns += [_signals(frame[SIGNAL])] if SIGNAL in frame.columns else []
    long_enough = pl.col("watch_s") >= pl.min_horizontal(pl.col("duration_s"), pl.lit(completed_s))
    return pl.DataFrame(columns).with_columns(completed=long_enough.fill_null(True))


def checked_searches(frame: pl.DataFrame, place: Place) -> pl.DataFrame:
    """Searches as they are: user_id, query, event_ms; or LogError for the first that cannot be used."""
    require(frame.columns, place.source, SEARCH_COLUMNS)
    query = frame["query"].cast(pl.String).fill_null("")
    return pl.DataFrame([_ids(frame, "user_id", place), query, _millis(frame, "event_ms", place)])


def items_from_frame(frame: pl.DataFrame, *, source: str = "items") -> pl.DataFrame:
    """Check a catalogue and give it our columns; the last row of an item wins. Raises LogError.

    Title and a description of text are kept, cut to LONGEST_TITLE and LONGEST_DESCRIPTION, and a vector of numbers as
    a list of float32, null for none: all have one length. Every further column of text, whole numbers or lists of them
    is an id column (`ids`, a struct of lists of text; left out when there is none), but for NO_IDS; also one that is
    named description or vector and is none. Numbers that are not all whole, dates and flags are no ids and are left
    out. More than MOST_ID_COLUMNS are refused.
    """
    require(frame.columns, source, ("item_id",))
    place = Place(source)
    columns = [
        _ids(frame, "item_id", place),
        _text(frame, "channel"),
        _topics(frame, place),
        _seconds(frame, "duration_s", place).replace(0.0, None),
        _millis(frame, "published_ms", place, needed=False),
    ]
    content = content_columns(frame)
    for name, longest in (("title", LONGEST_TITLE), ("description", LONGEST_DESCRIPTION)):
        if name in content:
            columns.append(_text(frame, name).str.head(longest))
    if "vector" in content:
        columns.append(_vectors(frame["vector"], place))
    ids = _id_columns(frame.drop(content), place)
    if ids:
        columns.append(pl.DataFrame(ids).to_struct("ids"))
    return pl.DataFrame(columns).unique("item_id", keep="last", maintain_order=True)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raises LogError unless it is a file whose name says how to read it, and that can be read so."""
    if path.suffix not in SUFFIXES:
        raise LogError(f"{path}: cannot tell the format from {path.name}; a log ends in one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise LogError(f"{path}: no such file")
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        raise LogError(f"{path}: cannot be read as {path.suffix}: {error}") from None


def _read(path: Path) -> pl.DataFrame:
    with reading(path):
        if path.suffix == ".parquet":
            return pl.read_parquet(path)
        if path.suffix == ".csv":
            return pl.read_csv(path, infer_schema=False)  # ids that look like numbers stay as they are written
        return pl.read_ndjson(path, infer_schema_length=None)


def rename(
    frame: pl.DataFrame, mapping: Mapping[str, str], ours: tuple[str, ...], source: str, *, others: bool = False
) -> pl.DataFrame:
    """The frame's columns of those names under our names, and with `others` its further ones. Raises LogError."""
    theirs_of = names_of(frame.columns, mapping, ours, source)
    renamed = frame.select(pl.col(theirs).alias(name) for name, theirs in theirs_of.items())
    if not others:
        return renamed
    further = [name for name in frame.columns if name not in theirs_of.values() and name not in ours]
    return renamed.hstack(frame.select(further))


def names_of(columns: Sequence[str], mapping: Mapping[str, str], ours: tuple[str, ...], source: str) -> dict[str, str]:
    """By our name the source's name of each column that it has. Raises LogError for a mapping that does not fit."""
    for name, theirs in mapping.items():
        if name not in ours:
            raise LogError(f"--map {name}={theirs}: {name} is not a column of ours; they are {', '.join(ours)}")
        if theirs not in columns:
            raise LogError(f"{source}: no column {theirs} (--map {name}={theirs}); it has {', '.join(columns)}")
    theirs_of = {name: mapping.get(name, name) for name in ours}
    return {name: theirs for name, theirs in theirs_of.items() if theirs in columns}


def require(columns: Sequence[str], source: str, needed: tuple[str, ...] = LOG_COLUMNS[:3]) -> None:
    """Raises LogError unless all of them are there."""
    for name in needed:
        if name not in columns:
            has = ", ".join(columns)
            raise LogError(f"{source}: column {name} is missing; it has {has} (--map {name}=NAME says which one is it)")


def _ids(frame: pl.DataFrame, name: str, place: Place) -> pl.Series:
    column = frame[name]
    if not (column.dtype.is_integer() or column.dtype in (pl.String, pl.Categorical, pl.Enum, pl.Null)):
        raise LogError(f"{place.source}: column {name} must be text or whole numbers, it is {column.dtype}")
    text = column.cast(pl.String)
    _refuse(text.is_null() | (text.str.len_chars() == 0), column, place, "an id is needed")
    _refuse(text.str.len_chars() > LONGEST_ID, text.str.head(20), place, f"an id has at most {LONGEST_ID} characters")
    return text


def _text(frame: pl.DataFrame, name: str) -> pl.Series:
    if name not in frame.columns:
        return pl.Series(name, [None] * frame.height, pl.String)
    text = frame[name].cast(pl.String)
    return text.set(text == "", None)


def _name(frame: pl.DataFrame, name: str, place: Place) -> pl.Series:
    text = _text(frame, name)
    too_long = text.str.len_chars() > LONGEST_ID
    _refuse(too_long, text.str.head(20), place, f"a name has at most {LONGEST_ID} characters")
    return text


def _share(frame: pl.DataFrame, name: str, place: Place) -> pl.Series:
    """A flag or a share as a number from 0 to 1."""
    column = frame[name]
    if column.dtype == pl.String:
        lower = column.str.strip_chars().str.to_lowercase()
        column = lower.replace({"true": "1", "false": "0", "": None})
    number = column.cast(pl.Float64) if column.dtype == pl.Boolean else _number(column, pl.Float64)
    _refuse(column.is_not_null() & number.is_null(), frame[name], place, "must be a number from 0 to 1")
    _refuse(~number.is_between(0, 1), frame[name], place, "must be a number from 0 to 1")
    return number


def _signals(column: pl.Series) -> pl.Series:
    """Known kinds in order, each once, apart by `|`; null for none. A log's own column of that name may mean something
    else: then it says nothing."""
    if column.dtype == pl.List(pl.String):
        kinds = column.fill_null([])
    elif column.dtype in {pl.String, pl.Categorical, pl.Enum}:
        kinds = _split(column.cast(pl.String))
    else:
        return pl.Series(SIGNAL, [None] * len(column), pl.String)
    known = kinds.list.eval(pl.element().filter(pl.element().is_in(SIGNAL_KINDS)))
    text = known.list.unique().list.sort().list.join("|")
    return text.set(text == "", None).alias(SIGNAL)


def _topics(frame: pl.DataFrame, place: Place) -> pl.Series:
    if "topics" not in frame.columns:
        return pl.Series("topics", [[]] * frame.height, pl.List(pl.String))
    column = frame["topics"]
    if isinstance(column.dtype, pl.List):
        return column.cast(pl.List(pl.String)).fill_null([])
    if isinstance(column.dtype, (pl.Struct, pl.Array)) or column.dtype.is_float():
        raise LogError(f"{place.source}: column topics must be a list or text, it is {column.dtype}")
    return _split(column.cast(pl.String))


def _split(text: pl.Series) -> pl.Series:
    """Words apart by `|` or `,` as lists."""
    split = text.fill_null("").str.replace_all(",", "|").str.split("|")
    trimmed = split.list.eval(pl.element().str.strip_chars())
    return trimmed.list.eval(pl.element().filter(pl.element() != ""))


def content_columns(frame: pl.DataFrame) -> list[str]:
    """The columns of CONTENT_COLUMNS that say what items are. A team may have had others of these names: ids, or what
    is left out."""
    content = [name for name in CONTENT_COLUMNS if name in frame.columns]
    if "description" in content and frame["description"].dtype not in (pl.String, pl.Categorical, pl.Null):
        content.remove("description")
    if "vector" in content and not _are_vectors(frame["vector"]):
        content.remove("vector")
    return content


def _are_vectors(column: pl.Series) -> bool:
    """True for lists of numbers, for text some of which is one, and where there is nothing."""
    if not isinstance(column.dtype, pl.String | pl.List | pl.Array):
        return column.dtype == pl.Null
    lists = _lists(column.drop_nulls().head(ROWS_AT_ONCE))
    inner = getattr(lists.dtype, "inner", None)
    if inner == pl.String:
        words = lists.explode().drop_nulls()
        return not len(words) or words.cast(pl.Float64, strict=False).is_not_null().any()
    return isinstance(inner, pl.DataType) and (inner.is_numeric() or inner == pl.Null)


def _lists(column: pl.Series) -> pl.Series:
    """Lists as they are; text as lists of what stands between its brackets, commas, bars and spaces."""
    if isinstance(column.dtype, pl.Array):
        return column.cast(pl.List(column.dtype.inner))
    if column.dtype != pl.String:
        return column
    text = column.str.replace_all(r"[\[\],|;\s]+", " ").str.strip_chars()
    return text.set(text == "", None).str.split(" ")


def _vectors(column: pl.Series, place: Place) -> pl.Series:
    """Lists of float32; null where there is none. Some rows at once: the numbers of all may be most of the memory."""
    parts, size = [], None
    for start in range(0, max(len(column), 1), ROWS_AT_ONCE):
        given = _lists(column.slice(start, ROWS_AT_ONCE))
        lists = given.cast(pl.List(pl.Float64)) if given.dtype == pl.Null else given
        part, size = _checked(lists, Place(place.source, place.before + start), size)
        parts.append(part)
    return pl.concat(parts)


def _checked(given: pl.Series, place: Place, size: int | None) -> tuple[pl.Series, int | None]:
    """The same as float32, and how many numbers each vector has: `size` where that is known."""
    numbers = given.cast(pl.List(pl.Float64), strict=False)
    sizes = numbers.list.len().replace(0, None).alias(given.name)
    _refuse(sizes > MOST_NUMBERS, sizes, place, f"a vector has at most {MOST_NUMBERS} numbers")
    wrong = numbers.list.eval((pl.element().is_between(-LIMIT, LIMIT).fill_null(False)).not_())
    first = given.list.get(wrong.list.arg_max(), null_on_oob=True)
    _refuse(wrong.list.any(), first, place, f"a vector has finite numbers, from {-LARGEST:.0e} to {LARGEST:.0e}")
    known = sizes.drop_nulls()
    if len(known):
        size = known[0] if size is None else size
        _refuse(sizes != size, sizes, place, f"all vectors have one length, that of the first is {size}")
    return numbers.set(sizes.is_null(), None).cast(pl.List(pl.Float32)), size


def _id_columns(frame: pl.DataFrame, place: Place) -> list[pl.Series]:
    """The further columns that are ids, as lists of text."""
    columns = [frame[name] for name in frame.columns if name not in ITEM_COLUMNS + NO_IDS]
    if "ids" in frame.columns and isinstance(frame["ids"].dtype, pl.Struct):  # a catalogue that was checked before
        columns += frame["ids"].struct.unnest().get_columns()
    lists = [listed for column in columns if (listed := _id_list(column, place)) is not None]
    if len(lists) > MOST_ID_COLUMNS:
        names = ", ".join(column.name for column in lists)
        raise LogError(f"{place.source}: at most {MOST_ID_COLUMNS} further columns can be ids, it has {names}")
    return lists


def _id_list(column: pl.Series, place: Place) -> pl.Series | None:
    """The ids of each row as a list of text; None when the column holds no ids."""
    if isinstance(column.dtype, pl.List):
        inner = column.dtype.inner
        if not (inner == pl.String or (isinstance(inner, pl.DataType) and inner.is_integer())):
            return None
        lists = column.cast(pl.List(pl.String)).fill_null([])
    elif column.dtype.is_integer() or column.dtype in (pl.String, pl.Categorical, pl.Enum):
        text = column.cast(pl.String)
        number = text.cast(pl.Float64, strict=False)
        if number.null_count() == text.null_count() and (number != number.floor()).any():
            return None  # measures, as text
        lists = text.reshape((-1, 1)).cast(pl.List(pl.String)) if len(text) else text.cast(pl.List(pl.String))
    else:
        return None
    lists = lists.list.eval(pl.element().filter((pl.element() != "") & pl.element().is_not_null()))
    _refuse(
        lists.list.eval(pl.element().str.len_chars()).list.max() > LONGEST_ID,
        pl.Series(column.name, [f"an id of over {LONGEST_ID} characters"]).new_from_index(0, len(lists)),
        place,
        f"an id has at most {LONGEST_ID} characters",
    )
    return lists.alias(column.name)


def _millis(frame: pl.DataFrame, name: str, place: Place, *, needed: bool = True) -> pl.Series:
    if name not in frame.columns:
        return pl.Series(name, [None] * frame.height, pl.Int64)
    column = frame[name]
    if column.dtype.is_temporal() and column.dtype not in (pl.Duration, pl.Time):
        column = column.cast(pl.Datetime("ms")).cast(pl.Int64)
    whole = _number(column, pl.Int64)
    if needed:
        _refuse(column.is_null(), column, place, "a time is needed")
    fraction = column != whole if column.dtype.is_float() else pl.repeat(False, frame.height, eager=True)
    _refuse((column.is_not_null() & whole.is_null()) | fraction, column, place, "must be whole milliseconds")
    _refuse(whole < 0, column, place, "must not be negative")
    _refuse(whole > LATEST_MS, column, place, "lies beyond the year 2100; is it in microseconds?")
    return whole


def _seconds(frame: pl.DataFrame, name: str, place: Place) -> pl.Series:
    if name not in frame.columns:
        return pl.Series(name, [None] * frame.height, pl.Float64)
    column = frame[name]
    seconds = _number(column, pl.Float64)
    _refuse(column.is_not_null() & seconds.is_null(), column, place, "must be a number of seconds")
    _refuse(~seconds.is_finite() | (seconds < 0), column, place, "must be finite and not negative")
    return seconds


def _number(column: pl.Series, dtype: type[pl.Int64] | type[pl.Float64]) -> pl.Series:
    """The column as numbers; null where a value is none, an empty text included."""
    if not (column.dtype.is_numeric() or column.dtype in (pl.String, pl.Null)):
        return pl.Series(column.name, [None] * len(column), dtype)
    if column.dtype == pl.String:
        column = column.str.strip_chars()
    return column.cast(dtype, strict=False)


def _refuse(wrong: pl.Series, column: pl.Series, place: Place, why: str) -> None:
    rows = wrong.fill_null(False).arg_true()
    if len(rows):
        more = f" (and {len(rows) - 1} more rows)" if len(rows) > 1 else ""
        row = place.before + rows[0] + 1
        raise LogError(f"{place.source}: row {row}, column {column.name}: {why}, got {column[rows[0]]!r}{more}")
