"""The newest rows of a user before any row of a log sorted by time, for logs of any size.

One sorted file of (user, row) in a single number each: a window is cut by bisection, so it can be asked for any row,
also for one that is not among those that count (an exposure that nobody watched has watches before it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
Integers = npt.NDArray[np.integer]
CHUNK = 1_000_000


class UserWindows:
    """Windows over the rows of a log that `counts(rows)` marks. `users` [N], not negative. `path`: its file."""

    def __init__(
        self, users: Integers, path: Path, counts: Callable[[slice], npt.NDArray[np.bool_]] | None = None
    ) -> None:
        self._users, self._rows = users, max(1, len(users))
        kept = 0
        keys = np.lib.format.open_memmap(path, "w+", np.dtype(np.int64), (self._rows,))
        for start in range(0, len(users), CHUNK):
            block = slice(start, min(start + CHUNK, len(users)))
            rows = np.arange(block.start, block.stop)
            rows = rows if counts is None else rows[counts(block)]
            keys[kept : kept + len(rows)] = users[rows].astype(np.int64) * self._rows + rows
            kept += len(rows)
        self._keys = keys[:kept]
        self._keys.sort()

    def before(self, rows: Rows, length: int) -> Rows:
        """int64 [B, length]: the newest counted rows of the same user before each of `rows`, oldest first, -1 in
        front."""
        users = self._users[rows].astype(np.int64)
        ends = np.searchsorted(self._keys, users * self._rows + rows)  # [B]
        places = ends[:, None] - np.arange(length, 0, -1)  # [B, length]
        keys = self._keys[np.maximum(places, 0)] if len(self._keys) else np.full(places.shape, -1, np.int64)
        inside = (places >= 0) & (keys // self._rows == users[:, None])
        windows: Rows = np.where(inside, keys % self._rows, -1)
        return windows

    def by_user(self) -> Iterator[tuple[Rows, Rows]]:
        """Users and rows of all that counts, user by user and in time, a chunk at a time."""
        for start in range(0, len(self._keys), CHUNK):
            keys = np.asarray(self._keys[start : start + CHUNK])
            yield keys // self._rows, keys % self._rows
