"""Continuous features to [0, 1) by the training data's quantiles (paper section 4.1), the table frozen into the bundle.

Between two points of the table the value is interpolated, equal values share the middle of their ranks, and what is
missing says so by a flag of its own instead of passing for a small number.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

POINTS = 256
INPUTS = 4  # x, x^2, sqrt(x), and the missing flag


class Quantiles:
    """`points` and `ranks` float32 [F, P]: values in ascending order and the share of training values below them.

    A feature without any training value has a row of NaN and counts as missing wherever it is served.
    """

    def __init__(self, points: Floats, ranks: Floats) -> None:
        self.points = points
        self.ranks = ranks

    @property
    def width(self) -> int:
        """How many inputs `encode` makes."""
        return INPUTS * len(self.points)

    def encode(self, features: Floats) -> Floats:
        """float32 [N, F], NaN for missing -> float32 [N, 4 F]: x, x^2, sqrt(x) and 1 for missing (then all three 0)."""
        missing = ~np.isfinite(features) | np.isnan(self.points[:, 0])  # [N, F]
        x = np.zeros(features.shape, np.float32)  # [N, F]
        for f in range(features.shape[1]):
            there = ~missing[:, f]
            x[there, f] = np.interp(features[there, f], self.points[f], self.ranks[f])
        return np.concatenate([x, x * x, np.sqrt(x), missing.astype(np.float32)], axis=1)


def fit_quantiles(features: Floats, points: int = POINTS) -> Quantiles:
    """The table of training features float32 [N, F], NaN for missing."""
    table = [_fit_one(column[np.isfinite(column)], points) for column in features.T]
    return Quantiles(np.stack([values for values, _ in table]), np.stack([ranks for _, ranks in table]))


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
