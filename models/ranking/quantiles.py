"""Continuous features to [0, 1) by the training data's quantiles (paper section 4.1), the table frozen into the bundle.

Between two points of the table the value is interpolated, equal values share the middle of their ranks, and what is
missing stays missing (NaN) instead of passing for a small number: the network has an input of its own for it.

And watch time as a quantile among videos of like duration, and back (duration-based quantiles, D2Q, KDD 2022): a long
video is watched longer whether it is liked or not; what a watch says of the liking is how it compares with other
watches of videos that last as long.

And the seconds that a ranker says as those that were watched, by a rising map over bins of equally many impressions
(isotonic calibration: Zadrozny and Elkan, KDD 2002). Weights as the paper's order well and do not promise seconds where
many impressions are watched; a map that is fitted on impressions which the networks have not seen does, and changes no
order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.arrays import Doubles, Floats, Rows

POINTS = 1000
GROUPS = 20  # of duration; one more for those that are not known
LEVELS = 101
BINS = 50  # of an isotonic map: one impression alone, which may have been left running, makes no step
LEAST_S = 1e-3


class Quantiles:
    """`points` and `ranks` float32 [F, P]: values in ascending order and the share of training values below them.

    A feature without any training value has a row of NaN and counts as missing wherever it is served.
    """

    def __init__(self, points: Floats, ranks: Floats) -> None:
        self.points = points
        self.ranks = ranks
        self._tables = [_distinct(*pair) for pair in zip(points, ranks, strict=True)]

    def of(self, columns: Sequence[int]) -> Quantiles:
        """Those of some features alone."""
        return Quantiles(self.points[columns], self.ranks[columns])

    def encode(self, features: Floats) -> Floats:
        """float32 [N, F] -> the same in [0, 1), NaN where the feature is missing (NaN or infinite)."""
        x = np.empty(features.shape, np.float32)
        for f, (points, ranks) in enumerate(self._tables):
            column = features[:, f]
            x[:, f] = np.interp(column, points, ranks) if len(points) else np.nan
        x[~np.isfinite(features)] = np.nan
        return x


def fit_quantiles(features: Floats, points: int = POINTS) -> Quantiles:
    """The table of training features float32 [N, F], NaN for missing."""
    table = np.zeros((2, features.shape[1], points), np.float32)
    for f, column in enumerate(features.T):
        table[:, f] = _fit_one(column[np.isfinite(column)], points)
    return Quantiles(table[0], table[1])


def _fit_one(values: Floats, points: int) -> tuple[Floats, Floats]:
    if not len(values):
        return np.full(points, np.nan, np.float32), np.zeros(points, np.float32)
    distinct, counts = np.unique(values, return_counts=True)
    ranks = (np.cumsum(counts) - counts / 2) / len(values)  # the middle of each value's ranks, in (0, 1)
    if len(distinct) > points:
        wanted = np.linspace(ranks[0], ranks[-1], points)
        chosen = np.unique(np.searchsorted(ranks, wanted).clip(0, len(ranks) - 1))
        distinct, ranks = distinct[chosen], ranks[chosen]
    short = points - len(distinct)
    padded = np.pad(distinct, (0, short), mode="edge"), np.pad(ranks, (0, short), mode="edge")
    return padded[0].astype(np.float32), padded[1].astype(np.float32)


def _distinct(points: Floats, ranks: Floats) -> tuple[Doubles, Doubles]:
    """The table without its padding, as np.interp wants it."""
    keep = ~np.isnan(points)
    keep[1:] &= points[1:] != points[:-1]
    return points[keep].astype(np.float64), ranks[keep].astype(np.float64)


class WatchQuantiles:
    """edges float32 [G - 1]: durations that part the groups; table float32 [G + 1, P]: watched seconds at evenly spaced
    quantiles of each group, the last group's duration unknown."""

    def __init__(self, edges: Floats, table: Floats) -> None:
        self.edges, self.table = edges, table

    def quantile(self, watch_s: Floats, duration_s: Floats) -> Floats:
        """float32 [N] in [0, 1]; equal seconds share the middle of their quantiles."""
        group = group_of(self.edges, duration_s)
        out = np.empty(len(watch_s), np.float32)
        for g in np.unique(group):
            of = group == g
            low = np.searchsorted(self.table[g], watch_s[of], "left")
            high = np.searchsorted(self.table[g], watch_s[of], "right")
            out[of] = ((low + high) / 2 / len(self.table[g])).clip(0, 1)
        return out

    def seconds(self, quantile: Floats, duration_s: Floats) -> Floats:
        """The reverse: float32 [N]."""
        at = quantile.clip(0, 1) * (self.table.shape[1] - 1)
        low = np.floor(at).astype(np.int64)
        high = np.minimum(low + 1, self.table.shape[1] - 1)
        group = group_of(self.edges, duration_s)
        below, above = self.table[group, low], self.table[group, high]
        # so that rounding leads neither beyond the neighbours nor out of order
        return np.asarray(np.minimum(below + (above - below) * (at - low).astype(np.float32), above), np.float32)


