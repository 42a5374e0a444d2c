"""A request's filter from its text: parsed by Python's own parser and never run.

What is not on the list in models/catalogue/item_filter.py is refused with the reason and the place, and so is what is
too long, too deep or too much, before it costs anything.
"""

from __future__ import annotations

import ast
import math
import re
from functools import lru_cache

import numpy as np

from models.catalogue.catalogue import CHANNEL, TOPICS
from models.catalogue.item_filter import (
    DURATION,
    FIELDS,
    LANGUAGE,
    LATEST_MS,
    LONGEST_NAME,
    NUMBERS,
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

MOST_CHARACTERS = 4000
DEEPEST = 16
MOST_COMPARISONS = 64
MOST_NAMES = 256  # in one list

_UNREADABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
_ESCAPABLE = "\\\"'xuU"  # Python knows more, and changes its mind about the rest
_LONGEST_DURATION_S = float(np.finfo(np.float32).max)
_SIGN: dict[type[ast.cmpop], str] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}
_INSTEAD = {  # what people write in other languages
    "&": "write and",
    "|": "write or",
    "!": "write not, or != between two sides",
    "=": "write == to compare",
} | dict.fromkeys("\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb", 'write straight quotes: "news"')
_TURNED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


class FilterError(ValueError):
    """A filter cannot be used; the text says at which character (from 1, leading blanks left out), and why."""


class _Wrong(Exception):
    def __init__(self, node: ast.expr, reason: str) -> None:
        super().__init__(reason)
        self.node = node


@lru_cache(maxsize=256)
def parse_filter(text: str) -> ItemFilter:
    """Raises FilterError."""
    if len(text) > MOST_CHARACTERS:
        raise FilterError(f"filter: {len(text):,} characters, at most {MOST_CHARACTERS:,} are read")
    text = text.strip()
    if not text:
        raise FilterError("filter: is empty; leave it out to filter nothing")
    if bad := _UNREADABLE.search(text):
        raise _at(text, bad.start(), "a control character")
    for escape in re.finditer(r"\\(.?)", text, re.DOTALL):
        if escape[1] not in _ESCAPABLE:
            raise _at(text, escape.start(), "a backslash in a name is written twice")
    return ItemFilter(_read(text), text)


def _read(text: str) -> Term:
    try:
        tree = ast.parse(text, mode="eval").body
        _check_size(tree)
        return _term(tree)
    except _Wrong as wrong:
        node = wrong.node
        before = text.split("\n")[node.lineno - 1].encode()[: node.col_offset]  # Python counts the bytes of UTF-8
        raise _at(text, _start(text, node.lineno) + len(before.decode(errors="ignore")), str(wrong)) from None
    except SyntaxError as error:
        raise _misspelt(text, error) from None
    except (ValueError, RecursionError, MemoryError):  # all else that Python's parser gives up with
        raise FilterError("filter: cannot be read, it is nested too deep") from None


def _misspelt(text: str, error: SyntaxError) -> FilterError:
    """Python gives no offset where the text ends too early."""
    if not error.offset:
        return FilterError(f"filter, character {len(text) + 1}, at the end: something is missing after {text[-20:]!r}")
    place = _start(text, error.lineno or 1) + error.offset - 1
    return _at(text, place, _INSTEAD.get(text[place : place + 1], error.msg))


def _start(text: str, line: int) -> int:
    """Return the place where a line, counted from 1, begins."""
    return sum(len(before) + 1 for before in text.split("\n")[: line - 1])


def _at(text: str, place: int, reason: str) -> FilterError:
    place = max(0, min(place, len(text) - 1))
    return FilterError(f"filter, character {place + 1}, at {text[place : place + 20]!r}: {reason}")


def _check_size(tree: ast.expr) -> None:
    comparisons = 0
    for node in ast.walk(tree):
        comparisons += len(node.ops) if isinstance(node, ast.Compare) else 0
        if comparisons > MOST_COMPARISONS:
            raise _Wrong(tree, f"more than {MOST_COMPARISONS} comparisons")


