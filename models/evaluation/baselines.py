"""Popularity, the baseline that most recommenders lose to on a stream, and what turns any source into a recent one.

Baselines get the same care as the model: their settings are chosen on validation queries by the same walk (`choose`),
never on the test. Each follows the stream in a live walk at the cost of its block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.arrays import Doubles, Floats, Rows
from models.evaluation.backtest import Recommender
from models.evaluation.comparison import Estimate, log_rank
from models.evaluation.eval_queries import EvalQueries, Stream

Setting = dict[str, Any]

PRIOR = 200.0  # watches' worth of the all-time share in a decayed one: it orders the items that nobody watches now


class Popular:
    """The number of watches among the newest `window` (None: among all)."""

    def __init__(self, stream: Stream, cut: int, catalogue: int, *, window: int | None, name: str) -> None:
        self.name = name
        self._stream, self._window = stream, window
        first = 0 if window is None else max(0, cut - window)
        self._counts = _count(stream.items[first:cut], catalogue)

    def scores(self, queries: EvalQueries) -> Floats:
        return np.tile(self._counts.astype(np.float32), (len(queries), 1))

    def learn(self, rows: slice) -> None:
        self._counts += _count(self._stream.items[rows], len(self._counts))
        if self._window is not None:
            old = slice(max(0, rows.start - self._window), max(0, rows.stop - self._window))
            self._counts -= _count(self._stream.items[old], len(self._counts))


class DecayedPopular:
    """Share of the watches, each counted half as much for every `half_life` watches since: (c + m p) / (sum c + m) with
    c the decayed counts, p the all-time share and m = PRIOR."""

    def __init__(
        self, stream: Stream, cut: int, catalogue: int, *, half_life: float, name: str = "popular, decayed"
    ) -> None:
        self.name = name
        self._stream, self._half_life = stream, half_life
        self._decayed, self._totals = np.zeros(catalogue), np.zeros(catalogue)
        self.learn(slice(0, cut))

    def shares(self) -> Doubles:
        """float64 [C], positive."""
        return np.asarray((self._decayed + PRIOR * self._prior()) / (self._decayed.sum() + PRIOR))

    def trend(self) -> Doubles:
        """float64 [C]: the decayed share over the all-time one."""
        return self.shares() / self._prior()

    def _prior(self) -> Doubles:
        return np.asarray((self._totals + 1) / (self._totals.sum() + len(self._totals)))

    def scores(self, queries: EvalQueries) -> Floats:
        return np.tile(self.shares().astype(np.float32), (len(queries), 1))

    def learn(self, rows: slice) -> None:
        items = self._stream.items[rows]
        weights = np.exp2(-np.arange(len(items) - 1, -1, -1) / self._half_life)
        self._decayed *= 2.0 ** (-len(items) / self._half_life)
        self._decayed += _count(items, len(self._decayed), weights)
        self._totals += _count(items, len(self._totals))


class TimesRecency:
    """A source's score times the item's trend to the power of `exponent`, plus `floor` times decayed popularity: what
    fits the user and is watched now. The source knows all-time popularity already, so only the change is put in; the
    floor decides where the source knows nothing of a user or item."""

    def __init__(
        self, source: Recommender, popularity: DecayedPopular, *, exponent: float, floor: float, name: str
    ) -> None:
        self.name = name
        self._source, self._popularity = source, popularity
        self._exponent, self._floor = exponent, floor

    def scores(self, queries: EvalQueries) -> Floats:
        scores = self._source.scores(queries)
        np.maximum(scores, 0, out=scores)
        scores *= (self._popularity.trend() ** self._exponent).astype(np.float32)
        shares = self._popularity.shares()
        scores += (self._floor * shares / shares.max()).astype(np.float32)
        return scores

    def learn(self, rows: slice) -> None:
        self._source.learn(rows)
        self._popularity.learn(rows)


@dataclass(frozen=True)
class SettingSelection:
    """The setting with the lowest mean log2 rank on validation queries, and what all of them reached."""

    setting: Setting
    tried: list[tuple[Setting, Estimate]]


def choose(
    build: Callable[..., Recommender], grid: Iterable[Setting], ranks_of: Callable[[Recommender], Rows]
) -> SettingSelection:
    """Try `build(**setting)` for each setting of the grid on validation queries, by the ranks of their
    walk. The first of equals wins."""
    tried = [(setting, log_rank(ranks_of(build(**setting)))) for setting in grid]
    best = min(range(len(tried)), key=lambda place: _worst_if_nan(tried[place][1].value))
    return SettingSelection(tried[best][0], tried)


def _worst_if_nan(value: float) -> float:
    return np.inf if np.isnan(value) else value


def _count(items: Rows, catalogue: int, weights: Doubles | None = None) -> Doubles:
    """float64 [C]; items that were not known at the cut are left out."""
    known = items < catalogue
    chosen = None if weights is None else weights[known]
    return np.bincount(items[known], chosen, minlength=catalogue).astype(np.float64)
