"""A mapping proposed for a topic, from what its records look like: usual names, and the magnitude of times.

A proposal is for a person to read. What was not found is there as a comment, and so is every path with its type; the
records' own values are not.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime
from functools import partial
from statistics import median
from typing import Any, NamedTuple

from infra.platform.topic_mappings import REQUIRED, UNITS, Becomes
from streams.ingest.debezium import payload_of
from streams.ingest.values import name_of

DEEPEST, MOST_PATHS = 6, 200
A_KIND = 12  # a field with no more different texts than this may tell the kinds of events apart
IDS = {"id", "uid", "uuid", "guid", "key", "hash"}
USERS = {"user", "viewer", "account", "member", "profile", "customer", "subscriber", "visitor", "person", "uid"}
ITEMS = {"item", "video", "content", "media", "asset", "movie", "clip", "episode", "track", "program", "show", "film"}
WATCHED = {"watch", "watched", "watchtime", "played", "playtime", "position", "progress", "viewed", "elapsed"}
WATCHED |= {"listened", "seconds", "playhead"}
LENGTHS = {"duration", "length", "runtime"}
TIMES = {"ts", "time", "timestamp", "at", "date", "when", "occurred", "created", "event"}
WORDS: Mapping[str, set[str]] = {  # ours: what else it is called, where one word is enough
    "query": {"query", "search", "term", "terms", "keyword", "keywords", "q"},
    "title": {"title", "name", "headline"},
    "description": {"description", "summary", "synopsis"},
    "channel": {"channel", "creator", "author", "uploader", "publisher", "owner"},
    "topics": {"topics", "tags", "categories", "genres", "topic", "category", "genre"},
    "published_ms": {"published", "created", "released", "release", "uploaded", "upload", "publish"},
    "language": {"language", "lang", "locale"},
    "event_id": {"event"},
    "context.region": {"country", "region"},
    "context.device": {"device", "platform"},
}
KINDS = {"type", "event", "action", "kind", "name"}
MAGNITUDES = ((1e17, "ns"), (1e14, "us"), (1e11, "ms"), (1e8, "s"))  # of times: from where on a number is in a unit


class Column(NamedTuple):
    """One path, and what stands there in the records that have it."""

    path: str
    words: frozenset[str]
    last: frozenset[str]  # the words of its last name
    values: Sequence[Any]

    @property
    def is_plain(self) -> bool:
        return all(isinstance(value, str | int) and not isinstance(value, bool) for value in self.values)

    @property
    def is_number(self) -> bool:
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values)


def suggest(topic: str, values: Iterable[Any], read_as: str = "json") -> str:
    """A proposal in TOML."""
    rows, envelope = rows_in(values)
    columns = columns_of(rows)
    becomes = kind_of(columns)
    fields = chosen(columns, becomes)
    lines = [f"# from {len(rows)} records; look at it, then: nextwatch topics --sample 20 --map THIS_FILE"]
    lines += ["[[ingest.topics]]", f"topic = {json.dumps(topic)}", f'becomes = "{becomes}"']
    lines += [f'format = "{read_as}"'] if read_as != "json" else []
    lines += ['envelope = "debezium"'] if envelope else []
    lines += kinds_seen(columns) if becomes != "items" else []
    lines += ["", "[ingest.topics.fields]"]
    lines += [f"{name} = {json.dumps(column.path, ensure_ascii=False)}" for name, column in fields.items()]
    lines += [f'# {name} = "?"  # must be there, and was not found' for name in REQUIRED[becomes] if name not in fields]
    units = {name: unit_of(name, column) for name, column in fields.items() if name in UNITS}
    if units:
        lines += ["", "[ingest.topics.units]", *(f'{name} = "{unit}"' for name, unit in units.items())]
    lines += ["", "# All paths:", *(f"#   {each.path}: {kinds_at(each)}" for each in columns)]
    return "\n".join(lines) + "\n"


def rows_in(values: Iterable[Any]) -> tuple[list[dict[str, Any]], bool]:
    """The records that are objects, without Debezium's envelope, and whether they have it."""
    found = [value for value in map(payload_of, values) if isinstance(value, dict)]
    envelope = bool(found) and all({"op", "after"} <= value.keys() for value in found)
    rows = [value["after"] or value.get("before") for value in found] if envelope else found
    return [row for row in rows if isinstance(row, dict)], envelope


def columns_of(rows: Iterable[dict[str, Any]]) -> list[Column]:
    found: dict[str, list[Any]] = {}
    names: dict[str, tuple[str, ...]] = {}
    for row in rows:
        for steps, value in _leaves(row, ()):
            path = ".".join(f'"{step}"' if re.search(r'[."$]', step) else step for step in steps)
            if path in found or len(found) < MOST_PATHS:
                found.setdefault(path, []).append(value)
                names[path] = steps
    return [
        Column(path, words_of(names[path]), words_of(names[path][-1:]), values)
        for path, values in found.items()
        if all(step.isprintable() and '"' not in step for step in names[path])  # as TOML and a path can say it
    ]


def _leaves(value: dict[str, Any], before: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, inner in value.items():
        steps = (*before, str(name))
        if isinstance(inner, dict) and len(steps) < DEEPEST:
            yield from _leaves(inner, steps)
        elif inner is not None and name:
            yield steps, inner


def words_of(names: Iterable[str]) -> frozenset[str]:
    """`videoId`, `video_id` and `video.id` as the same words."""
    parts = (part for name in names for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name))
    return frozenset(part.lower() for part in parts)


