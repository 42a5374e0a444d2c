"""The schedule by which a row that nobody watches is published again, because its popularity has decayed since it last
was.

A published vector carries its popularity as a number; the number ages while the item rests. Each row is due at ages of
1/4, 1/2, 1 ... of a half-life after its last watch, until the decayed count no longer matters beside the prior. So a
watch causes a handful of refreshes at most, however large the catalogue.
"""

from __future__ import annotations

import heapq

import numpy as np

from models.arrays import Rows
from models.retrieval.popularity import Popularity

FIRST_SHARE = 1 / 4  # of a half-life
NEGLIGIBLE = 0.01  # a decayed count below this share of the prior is at rest


class RefreshSchedule:
    """A heap of (clock when due, row), each row in it once at most."""

    def __init__(self, popularity: Popularity) -> None:
        self._popularity = popularity
        self._first = max(1, round(popularity.half_life_events * FIRST_SHARE))
        self._heap: list[tuple[int, int]] | None = None  # made at first use, from the counts as they are then
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
            self._push(self._mattering(np.arange(len(self._popularity))), self._heap)
        due = np.empty(0, np.int64)
        while len(due) < limit and (rows := self._pop(self._heap, limit - len(due))).size:
            resting = self._popularity.clock >= self._popularity.touched(rows) + self._first  # else watched meanwhile
            due = np.concatenate([due, rows[resting]])
            self._push(np.concatenate([rows[~resting], self._mattering(rows[resting])]), self._heap)
        return due

    def _pop(self, heap: list[tuple[int, int]], most: int) -> Rows:
        """int64 [R]: up to `most` rows that are due by the schedule."""
        rows: list[int] = []
        while heap and heap[0][0] <= self._popularity.clock and len(rows) < most:
            rows.append(heapq.heappop(heap)[1])
        self._scheduled.difference_update(rows)
        return np.array(rows, np.int64)

    def _mattering(self, rows: Rows) -> Rows:
        return rows[self._popularity.counts(rows) > NEGLIGIBLE * self._popularity.prior(rows)]

    def _push(self, rows: Rows, heap: list[tuple[int, int]]) -> None:
        """Each row at the next of its ages that lies ahead."""
        touched = self._popularity.touched(rows)
        age = np.maximum(self._popularity.clock - touched, 1)
        doublings = np.where(age < self._first, 0, np.floor(np.log2(age / self._first)) + 1)
        for clock, row in zip((touched + self._first * np.exp2(doublings)).tolist(), rows.tolist(), strict=True):
            heapq.heappush(heap, (int(clock), row))
        self._scheduled.update(rows.tolist())
