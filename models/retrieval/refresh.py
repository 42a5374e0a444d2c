"""The schedule by which a row that nobody watches is published again, because its popularity has decayed since it last
was.

A published vector carries its popularity as a number; the number falls while the item rests. A row is due each time it
has fallen by another `FALL` since its last watch, and a last time when nothing is left to fall. So a watch causes a
handful of refreshes at most, however large the catalogue, and an item that is watched often causes none.
"""

from __future__ import annotations

import heapq

import numpy as np

from models.arrays import Doubles, Rows
from models.retrieval.popularity import Popularity

FALL = 0.35  # of log popularity: the items' logits are right to a third
LEFT = 0.05  # with so little left to fall a row is at rest


class RefreshSchedule:
    """A heap of (clock when due, row, clock of the watch that it was planned after), each row in it once at most."""

    def __init__(self, popularity: Popularity) -> None:
        self._popularity = popularity
        self._heap: list[tuple[int, int, int]] | None = None  # made at first use, from the counts as they are then
        self._scheduled: set[int] = set()

    def forget(self) -> None:
        """Plan anew at the next use: counts have changed other than by watches."""
        self._heap = None

    def watched(self, rows: Rows) -> None:
        """Rows whose watches were just counted."""
        if self._heap is not None:
            new = [row for row in np.unique(rows).tolist() if row not in self._scheduled]
            self._push(np.array(new, np.int64), self._heap)

    def due(self, limit: int) -> Rows:
        """int64 [R], R <= `limit`: rows to publish again now. What is left over comes with the next call."""
        if self._heap is None:
            self._heap = []
            self._scheduled.clear()
            self._push(np.arange(len(self._popularity)), self._heap)
        due = np.empty(0, np.int64)
        while len(due) < limit and len(found := self._pop(self._heap, limit - len(due))):
            rows, planned = found.T
            is_same = self._popularity.touched(rows) == planned  # else watched meanwhile: then of its new life
            due = np.concatenate([due, rows[is_same | (self._fallen(rows) >= FALL)]])
            self._push(rows, self._heap)
        return due

    def _pop(self, heap: list[tuple[int, int, int]], most: int) -> Rows:
        """int64 [R, 2]: up to `most` rows that are due by the schedule, each with the watch it was planned after."""
        found: list[tuple[int, int]] = []
        while heap and heap[0][0] <= self._popularity.clock and len(found) < most:
            _, row, planned = heapq.heappop(heap)
            found.append((row, planned))
        self._scheduled.difference_update(row for row, _ in found)
        return np.array(found, np.int64).reshape(-1, 2)

    def _push(self, rows: Rows, heap: list[tuple[int, int, int]]) -> None:
        """Each row that is not at rest at its next level."""
        clocks = self._next(rows)
        ahead = clocks >= 0
        rows, touched = rows[ahead], self._popularity.touched(rows)[ahead]
        for place in zip(clocks[ahead].tolist(), rows.tolist(), touched.tolist(), strict=True):
            heapq.heappush(heap, place)
        self._scheduled.update(rows.tolist())

    def _fallen(self, rows: Rows) -> Doubles:
        """float64 [R]: how far each row's log popularity has fallen since its last watch."""
        prior = self._popularity.prior(rows)
        return np.asarray(np.log((self._popularity.stored(rows)[0] + prior) / (self._popularity.counts(rows) + prior)))

    def _next(self, rows: Rows) -> Rows:
        """int64 [R]: the clock at which each row has fallen to its next level, -1 for one at rest."""
        popularity = self._popularity
        count, _, touched = popularity.stored(rows)
        prior = popularity.prior(rows)
        fallen, whole = self._fallen(rows), np.log1p(count / prior)
        level = np.minimum((np.floor(fallen / FALL + 1e-9) + 1) * FALL, whole - LEFT)
        left = np.maximum((count + prior) * np.exp(-level) - prior, np.finfo(float).tiny)  # of the count, at that level
        rests = level <= fallen + 1e-9
        age = np.log2(np.where(rests, 1.0, count / left)) * popularity.half_life_events
        return np.where(rests, -1, np.maximum(touched + np.ceil(age).astype(np.int64), popularity.clock + 1))
