"""What each item is worth to a viewer of whom nothing is known: the ranker's expected seconds, remembered for a while.

It is worked out for what becomes a candidate, a few items with each batch, so that it costs in proportion to what is
asked for and not to the catalogue.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.retrieval.table import GROWTH

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

MAX_AGE_MS = 300_000
MOST_DUE = 256  # items of a batch
UNKNOWN_MS = np.iinfo(np.int64).min


class ItemWorth:
    """Of one release, by the rows of its catalogue."""

    def __init__(self) -> None:
        self._seconds = np.zeros(0, np.float32)
        self._as_of_ms = np.zeros(0, np.int64)

    def of(self, rows: Rows) -> Floats:
        """float32 [C], NaN where it is not known (yet), as for row -1."""
        found = np.full(len(rows), np.nan, np.float32)
        there = (rows >= 0) & (rows < len(self._seconds))
        found[there] = self._seconds[rows[there]]
        return found

    def due(self, rows: Rows, now_ms: int) -> Rows:
        """At most MOST_DUE of these rows, each once: those that are not known first, then the oldest."""
        rows = np.unique(rows[rows >= 0])
        self._reserve(int(rows[-1]) + 1 if len(rows) else 0)
        as_of_ms = self._as_of_ms[rows]
        late = as_of_ms < now_ms - MAX_AGE_MS
        return np.asarray(rows[late][np.argsort(as_of_ms[late], kind="stable")][:MOST_DUE])

    def set(self, rows: Rows, seconds: Floats, now_ms: int) -> None:
        """What `due` has named; a value that is not finite stays unknown."""
        known = np.isfinite(seconds)
        self._seconds[rows] = np.where(known, seconds, np.nan)
        self._as_of_ms[rows] = np.where(known, now_ms, UNKNOWN_MS)

    def _reserve(self, size: int) -> None:
        if size > len(self._seconds):
            more = max(size, round(GROWTH * len(self._seconds))) - len(self._seconds)
            self._seconds = np.append(self._seconds, np.full(more, np.nan, np.float32))
            self._as_of_ms = np.append(self._as_of_ms, np.full(more, UNKNOWN_MS))
