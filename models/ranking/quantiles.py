"""Continuous features to [0, 1) by the training data's quantiles (paper section 4.1), the table frozen into the bundle.

Between two points of the table the value is interpolated, equal values share the middle of their ranks, and what is
missing stays missing (NaN) instead of passing for a small number: the network has an input of its own for it.
"""

from __future__ import annotations

import numpy as np

from models.arrays import Doubles, Floats

POINTS = 1000


class Quantiles:
    """`points` and `ranks` float32 [F, P]: values in ascending order and the share of training values below them.

    A feature without any training value has a row of NaN and counts as missing wherever it is served.
    """

    def __init__(self, points: Floats, ranks: Floats) -> None:
        self.points = points
        self.ranks = ranks
        self._tables = [_distinct(*pair) for pair in zip(points, ranks, strict=True)]

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
