"""Decayed sums over the earlier rows of a log, as they stood at any recent moment, read forward once.

What lies further back than any question is kept as one number per code, what is newer as a sorted window, so memory is
the codes and a window, whatever the log's length. A row weighs 2^-(age / half-life). Between "row happened" and "row
counts" lies a delay: a live system knows an impression's outcome only when its window has closed.
"""

from __future__ import annotations

import numpy as np

from models.arrays import Doubles, Rows


class DecayedPast:
    """Sums of K columns by code, codes 0 to `size` - 1."""

    def __init__(self, size: int, columns: int, half_life_ms: float) -> None:
        self._half_life_ms = half_life_ms
        self._base_ms = 0
        self._carry: Doubles = np.zeros((size, columns))  # of what is older than the window, as of base
        self._window = _Window(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, columns)))

    def move_to(self, base_ms: int) -> None:
        """No later question will be of a moment before this one."""
        self._carry *= self._decay(base_ms - self._base_ms)
        self._base_ms = base_ms

    def settle(self, codes: Rows, at_ms: Rows, values: Doubles, base_ms: int) -> None:
        """Count rows before `base_ms` for good; no later question may be of a moment before it."""
        self.move_to(base_ms)
        weighed = values * self._decay(base_ms - at_ms)[:, None]
        for column in range(values.shape[1]):
            self._carry[:, column] += np.bincount(codes, weighed[:, column], minlength=len(self._carry))

    def open(self, codes: Rows, at_ms: Rows, values: Doubles) -> None:
        """The rows from base on, in order of time, that a question may or may not be late enough to know."""
        grown = values / self._decay(at_ms - self._base_ms)[:, None]
        self._window = _Window(codes, at_ms, grown)

    def at(self, codes: Rows, known_ms: Rows, now_ms: Rows) -> Doubles:
        """float64 [B, K]: sums over the rows of each code before `known_ms`, decayed to `now_ms`. int64 [B] all."""
        sums = self._carry[codes] + self._window.before(codes, known_ms)
        return np.asarray(sums * self._decay(now_ms - self._base_ms)[:, None])

    def _decay(self, age_ms: Rows | int) -> Doubles:
        return np.asarray(np.exp2(-np.asarray(age_ms, np.float64) / self._half_life_ms))


class _Window:
    """Prefix sums by code over rows in order of time."""

    def __init__(self, codes: Rows, at_ms: Rows, values: Doubles) -> None:
        order = np.argsort(codes, kind="stable")
        self._at_ms, self._width = at_ms, len(codes) + 1
        self._keys = codes[order] * self._width + order
        self._sums = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values[order], axis=0)])

    def before(self, codes: Rows, known_ms: Rows) -> Doubles:
        """[B, K]"""
        first_late = np.searchsorted(self._at_ms, known_ms)  # of the rows in order of time
        stop = np.searchsorted(self._keys, codes * self._width + first_late)
        start = np.searchsorted(self._keys, codes * self._width)
        return np.asarray(self._sums[stop] - self._sums[start])
