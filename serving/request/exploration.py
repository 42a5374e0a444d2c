"""Gives some places of a list to candidates that would not be in it, each with a probability that is known.

A ranker that learns from its own lists knows only the top of them; what is drawn shows it the rest. For that to be
usable afterwards (what would another order have brought?) the probability on record must be the true one: that of this
candidate in this place over all seeds, not one that depends on what else was drawn. Drawing one after the other without
replacement has no such number in closed form. Systematic sampling has: lay the chances end to end, put down a comb with
teeth one apart at a random offset, and take what each tooth meets. Each candidate is met with exactly its chance, none
twice, and their number is the expected one, rounded up or down. Candidates of one group lie side by side and their
chances sum to at most one, so no group is met twice: a cap per channel holds whatever is drawn.

The places are drawn evenly among those that are open, not always the last ones: what stands low is often not looked at,
and a candidate that is only ever shown there looks worse than it is.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Doubles = NDArray[np.float64]


class Draws(NamedTuple):
    """M candidates (rows), the place of each in the list (from 0), and the probability of each to be in that place;
    `pool` [Q]: all that could have been drawn, and `chance` of each open place to be drawn."""

    rows: Rows
    places: Rows
    probabilities: Doubles
    pool: Rows
    chance: float


NOTHING = Draws(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64), 0.0)


def seed_of(request_id: str, seed: int) -> int:
    """The same request draws the same list on every machine, as long as what is known of its candidates is the same."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{request_id}".encode(), digest_size=8).digest(), "little")


def draw(
    pool: Rows,
    groups: NDArray[np.integer[Any]],
    weights: NDArray[Any],
    *,
    places: Rows,
    expected: float,
    seed: int,
) -> Draws:
    """Draw about `expected` of the pool [Q] into the open places [L]; at most one of a group, 0: of no group."""
    if not len(pool) or not len(places):
        return NOTHING
    rng = np.random.default_rng(seed)
    _, group = np.unique(np.where(groups > 0, groups, -1 - np.arange(len(pool))), return_inverse=True)
    chances = chances_of(weights, group, min(expected, len(places)))
    met = comb(chances, group, rng)
    at = rng.permutation(places)[: len(met)]
    return Draws(pool[met], at, chances[met] / len(places), pool, min(1.0, float(chances.sum()) / len(places)))


def chances_of(weights: NDArray[Any], group: Rows, expected: float) -> Doubles:
    """float64 [Q]: the chance of each to be drawn, by weight; at most 1 in a group, so the sum may fall short of
    `expected`. Without any weight all are equal."""
    weights = np.maximum(np.nan_to_num(np.asarray(weights, np.float64), posinf=0.0), 0.0)
    weights = weights if 0 < weights.sum() < np.inf else np.ones(len(weights))
    chances = expected * (weights / weights.sum())
    together = np.maximum(np.bincount(group, chances), 1.0)
    return np.asarray(chances / together[group])


def comb(chances: Doubles, group: Rows, rng: np.random.Generator) -> Rows:
    """Rows of those that are met: each with its chance, of a group at most one."""
    by_group = np.argsort(rng.permutation(int(group.max()) + 1)[group], kind="stable")
    ends = np.cumsum(chances[by_group])
    teeth = rng.random() + np.arange(np.ceil(ends[-1]))
    return np.asarray(by_group[np.searchsorted(ends, teeth[teeth < ends[-1]], side="right")])
