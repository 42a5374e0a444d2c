"""A request's filter as Milvus reads it: a boolean expression that is true for the same items as ItemFilter.mask.

What is unknown stands in Milvus as "" or -1 (indexer/item_attributes.py), so each comparison says that the value is
known. Names are JSON strings: the language refuses what JSON would write as \\u or \\b, which Milvus Lite
cannot read.
"""

from __future__ import annotations

import json

from indexer.item_attributes import topic_mark
from models.catalogue.catalogue import TOPICS
from models.catalogue.item_filter import AllOf, AnyOf, Compared, IsKnown, IsOneOf, ItemFilter, Not, Term


def to_milvus(item_filter: ItemFilter) -> str:
    return _expression(item_filter.term)


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
