"""Decayed sums over closed impressions, by item, channel, topic and all together, read at any moment for many at once.

A row is one scope's id in one part (a partition of the stream, or a release's own past) as of its own time; reading
decays each part to the moment asked for and adds the parts up in their order, so that the same rows always give the
same numbers to the bit.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat

import numpy as np

from models.arrays import Doubles, Rows
from models.catalogue.columns import Columns
from models.ranking.ranking_batch import COLUMNS

# In `calibration` the last column holds expected seconds instead of completions.
SCOPES = ("item", "channel", "topic", "length", "all", "calibration")
MOST_FACTOR = 4.0  # a calibration beyond it is no calibration
PRIOR_S = 2000.0  # seconds, expected and watched, that a version begins with


class ItemStatistics:
    """`parts`: how many rows of one id may be set; `half_life_ms` of what they count."""

    def __init__(self, half_life_ms: float, parts: int = 1) -> None:
        self.half_life_ms, self._parts = half_life_ms, parts
        self._row_of: dict[str, dict[str, int]] = {scope: {} for scope in SCOPES}
        self._free: dict[str, list[int]] = {scope: [] for scope in SCOPES}
        self._rows = {
            scope: Columns(sums=np.zeros((0, parts, COLUMNS)), as_of_ms=np.zeros((0, parts), np.int64))
            for scope in SCOPES
        }

    def set(self, scope: str, name: str, part: int, as_of_ms: int, sums: Sequence[float]) -> None:
        """Take over a row, in place of what was there. Raises ValueError for a part or scope that there is not."""
        if scope not in self._row_of or not 0 <= part < self._parts:
            raise ValueError(f"there are no statistics of {scope!r} in part {part}; parts: {self._parts}")
        rows = self._rows[scope]
        row = self._row_of[scope].get(name)
        if row is None:
            row = self._free[scope].pop() if self._free[scope] else rows.append(sums=0.0, as_of_ms=0)
            self._row_of[scope][sys.intern(name)] = row
        rows["sums"][row, part] = sums
        rows["as_of_ms"][row, part] = as_of_ms

    def move(self, by_ms: int) -> None:
        """Have all that was set be of so much later: the end of an old log is the present of who serves from it."""
        for rows in self._rows.values():
            as_of_ms = rows["as_of_ms"]
            as_of_ms[as_of_ms > 0] += by_ms

    def remove(self, scope: str, name: str, part: int) -> None:
        """Forget a row; an id of which nothing is left takes no room. What is not known is passed over."""
        row = self._row_of.get(scope, {}).get(name)
        if row is None or not 0 <= part < self._parts:
            return
        rows = self._rows[scope]
        rows["sums"][row, part], rows["as_of_ms"][row, part] = 0.0, 0
        if not rows["as_of_ms"][row].any():
            del self._row_of[scope][name]
            self._free[scope].append(row)

    def rows(self) -> Iterator[tuple[str, str, int, int, list[float]]]:
        """Scope, name, part, time and sums of all that was set."""
        for scope, row_of in self._row_of.items():
            columns = self._rows[scope]
            for name, row in row_of.items():
                for part in np.flatnonzero(columns["as_of_ms"][row]).tolist():
                    yield scope, name, part, int(columns["as_of_ms"][row, part]), columns["sums"][row, part].tolist()

    def at(self, scope: str, names: Iterable[str], now_ms: Rows) -> Doubles:
        """float64 [N, 4]: impressions, watches, seconds and completions of each, zeros for what is not known.

        now_ms int64 [N]."""
        row_of, rows = self._row_of[scope], self._rows[scope]
        if not len(rows):
            return np.zeros((len(now_ms), COLUMNS))
        at = np.fromiter(map(row_of.get, names, repeat(-1)), np.int64, len(now_ms))
        sums, as_of_ms = rows["sums"][at], rows["as_of_ms"][at]  # [N, P, 4], [N, P]
        decay = np.exp2(-(now_ms[:, None] - as_of_ms) / self.half_life_ms)
        total = np.zeros((len(now_ms), COLUMNS))
        for part in range(self._parts):
            total += sums[:, part] * decay[:, part, None]
        return np.where((at >= 0)[:, None], total, 0.0)

    def factor(self, version: str, now_ms: int) -> float:
        """Watched over expected seconds of a version's closed impressions, recent ones most: what expectations are to
        be multiplied by. 1 for a version of which nothing is known yet."""
        _, _, watched_s, expected_s = self.at("calibration", [version], np.array([now_ms]))[0].tolist()
        factor = (watched_s + PRIOR_S) / (expected_s + PRIOR_S)
        return float(min(max(factor, 1 / MOST_FACTOR), MOST_FACTOR))
