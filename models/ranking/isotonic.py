"""Isotonic calibration of the ranker: a rising map from the seconds that it says to those that were watched.

Weights as the paper's order well and do not promise seconds where many impressions are watched. A map that is fitted
on impressions which the networks have not seen does, and changes no order (Zadrozny and Elkan, KDD 2002).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression

from models.arrays import Doubles

BINS = 50  # of equally many impressions: one alone, which may have been left running, makes no step
LEAST_S = 1e-3


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
    said_s = np.maximum(said_s, LEAST_S)
    edges = np.unique(np.quantile(said_s, np.linspace(0, 1, BINS + 1)[1:-1]))
    bin_of = np.unique(np.searchsorted(edges, said_s, side="right"), return_inverse=True)[1].reshape(-1)
    sizes = np.bincount(bin_of).astype(np.float64)
    said, watched = (np.bincount(bin_of, values) for values in (said_s, watched_s))
    rising = isotonic_regression(np.maximum(watched / sizes, LEAST_S), weights=sizes).x
    starts = np.flatnonzero(np.r_[True, np.diff(rising) > 0])  # bins of one value are one point
    points = np.add.reduceat(said, starts) / np.add.reduceat(sizes, starts)
    return Isotonic(points, rising[starts])
