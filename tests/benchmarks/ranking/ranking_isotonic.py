"""Isotonic calibration of expected seconds: the monotone map onto the seconds that were watched, of earlier days."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression

from models.arrays import Doubles

BINS = 50  # of equally many impressions: one alone, which may have been left running, makes no step
LEAST_S = 1e-3


@dataclass(frozen=True)
class Isotonic:
    """points and values float64 [P], both strictly rising: what was expected and what was watched, in the mean."""

    points: Doubles
    values: Doubles

    def __call__(self, expected_s: Doubles) -> Doubles:
        """Between two points interpolated, beyond the ends by their factor: strictly rising, so no order changes."""
        first, last = self.values[0] / self.points[0], self.values[-1] / self.points[-1]
        inner = np.interp(expected_s, self.points, self.values)
        inner = np.where(expected_s < self.points[0], expected_s * first, inner)
        return np.where(expected_s > self.points[-1], expected_s * last, inner)


def fitted(expected_s: Doubles, watched_s: Doubles) -> Isotonic:
    """By pool adjacent violators over BINS bins of the expectation; float64 [N] each."""
    parts = np.array_split(np.argsort(expected_s, kind="stable"), min(BINS, len(expected_s)))
    points, watched = (np.array([values[part].mean() for part in parts]) for values in (expected_s, watched_s))
    sizes = np.array([len(part) for part in parts], np.float64)
    found = isotonic_regression(watched, weights=sizes)
    starts = found.blocks[:-1]
    pooled = np.add.reduceat(points * sizes, starts) / np.add.reduceat(sizes, starts)
    return Isotonic(np.maximum(pooled, LEAST_S), np.maximum(found.x[starts], LEAST_S))