def kind_of(columns: Sequence[Column]) -> Becomes:
    """What records are of which somebody is a part: a search or a watch; else an entry of the catalogue."""
    if user_of(columns) is None:
        return "items"
    is_search = any(each.last & WORDS["query"] and _is_text(each) for each in columns)
    return "search-events" if is_search and item_of(columns) is None else "watch-events"


def chosen(columns: Sequence[Column], becomes: Becomes) -> dict[str, Column]:
    """The column of each of our fields that one was found for; none is taken twice."""
    left = list(columns)
    found: dict[str, Column] = {}
    for name in _wanted(becomes):
        column = _best(name, left, becomes)
        if column is not None:
            found[name] = column
            left.remove(column)
    return found


def _wanted(becomes: Becomes) -> tuple[str, ...]:
    """The surer ones first."""
    match becomes:
        case "watch-events":
            return ("user_id", "item_id", "event_id", "event_ms", "watch_s", "duration_s", *_CONTEXT)
        case "search-events":
            return ("user_id", "query", "event_id", "event_ms", *_CONTEXT)
    return ("item_id", "title", "channel", "topics", "duration_s", "published_ms", "language", "description")


_CONTEXT = ("context.region", "context.device")


def _best(name: str, columns: Sequence[Column], becomes: Becomes) -> Column | None:
    if name == "item_id":
        own = (each for each in columns if each.path in IDS and becomes == "items")
        return item_of(columns) or _first(own)
    if name == "user_id":
        return user_of(columns)
    if name == "event_id":
        return _first(each for each in columns if _is_id(each) and each.words & WORDS[name]) or _own_id(columns)
    if name == "event_ms":
        times = [each for each in columns if is_time(each)]
        return _first(each for each in times if each.last & TIMES) or _first(times)
    fits = FITS.get(name) or partial(_is_called, name)
    return _first(each for each in columns if fits(each))


def _is_called(name: str, column: Column) -> bool:
    return bool(column.last & WORDS[name]) and _is_text(column) and not _is_id(column)


FITS: Mapping[str, Callable[[Column], bool]] = {
    "published_ms": lambda each: is_time(each) and bool(each.words & WORDS["published_ms"]),
    "watch_s": lambda each: each.is_number and bool(each.last & WATCHED) and not is_time(each),
    "duration_s": lambda each: each.is_number and bool(each.words & LENGTHS),
    "topics": lambda each: bool(each.last & WORDS["topics"]),
}


def _own_id(columns: Sequence[Column]) -> Column | None:
    """A record's id that is called no more than that, if no two have the same."""
    own = (each for each in columns if each.path in IDS and _is_id(each))
    return _first(each for each in own if len(set(each.values)) == len(each.values) > 1)


def user_of(columns: Iterable[Column]) -> Column | None:
    return _first(each for each in columns if each.words & USERS and _is_id(each))


def item_of(columns: Iterable[Column]) -> Column | None:
    return _first(each for each in columns if each.words & ITEMS and not each.words & USERS and _is_id(each))


def _is_id(column: Column) -> bool:
    return bool(column.last & IDS) and column.is_plain


def _is_text(column: Column) -> bool:
    return all(isinstance(value, str) for value in column.values)


def _first(columns: Iterable[Column]) -> Column | None:
    """The one that most records have; of equal ones the first."""
    return max(columns, key=lambda each: len(each.values), default=None)


def is_time(column: Column) -> bool:
    return _time_unit(column) is not None


def unit_of(name: str, column: Column) -> str:
    """The unit that a column's values are in, as far as they and its name tell."""
    if name.endswith("_ms"):
        return _time_unit(column) or "ms"
    for unit, words in (("ms", {"ms", "millis", "milliseconds", "msec"}), ("s", {"s", "sec", "secs", "seconds"})):
        if column.last & words:
            return unit
    middle = median(column.values) if column.is_number else 0
    if name == "watch_s" and column.last & {"percent", "percentage", "pct"}:
        return "percent"
    if name == "watch_s" and max(column.values) <= 1 and any(value % 1 for value in column.values):
        return "fraction"
    return "ms" if middle > 10_000 else "s"


def _time_unit(column: Column) -> str | None:
    """None: these are no times."""
    if all(isinstance(value, date) for value in column.values):
        return "ms"
    if all(isinstance(value, str) and _is_iso(value) for value in column.values):
        return "iso"
    if not column.is_number or not column.words & (TIMES | WORDS["published_ms"]) or min(column.values) <= 0:
        return None
    middle = median(column.values)
    return next((unit for least, unit in MAGNITUDES if middle >= least), None)


def _is_iso(text: str) -> bool:
    if not re.match(r"\d{4}-\d\d-\d\d", text):
        return False
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def kinds_seen(columns: Sequence[Column]) -> list[str]:
    """What a filter by the kind of event could say, as a comment."""
    for column in columns:
        kinds = Counter(column.values) if column.last & KINDS and _is_text(column) else Counter()
        if 1 < len(kinds) <= A_KIND:
            path, most = json.dumps(column.path, ensure_ascii=False), json.dumps(kinds.most_common()[0][0])
            seen = ", ".join(f"{json.dumps(kind)} {count}" for kind, count in kinds.most_common())
            return [f"# only = {{ {path} = {most} }}  # seen: {seen}"]
    return []


def kinds_at(column: Column) -> str:
    return ", ".join(dict.fromkeys(name_of(value) for value in column.values))