def group_of(edges: Floats, duration_s: Floats) -> Rows:
    """int64 [N]: the group of each duration, the last one for NaN."""
    return np.where(np.isnan(duration_s), len(edges) + 1, np.searchsorted(edges, duration_s)).astype(np.int64)


def fit_watch_quantiles(watch_s: Floats, duration_s: Floats) -> WatchQuantiles:
    """From training examples, float32 [N] each. A group without any takes the table of all."""
    known = duration_s[np.isfinite(duration_s)]
    edges = np.unique(np.quantile(known, np.linspace(0, 1, GROUPS + 1)[1:-1])) if len(known) else np.zeros(0)
    edges = edges.astype(np.float32)
    levels = np.linspace(0, 1, LEVELS)
    group = group_of(edges, duration_s)
    everything = np.quantile(watch_s, levels)
    tables = [
        np.quantile(watch_s[group == g], levels) if (group == g).any() else everything for g in range(len(edges) + 2)
    ]
    return WatchQuantiles(edges, np.stack(tables).astype(np.float32))


@dataclass(frozen=True)
class Isotonic:
    """points and values float64 [P], both strictly rising: seconds as they are said and as they are watched."""

    points: Doubles
    values: Doubles

    def __call__(self, said_s: Doubles) -> Doubles:
        """float64 [N] -> [N]. Between two points interpolated, beyond the ends by their factor: strictly rising."""
        first, last = self.values[0] / self.points[0], self.values[-1] / self.points[-1]
        inner = np.interp(said_s, self.points, self.values)
        inner = np.where(said_s < self.points[0], said_s * first, inner)
        return np.where(said_s > self.points[-1], said_s * last, inner)


def fit_isotonic(said_s: Doubles, watched_s: Doubles) -> Isotonic:
    """The map of impressions, float64 [N] each, N at least 1. Equal seconds stay in one bin."""
    from scipy.optimize import isotonic_regression  # here: a server that reads a map needs none of it

    said_s = np.maximum(said_s, LEAST_S)
    edges = np.unique(np.quantile(said_s, np.linspace(0, 1, BINS + 1)[1:-1]))
    bin_of = np.unique(np.searchsorted(edges, said_s, side="right"), return_inverse=True)[1].reshape(-1)
    sizes = np.bincount(bin_of).astype(np.float64)
    said, watched = (np.bincount(bin_of, values) for values in (said_s, watched_s))
    rising = isotonic_regression(np.maximum(watched / sizes, LEAST_S), weights=sizes).x
    starts = np.flatnonzero(np.r_[True, np.diff(rising) > 0])  # bins of one value are one point
    points = np.add.reduceat(said, starts) / np.add.reduceat(sizes, starts)
    return Isotonic(points, rising[starts])
