"""The declaration of a feature of the ranker, beside the function that computes it.

A feature has a kind (one id, several ids, a number), a scope (of the query: once per request; of the impression: per
candidate), an id space, and in its docstring the paper's section or the reason. It is a function of a RankingBatch and
of nothing else, so it can only know what was known then. Missing is NaN, and stays a value of its own.

Some features of the impression are of its item alone (`of_item`): they read the catalogue, the statistics and the
moment that these stand for, nothing of who asks, and so can be computed once for many requests.
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
    """`space` of ids: those of one space share an embedding (paper section 4.1). `many`: averaged. `of_item`: whoever
    asks, it is the same."""

    name: str
    scope: Scope
    compute: Compute
    space: str | None = None
    many: bool = False
    of_item: bool = False

    @property
    def is_number(self) -> bool:
        return self.space is None

    def is_among(self, scope: Scope, of_item: bool | None = None) -> bool:
        """True for a feature of the scope. `of_item`: of its item alone, or not; None: either."""
        return self.scope == scope and of_item in (None, self.of_item)

    @property
    def kind(self) -> str:
        return "continuous" if self.is_number else "multivalent id" if self.many else "univalent id"


DECLARED: list[Feature] = []


def number(scope: Scope, *, of_item: bool = False) -> Callable[[Compute], Compute]:
    """Declare a continuous feature: [B] for a query, [N] for an impression, NaN for missing."""
    return _declare(scope, None, many=False, of_item=of_item)


def ids(scope: Scope, space: str, *, many: bool = False, of_item: bool = False) -> Callable[[Compute], Compute]:
    """Declare a feature of ids: Codes with codes [B] or [N], and one axis more where there are `many`."""
    return _declare(scope, space, many=many, of_item=of_item)


def _declare(scope: Scope, space: str | None, *, many: bool, of_item: bool) -> Callable[[Compute], Compute]:
    def declare(compute: Compute) -> Compute:
        DECLARED.append(Feature(compute.__name__, scope, compute, space, many, of_item))
        return compute

    return declare
