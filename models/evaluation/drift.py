"""The distance of scores and rows from where a release began.

A release is judged before it goes live. What makes it wrong afterwards comes slowly and shows in no single answer:
other users, a producer that leaves a field out, rows that learn away from their tower. So recent scores are compared
with the first ones of the release, by the population stability index (below 0.1 nothing has happened, above 0.25 it is
another distribution) and by the shift of their mean in standard deviations. Pure; the cost of a batch is that of
sorting its scores into `BINS` bins, whatever the size of the catalogue.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.arrays import Doubles, Floats, Rows

BINS = 10  # with equal shares of the first scores
LEAST_SHARE = 1e-3  # of a bin: an empty one would make the index infinite


class Drift(NamedTuple):
    psi: float
    shift: float  # of the mean, in standard deviations of the first scores


class ScoreDrift:
    """Compares recent scores with the first `first` ones; `recent`: how many of them count, older ones fading."""

    def __init__(self, first: int, recent: int) -> None:
        self._first: list[Doubles] = []
        self._missing = first
        self._edges = np.zeros(0)
        self._shares = np.zeros(0)
        self._mean, self._deviation = 0.0, 1.0
        self._counts = np.zeros(BINS)
        self._recent = FadingMean(recent)

    def observe(self, scores: npt.ArrayLike) -> None:
        """Some more scores, in the order of time; what is not finite says nothing."""
        values = np.asarray(scores, np.float64)
        values = values[np.isfinite(values)]
        if self._missing > 0:
            self._first.append(values[: self._missing])
            self._missing -= len(self._first[-1])
            if self._missing <= 0:
                self._begin(np.concatenate(self._first))
        elif len(values):
            kept = self._recent.observe(values)
            self._counts = kept * self._counts + np.bincount(self._bins(values), minlength=BINS)

    def compared(self) -> Drift | None:
        """None until half as many scores as count have been seen after the first ones."""
        mean = self._recent.value
        if mean is None or self._recent.weight * self._recent.fading < 0.5 * (1 - np.exp(-1)):
            return None
        recent = np.maximum(self._counts / self._recent.weight, LEAST_SHARE)
        psi = float(np.sum((recent - self._shares) * np.log(recent / self._shares)))
        return Drift(psi, (mean - self._mean) / self._deviation)

    def _begin(self, first: Doubles) -> None:
        """Bins that hold equal shares of the first scores; of scores that are often equal, as nearly as can be."""
        self._edges = np.quantile(first, np.linspace(0, 1, BINS + 1)[1:-1])
        counts = np.bincount(self._bins(first), minlength=BINS)
        self._shares = np.maximum(counts / len(first), LEAST_SHARE)
        self._mean, self._deviation = float(first.mean()), max(float(first.std()), 1e-9)
        self._first.clear()

    def _bins(self, values: Doubles) -> Rows:
        return np.searchsorted(self._edges, values, side="right").astype(np.int64)


class FadingMean:
    """The mean of values of which the last `recent` count, older ones fading."""

    def __init__(self, recent: int) -> None:
        self.fading = 1.0 / recent
        self.weight, self._sum = 0.0, 0.0

    def observe(self, values: npt.NDArray[np.floating]) -> float:
        """Return how much of the earlier ones is left."""
        kept = (1 - self.fading) ** len(values)
        self.weight, self._sum = kept * self.weight + len(values), kept * self._sum + float(values.sum())
        return kept

    @property
    def value(self) -> float | None:
        return self._sum / self.weight if self.weight else None


def turned_and_grown(rows: Floats, released: Floats) -> tuple[Floats, Floats]:
    """Compare rows [R, D] with themselves as released [R, D]: 1 - cosine [R], and norm over norm [R]. Rows of zeros
    have no direction: they have neither turned nor grown."""
    now, before = np.linalg.norm(rows, axis=1), np.linalg.norm(released, axis=1)
    known = (now > 0) & (before > 0)
    both = np.where(known, now * before, 1)
    turned = np.where(known, 1 - np.einsum("rd,rd->r", rows, released) / both, 0)
    grown = np.where(known, now / np.where(before > 0, before, 1), 1)
    return turned.astype(np.float32), grown.astype(np.float32)
