"""Ratios of sums over users with their errors, and differences of two rankers on the same impressions.

A user's impressions share their luck, so users are drawn, not impressions (bootstrap, seeded); two rankers are compared
on the same draws, so that what they share cancels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.arrays import Doubles, Rows

RESAMPLES = 1000


@dataclass(frozen=True)
class Ratio:
    """above and below float64 [U]: each user's part of the two sums. `scale`: of the error, 2 for shares of pairs, in
    which each pair stands in the sums of both its rows."""

    above: Doubles
    below: Doubles
    scale: float = 1.0

    @property
    def value(self) -> float:
        total = self.below.sum()
        return float(self.above.sum() / total) if total else float("nan")

    @property
    def users(self) -> int:
        """How many have a part in it."""
        return int(np.count_nonzero(self.below))


@dataclass(frozen=True)
class Compared:
    """A value or a difference and its standard error; 95 % of the draws lie between `low` and `high`."""

    value: float
    se: float
    low: float
    high: float

    @property
    def is_significant(self) -> bool:
        """Of a difference: 0 is not in the interval."""
        return self.low > 0 or self.high < 0


class Totals:
    """Sums by user, of U users."""

    def __init__(self, users: int) -> None:
        self._users = users

    def ratio(self, user: Rows, above: Doubles, below: Doubles, scale: float = 1.0) -> Ratio:
        """user int64 [N]: whose part each is."""
        sums = [np.bincount(user, np.asarray(part, np.float64), minlength=self._users) for part in (above, below)]
        return Ratio(sums[0].astype(np.float64), sums[1].astype(np.float64), scale)


def estimate(ratio: Ratio, seed: int = 0) -> Compared:
    return _summed_up(ratio.value, _draws(ratio, seed) - ratio.value, ratio.scale)


def difference(ours: Ratio, theirs: Ratio, seed: int = 0) -> Compared:
    """Ours minus theirs, on the same users. Raises ValueError when they are not of the same users."""
    if len(ours.below) != len(theirs.below):
        raise ValueError(f"{len(ours.below)} users are not the same as {len(theirs.below)}")
    value = ours.value - theirs.value
    return _summed_up(value, _draws(ours, seed) - _draws(theirs, seed) - value, ours.scale)


def _draws(ratio: Ratio, seed: int) -> Doubles:
    """[R]: the ratio over users drawn with replacement."""
    rng = np.random.default_rng(seed)
    size = len(ratio.below)
    found = np.empty(RESAMPLES)
    for draw in range(RESAMPLES):
        times = np.bincount(rng.integers(0, size, size), minlength=size) if size else np.zeros(0)
        below = times @ ratio.below
        found[draw] = times @ ratio.above / below if below else np.nan
    return found


def _summed_up(value: float, away: Doubles, scale: float) -> Compared:
    known = away[np.isfinite(away)] * scale
    if not len(known):
        return Compared(value, float("nan"), float("nan"), float("nan"))
    low, high = np.quantile(known, (0.025, 0.975))
    return Compared(value, float(known.std()), value + float(low), value + float(high))
