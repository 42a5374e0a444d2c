"""Confidence sequences: intervals that hold at every look together, so that an experiment may be looked at, and ended,
at any time.

These are asymptotic ones (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit theory and
asymptotic confidence sequences", Annals of Statistics 2024, Theorem 2.2), by Robbins' normal mixture. A viewer is one
observation: what the lists of one viewer bring is not independent. With a fixed share of the viewers in each variant,
the difference of means is itself a mean of one term per viewer (section 3 there, without covariates), whose variance is
n times s_1^2 / n_1 + s_0^2 / n_0. The mixture's scale rho makes the sequence narrowest about the number of viewers that
was planned for; it holds for any.

Asymptotic means: in the number of viewers at the first look. Below LEAST in a variant nothing is concluded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri

LEAST = 100  # viewers of a variant before anything is said


class Moments(NamedTuple):
    """The number of observations, their mean and variance (with n - 1)."""

    size: int
    mean: float
    variance: float


class Interval(NamedTuple):
    """An estimate and the interval around it; infinite while too little is known."""

    value: float
    low: float
    high: float

    @property
    def says_different(self) -> bool:
        return self.low > 0 or self.high < 0


UNKNOWN = Interval(math.nan, -math.inf, math.inf)


def moments_of(values: Iterable[float]) -> Moments:
    numbers = np.fromiter(values, np.float64)
    size = len(numbers)
    return Moments(size, float(numbers.mean()) if size else 0.0, float(numbers.var(ddof=1)) if size > 1 else 0.0)


def difference(variant: Moments, control: Moments, *, alpha: float, planned: int) -> Interval:
    """The mean of the variant's viewers less the control's, always valid at level 1 - alpha. `planned`: of all viewers
    of the two."""
    if min(variant.size, control.size) < LEAST:
        return UNKNOWN
    error = math.sqrt(variant.variance / variant.size + control.variance / control.size)
    return _around(variant.mean - control.mean, error, variant.size + control.size, alpha, planned)


def mean(of: Moments, *, alpha: float, planned: int) -> Interval:
    """The mean of one sample, always valid at level 1 - alpha."""
    if of.size < LEAST:
        return UNKNOWN
    return _around(of.mean, math.sqrt(of.variance / of.size), of.size, alpha, planned)


def boundary(count: int, alpha: float, planned: int) -> float:
    """How many standard errors the interval is wide to each side after `count` viewers."""
    scaled = count * _squared_scale(alpha) / planned
    return math.sqrt(2 * (scaled + 1) / scaled * math.log(math.sqrt(scaled + 1) / alpha))


def predicted_viewers(
    effect: float,
    variances: tuple[float, float],
    shares: tuple[float, float],
    *,
    alpha: float,
    planned: int | None = None,
    power: float = 0.8,
) -> int:
    """The number of viewers, of the two variants together, by which a difference of `effect` is found with probability
    `power` at least: then the interval of that very look excludes 0. Variances and shares of variant and control;
    `planned` as the interval has it, None: just so many."""
    whole = sum(shares)
    per_viewer = sum(variance * whole / share for variance, share in zip(variances, shares, strict=True))

    def wanted(count: int) -> float:
        """Viewers by which an interval as wide as after `count` excludes 0."""
        widths = boundary(count, alpha, planned or count) + float(ndtri(power))
        return per_viewer * (widths / effect) ** 2

    few, enough = 1, 2 * LEAST
    while wanted(enough) > enough:
        few, enough = enough, 2 * enough
    while (
        enough - few > 1
    ):  # halving: intervals get narrower with each viewer, and taking turns need not come to an end
        half = (few + enough) // 2
        few, enough = (half, enough) if wanted(half) > half else (few, half)
    return max(2 * LEAST, enough)


def _around(value: float, error: float, count: int, alpha: float, planned: int) -> Interval:
    width = error * boundary(count, alpha, planned)
    return Interval(value, value - width, value + width)


def _squared_scale(alpha: float) -> float:
    """rho^2 times the number of observations at which the sequence is narrowest (section B.2 there)."""
    return -2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)
