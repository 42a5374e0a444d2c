"""Paths into a record: `viewer.id`, `items.0.id`, `"a.b".c` for a name that has a dot in it.

Without more a path begins at the record's value; `$key` is its key, `$headers.NAME` a header as text, `$timestamp` the
time in ms that Kafka has for it. What is not there, and what is null, is None: nobody can tell why a field is missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

KEY, HEADERS, TIMESTAMP = "$key", "$headers", "$timestamp"
_STEP = re.compile(r'"([^"]+)"|([^".]+)')

Find = Callable[["Record"], Any]


class Record(NamedTuple):
    """A record of theirs, decoded. `value` is None for a tombstone; the key is decoded by whom it is asked for: it may
    be in another format than anybody has said."""

    value: Any
    key: Callable[[], Any]
    timestamp_ms: int
    headers: tuple[tuple[str, bytes | None], ...]
    place: tuple[str, int, int]  # topic, partition and offset


class PathError(ValueError):
    """A path cannot be read; the text says which and why."""


def steps_of(path: str) -> tuple[str, ...]:
    """Raises PathError."""
    steps, at = [], 0
    while at < len(path):
        found = _STEP.match(path, at)
        if found is None or path[found.end() : found.end() + 1] not in ("", "."):
            break
        steps.append(found[1] or found[2])
        at = found.end() + 1
        if at == len(path):  # it ends with a dot
            break
    if not steps or at != len(path) + 1:
        raise PathError(f'path {path!r}: expected names with dots between them, such as viewer.id or "a.b".c')
    return tuple(steps)


def finder(path: str) -> Find:
    """What finds a path's value in a record. Raises PathError."""
    first, *rest = steps_of(path)
    match first, tuple(rest):
        case "$timestamp", ():
            return lambda record: record.timestamp_ms
        case "$headers", (name,):
            return lambda record: _header(record, name)
        case "$key", ():
            return lambda record: record.key()
        case "$key", steps:
            return lambda record: walk(record.key(), steps)
        case name, steps if not name.startswith("$"):
            return _in_value(name, steps)
    raise PathError(f"path {path!r}: there are {KEY}, {HEADERS}.NAME and {TIMESTAMP} beside names of the value")


def _in_value(name: str, steps: tuple[str, ...]) -> Find:
    """Most records are objects, and most paths one or two names: without a loop, and a call, for these."""

    def find(record: Record) -> Any:
        value = record.value
        return value.get(name) if type(value) is dict else walk_one(value, name)

    def find_in(record: Record) -> Any:
        value = record.value
        value = value.get(name) if type(value) is dict else walk_one(value, name)
        return value.get(inner) if type(value) is dict else walk_one(value, inner)

    if not steps:
        return find
    inner, *others = steps
    return (lambda record: walk(find_in(record), tuple(others))) if others else find_in


def walk(value: Any, steps: tuple[str, ...]) -> Any:
    for step in steps:
        value = value.get(step) if type(value) is dict else walk_one(value, step)
    return value


def walk_one(value: Any, step: str) -> Any:
    if isinstance(value, dict):
        return value.get(step)
    if isinstance(value, list) and step.isascii() and step.isdigit() and len(step) < 10:
        return value[int(step)] if int(step) < len(value) else None
    return None


def _header(record: Record, name: str) -> str | None:
    found = next((content for each, content in record.headers if each == name), None)
    return None if found is None else found.decode(errors="replace")
