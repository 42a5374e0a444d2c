"""Their values as ours: times, durations, ids, each from what JSON, Avro and Protobuf have for it.

A number may come as text (what JavaScript does with large ones). Nothing is guessed: a value that is none of what is
named here is not converted, and why says its type, never the value, which may be of a user.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

A_SECOND_HAS: Mapping[str, int] = {"s": 1, "ms": 1000, "us": 10**6, "ns": 10**9}
EPOCH, A_MS = datetime(1970, 1, 1, tzinfo=UTC), timedelta(milliseconds=1)
_LONGEST_NUMBER = 40  # characters
_NAMES: Mapping[type, str] = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    Decimal: "a number",
    dict: "an object",
    list: "a list",
    bytes: "bytes",
    datetime: "a time",
    date: "a date",
    timedelta: "a duration",
    type(None): "nothing",
}

Convert = Callable[[Any], Any]


class Unfit(ValueError):
    """A value is not of the kind that is wanted; the text says which kind that is."""


def name_of(value: object) -> str:
    """The type of a value in words."""
    return next((name for kind, name in _NAMES.items() if type(value) is kind), type(value).__name__)


def text_of(value: Any) -> str:
    """Text as it is; whole numbers and UUIDs as they are written."""
    if isinstance(value, str):
        return value
    if (isinstance(value, int) and not isinstance(value, bool)) or isinstance(value, UUID):
        return str(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise Unfit("text in UTF-8") from None
    raise Unfit("text or a whole number")


def texts_of(value: Any) -> tuple[str, ...]:
    """A list of texts, or one."""
    return tuple(text_of(each) for each in value) if isinstance(value, list | tuple) else (text_of(value),)


def numbers_of(value: Any) -> tuple[float, ...]:
    """A list of numbers; what is in it is not told one by one, there may be a thousand."""
    if not isinstance(value, list | tuple):
        raise Unfit("a list of numbers")
    try:
        return tuple(map(_as_float, value))
    except Unfit:
        raise Unfit("a list of finite numbers") from None


def truth_of(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if value in (0, 1) and isinstance(value, int):
        return bool(value)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise Unfit("true or false")


def number_of(value: Any) -> int | float:
    """A finite number; a float only where it has to be one."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float | Decimal):
        number = float(value)
    elif isinstance(value, str) and len(value) <= _LONGEST_NUMBER:
        try:
            number = int(value) if value.strip("-").isdigit() and value.isascii() else float(value)
        except ValueError:
            raise Unfit("a number") from None
    else:
        raise Unfit("a number")
    if not math.isfinite(number):
        raise Unfit("a finite number")
    return number


def time_ms_in(unit: str) -> Convert:
    """What makes milliseconds since 1970 of a time in this unit, or in ISO 8601; of Avro's times whatever the unit."""

    def convert(value: Any) -> int:
        if isinstance(value, date):  # a datetime is one
            return _ms_of(value)
        if unit == "iso":
            return _ms_of(_moment(value))
        number = number_of(value)
        if isinstance(number, int):
            return number * 1000 // A_SECOND_HAS[unit]
        return math.floor(number * 1000 / A_SECOND_HAS[unit])

    return convert


def seconds_in(unit: str) -> Convert:
    """What makes seconds of a duration in this unit; of Avro's and Protobuf's durations whatever the unit."""

    parts = A_SECOND_HAS[unit]

    def convert(value: Any) -> float:
        if type(value) is int:  # most are
            return value / parts
        if isinstance(value, timedelta):
            return value.total_seconds()
        return _as_float(value) / parts

    return convert


def share_in(unit: str) -> Convert:
    """What makes a share of 1 of a fraction or of percent."""
    whole = 100.0 if unit == "percent" else 1.0
    return lambda value: _as_float(value) / whole


def real_of(value: Any) -> float:
    return _as_float(value)


def _as_float(value: Any) -> float:
    try:
        return float(number_of(value))
    except OverflowError:
        raise Unfit("a finite number") from None


def _moment(value: Any) -> datetime:
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value)
        except ValueError:
            pass
    raise Unfit("a time in ISO 8601")


def _ms_of(moment: date) -> int:
    """Without a zone it is UTC."""
    at = moment if isinstance(moment, datetime) else datetime.combine(moment, time())
    return ((at if at.tzinfo else at.replace(tzinfo=UTC)) - EPOCH) // A_MS
