"""An item's attributes beside its vector in Milvus, and a request's filter as a boolean expression on them.

They say what models.catalogue.catalogue says, so that a filter finds the same items on both sides
(models/catalogue/item_filter.py): durations are float32, a duration of 0 is an unknown one, an item has its first 32
distinct topics. What a filter cannot name (a channel of 10,000 characters) is one fixed name here that no filter can
name either: it is not missing, and it is not equal to anything.

The topics are one text, "|news|sport|", searched with LIKE. Milvus Lite looks through an ARRAY row by row in Python: a
top-500 search among 10,000 items took 26 ms without a filter, 20 with LIKE, 166 with array_contains.
A Milvus server finds the middle of a text from version 2.4 on.

An expression is true for the same items as ItemFilter.mask. What is unknown stands in Milvus as "" or -1, so each
comparison says that the value is known. Names are JSON strings: the language refuses what JSON would write as \\u or
\\b, which Milvus Lite does not read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from pymilvus import DataType

from models.catalogue.catalogue import CHANNEL, TOPICS
from models.catalogue.item_filter import (
    DURATION,
    LANGUAGE,
    LATEST_MS,
    LONGEST_NAME,
    MOST_TOPICS,
    PUBLISHED,
    AllOf,
    AnyOf,
    Compared,
    IsKnown,
    IsOneOf,
    ItemFilter,
    Not,
    Term,
    can_be_named,
)
from streams.messages import Item

AVAILABLE = "available"
_BYTES = 4 * LONGEST_NAME  # Milvus counts the bytes of UTF-8
_UNNAMED = "\x01"
_ESCAPED = str.maketrans({"!": "!!", "|": "!i", "%": "!p", "_": "!u", "\\": "!b"})


class ItemAttributes(NamedTuple):
    """ "" and () for none, -1 for unknown."""

    channel: str = ""
    topics: tuple[str, ...] = ()
    language: str = ""
    duration_s: float = -1.0
    published_ms: int = -1
    available: bool = True


UNKNOWN = ItemAttributes()  # an item that the catalogue does not know is not taken down


class AttributeTable:
    """The newest attributes of each item of the catalogue. Equal names and equal lists of topics are one object."""

    def __init__(self) -> None:
        self._of: dict[str, ItemAttributes] = {}
        self._same: dict[Any, Any] = {}

    def __len__(self) -> int:
        return len(self._of)

    def of(self, item_id: str) -> ItemAttributes:
        """UNKNOWN for an item that the catalogue does not know."""
        return self._of.get(item_id, UNKNOWN)

    def set(self, item_id: str, attributes: ItemAttributes) -> bool:
        """Return whether it is something new."""
        if attributes == self.of(item_id):
            return False
        channel, topics, language = (self._same.setdefault(value, value) for value in attributes[:3])
        self._of[item_id] = attributes._replace(channel=channel, topics=topics, language=language)
        return True

    def forget(self, item_id: str) -> None:
        """The item is no longer in the catalogue, or is unavailable; its return brings its attributes with it."""
        self._of.pop(item_id, None)


def add_fields(schema: Any) -> None:
    """Add the fields of ItemAttributes to a pymilvus schema."""
    schema.add_field(CHANNEL, DataType.VARCHAR, max_length=_BYTES)
    schema.add_field(TOPICS, DataType.VARCHAR, max_length=1 + MOST_TOPICS * (_BYTES + 1))
    schema.add_field(LANGUAGE, DataType.VARCHAR, max_length=_BYTES)
    schema.add_field(DURATION, DataType.FLOAT)
    schema.add_field(PUBLISHED, DataType.INT64)
    schema.add_field(AVAILABLE, DataType.BOOL)


def attributes_of(item: Item) -> ItemAttributes:
    """Return what Milvus holds of a catalogue entry."""
    published_ms = -1 if item.published_ms is None or item.published_ms > LATEST_MS else item.published_ms
    return ItemAttributes(
        _name(item.channel or ""),
        _topics(item.topics),
        _name(item.language or ""),
        float(np.float32(item.duration_s or -1.0)),
        published_ms,
        item.available,
    )


def as_row(attributes: ItemAttributes) -> dict[str, Any]:
    """A row's part for pymilvus, by field."""
    return attributes._asdict() | {TOPICS: "".join(map(topic_mark, attributes.topics)).replace("||", "|")}


def topic_mark(topic: str) -> str:
    """The part of the text of an item's topics that says that this is one of them, without LIKE's own characters."""
    return f"|{topic.translate(_ESCAPED)}|"


def to_milvus(item_filter: ItemFilter) -> str:
    return _expression(item_filter.term)


def _topics(topics: Iterable[str]) -> tuple[str, ...]:
    first = tuple(dict.fromkeys(topic for topic in topics if topic))[:MOST_TOPICS]
    return tuple(dict.fromkeys(_name(topic) for topic in first))


def _name(name: str) -> str:
    return name if not name or can_be_named(name) else _UNNAMED


def _expression(term: Term) -> str:
    match term:
        case Not(negated):
            return f"not ({_expression(negated)})"
        case AllOf(terms):
            return f"({' and '.join(map(_expression, terms))})"
        case AnyOf(terms):
            return f"({' or '.join(map(_expression, terms))})"
    return _comparison(term)


def _comparison(term: IsOneOf | IsKnown | Compared) -> str:
    match term:
        case Compared(name, sign, number):
            return f"({name} >= 0 and {name} {sign} {number!r})"
        case IsKnown(name):
            return f'{name} != ""'
        case IsOneOf(name, names) if name != TOPICS:
            return f"{name} in {_json(names)}"
    return f"({' or '.join(_has_topic(topic) for topic in term.names)})"


def _has_topic(topic: str) -> str:
    return f"{TOPICS} like {_json(f'%{topic_mark(topic)}%')}"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
