"""The declaration of a feature of the ranker, beside the function that computes it.

A feature has a kind (one id, several ids, a number), a scope (of the query: once per request; of the impression: per
candidate), an id space, and in its docstring the paper's section or the reason. It is a function of a RankingBatch and
of nothing else, so it can only know what was known then. Missing is NaN, and stays a value of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from models.ranking.ranking_batch import RankingBatch

Scope = Literal["query", "impression"]
Compute: TypeAlias = Callable[[RankingBatch], Any]


@dataclass(frozen=True)
class Feature:
    """`space` of ids: those of one space share an embedding (paper section 4.1). `many`: averaged."""

    name: str
    scope: Scope
    compute: Compute
    space: str | None = None
    many: bool = False

    @property
    def is_number(self) -> bool:
        return self.space is None

    @property
    def kind(self) -> str:
        return "continuous" if self.is_number else "multivalent id" if self.many else "univalent id"


DECLARED: list[Feature] = []


def number(scope: Scope) -> Callable[[Compute], Compute]:
    """Declare a continuous feature: [B] for a query, [N] for an impression, NaN for missing."""
    return _declare(scope, None, many=False)


def ids(scope: Scope, space: str, *, many: bool = False) -> Callable[[Compute], Compute]:
    """Declare a feature of ids: Codes with codes [B] or [N], and one axis more where there are `many`."""
    return _declare(scope, space, many=many)


def _declare(scope: Scope, space: str | None, *, many: bool) -> Callable[[Compute], Compute]:
    def declare(compute: Compute) -> Compute:
        DECLARED.append(Feature(compute.__name__, scope, compute, space, many))
        return compute

    return declare
