"""A request's own filter: a small language with one meaning on the catalogue and in Milvus.

    channel in ["cats", "dogs"] and 60 < duration_s < 600 and not ("politics" in topics)

    channel, language       ==, !=, in, not in; names in quotes, lists in brackets
    topics                  "name" in topics, "name" not in topics
    duration_s              ==, !=, <, <=, >, >= with a number, rounded to a float32 as durations are stored
    published_ms            the same with a whole number
    and, or, not, ()

**A comparison with an unknown value is false, also `!=` and `not in`**; so is every comparison with an item that the
catalogue does not know. `not` turns it round: `not (channel == "a")` is true for an item without a channel,
`channel != "a"` is not. So there are two truth values only, and Milvus, which holds "" and -1 for what is unknown
(indexer/item_attributes.py), gives the same set of items. How a text is read:
models/catalogue/filter_syntax.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from models.arrays import Array, Flags, Rows
from models.catalogue.catalogue import CHANNEL, TOPICS, Catalogue

LANGUAGE, DURATION, PUBLISHED = "language", "duration_s", "published_ms"
NUMBERS = (DURATION, PUBLISHED)
FIELDS = (CHANNEL, TOPICS, LANGUAGE, *NUMBERS)  # as they are called in a filter and in Milvus

LONGEST_NAME = 256  # characters of a channel, a topic, a language
MOST_TOPICS = 32  # of one item: the first so many count
LATEST_MS = 2**53 - 1  # later ones are no exact float64, as the catalogue holds them, and are unknown

_UNWRITABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")  # control characters, halves of surrogate pairs
_COMPARE: Mapping[str, np.ufunc] = {
    "==": np.equal,
    "!=": np.not_equal,
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
}


@dataclass(frozen=True)
class IsOneOf:
    """The item's channel or language is one of these names; for topics: one of its topics is."""

    field: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class IsKnown:
    """The item has a channel, a language, a topic."""

    field: str


@dataclass(frozen=True)
class Compared:
    """The number is known and compares so: `sign` is one of ==, !=, <, <=, >, >=."""

    field: str
    sign: str
    number: float  # a float32 for durations, an int from -1 to 2**53 for times


@dataclass(frozen=True)
class Not:
    term: Term


@dataclass(frozen=True)
class AllOf:
    terms: tuple[Term, ...]


@dataclass(frozen=True)
class AnyOf:
    terms: tuple[Term, ...]


Term: TypeAlias = "IsOneOf | IsKnown | Compared | Not | AllOf | AnyOf"


@dataclass(frozen=True)
class ItemFilter:
    """Filters of the same terms are equal, however they were written."""

    term: Term
    text: str = field(compare=False)

    def mask(self, catalogue: Catalogue, rows: Rows) -> Flags:
        """bool [N]: which of the catalogue's rows int64 [N] pass; -1 is an item that it does not know."""
        return _mask(self.term, catalogue, {name: _column(name, catalogue, rows) for name in _fields(self.term)})


def can_be_named(name: str) -> bool:
    """Return whether a filter can name this channel, topic or language."""
    return 0 < len(name) <= LONGEST_NAME and _UNWRITABLE.search(name) is None


def _fields(term: Term) -> set[str]:
    match term:
        case AllOf(terms) | AnyOf(terms):
            return set().union(*map(_fields, terms))
        case Not(inner):
            return _fields(inner)
    return {term.field}


def _column(name: str, catalogue: Catalogue, rows: Rows) -> Array:
    """Codes [N, T], 0 for none, or numbers [N], NaN for unknown."""
    match name:
        case "channel":
            return catalogue.channel_codes(rows)[:, None]
        case "language":
            return catalogue.language_codes(rows)[:, None]
        case "topics":
            return _topic_codes(catalogue, rows)
        case "duration_s":
            return catalogue.duration_s(rows)
    published_ms = catalogue.published_ms(rows)
    return np.where(published_ms <= LATEST_MS, published_ms, np.nan)


def _topic_codes(catalogue: Catalogue, rows: Rows) -> npt.NDArray[np.int32]:
    """int32 [N, T]: few items have many topics, so T grows only as far as it must."""
    most = 4
    while (codes := catalogue.topics_at(rows, most))[:, -1].any() and most < MOST_TOPICS:
        most *= 2
    return codes


def _mask(term: Term, catalogue: Catalogue, columns: Mapping[str, Array]) -> Flags:
    match term:
        case Not(negated):
            return ~_mask(negated, catalogue, columns)
        case AllOf(terms):
            return _reduced(np.logical_and, terms, catalogue, columns)
        case AnyOf(terms):
            return _reduced(np.logical_or, terms, catalogue, columns)
    return _compared(term, catalogue, columns[term.field])


def _reduced(join: np.ufunc, terms: Iterable[Term], catalogue: Catalogue, columns: Mapping[str, Array]) -> Flags:
    mask: Flags = reduce(join, (_mask(term, catalogue, columns) for term in terms))
    return mask


def _compared(term: IsOneOf | IsKnown | Compared, catalogue: Catalogue, column: Array) -> Flags:
    passes: Flags
    match term:
        case Compared(_, sign, number):
            passes = (column >= 0) & _COMPARE[sign](column, number)
        case IsKnown():
            passes = column[:, 0] > 0
        case IsOneOf(name, names):
            passes = np.logical_or.reduce(np.isin(column, _codes(catalogue, name, names)), axis=1)
    return passes


def _codes(catalogue: Catalogue, name: str, names: Iterable[str]) -> list[int]:
    """The codes of those names that any item has had."""
    code_of = catalogue.code_of_language if name == LANGUAGE else partial(catalogue.code_of_id, name)
    return [code for known in names if (code := code_of(known))]