def _term(node: ast.expr, depth: int = 1) -> Term:
    if depth > DEEPEST:
        raise _Wrong(node, f"nested more than {DEEPEST} deep")
    match node:
        case ast.BoolOp(op=ast.And(), values=values):
            return AllOf(tuple(_term(value, depth + 1) for value in values))
        case ast.BoolOp(values=values):
            return AnyOf(tuple(_term(value, depth + 1) for value in values))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return Not(_term(operand, depth + 1))
        case ast.Compare(left=left, ops=ops, comparators=rights):
            pairs = [_pair(*pair) for pair in zip([left, *rights], ops, rights, strict=False)]
            return pairs[0] if len(pairs) == 1 else AllOf(tuple(pairs))
    raise _Wrong(node, "expected a comparison, for example duration_s < 600")


def _pair(left: ast.expr, operator: ast.cmpop, right: ast.expr) -> Term:
    match operator:
        case ast.In():
            return _membership(left, right)
        case ast.NotIn():
            return _known_and_not(_membership(left, right))
    sign = _SIGN.get(type(operator))
    if sign is None:
        raise _Wrong(right, "expected ==, !=, <, <=, >, >=, in or not in before this")
    if isinstance(right, ast.Name) and not isinstance(left, ast.Name):
        return _comparison(right, _TURNED.get(sign, sign), left)
    return _comparison(left, sign, right)


def _comparison(left: ast.expr, sign: str, right: ast.expr) -> Term:
    name = _field(left)
    if name in NUMBERS:
        return Compared(name, sign, _number(right, name))
    if name == TOPICS:
        raise _Wrong(left, 'an item has several topics: write "news" in topics')
    if sign in _TURNED:
        raise _Wrong(left, f"{name} has no order: compare it by ==, !=, in or not in")
    is_one = IsOneOf(name, (_name(right),))
    return is_one if sign == "==" else _known_and_not(is_one)


def _membership(left: ast.expr, right: ast.expr) -> IsOneOf:
    if isinstance(right, ast.Name):
        if _field(right) != TOPICS:
            raise _Wrong(right, f"expected topics or a list in brackets after in, not {right.id}")
        return IsOneOf(TOPICS, (_name(left),))
    name = _field(left)
    if name not in (CHANNEL, LANGUAGE):
        raise _Wrong(left, f"lists are for {CHANNEL} and {LANGUAGE} only")
    if not isinstance(right, ast.List | ast.Tuple) or not 0 < len(right.elts) <= MOST_NAMES:
        raise _Wrong(right, f'expected a list of 1 to {MOST_NAMES} names, for example {name} in ["a", "b"]')
    return IsOneOf(name, tuple(dict.fromkeys(map(_name, right.elts))))


def _known_and_not(term: IsOneOf) -> Term:
    return AllOf((IsKnown(term.field), Not(term)))


def _field(node: ast.expr) -> str:
    known = f"the fields are {', '.join(FIELDS)}"
    if not isinstance(node, ast.Name):
        raise _Wrong(node, f"expected a field on one side and a plain value on the other; {known}")
    if node.id not in FIELDS:
        raise _Wrong(node, f"there is no field {node.id[:80]!r}; {known}")
    return node.id


def _name(node: ast.expr) -> str:
    if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
        raise _Wrong(node, 'expected a name in quotes, for example "news"')
    if not can_be_named(node.value):
        raise _Wrong(node, f"a name has 1 to {LONGEST_NAME} characters, none of them a control character")
    return node.value


def _number(node: ast.expr, name: str) -> float:
    """A float32 for durations, an int for times: beyond -1 and 2**53 there are none, so these stand for the rest."""
    value = _signed(node)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise _Wrong(node, "a whole number is from -2**63 to 2**63 - 1")
    if not math.isfinite(value) or (name == DURATION and abs(value) > _LONGEST_DURATION_S):
        raise _Wrong(node, "the number is too large")
    if name == DURATION:
        return float(np.float32(value)) + 0.0  # no -0.0
    if value != int(value):
        raise _Wrong(node, f"{name} is compared with whole numbers")
    return max(-1, min(int(value), LATEST_MS + 1))


def _signed(node: ast.expr) -> int | float:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant() as operand):
            return -_signed(operand)
    raise _Wrong(node, "expected a number, for example 600")
