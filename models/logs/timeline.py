"""The earlier rows of each user in a log sorted by time: the windows that make a history, cut as of any row.

A history holds only rows before its own (paper section 3.4): a window is cut from the user's own sequence and ends at
the row it belongs to, so that the future cannot leak into it. All is in one sorted array with a single number for each
row, `user * N + row`; a window is found by bisection. As a file it is mapped, so a log may be larger than memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from models.arrays import Flags, Integers, Rows

CHUNK = 1_000_000
HISTORY = 50  # completed watches that a user tower reads (paper section 3.3)


class Timeline:
    """Windows over those rows of a log that count. `users` integers [N], codes from 0: each row's user.

    `counts(rows)` -> bool: the rows of a slice that count; all, where it is not given. With `path` the sorted numbers
    are a file there. `chunk`: rows that are read together."""

    def __init__(
        self,
        users: Integers,
        path: Path | None = None,
        *,
        counts: Callable[[slice], Flags] | None = None,
        chunk: int | None = None,
    ) -> None:
        self._size, self._chunk = max(1, len(users)), chunk or CHUNK
        self._users = users
        shape = (self._size,)
        keys = np.zeros(shape, np.int64) if path is None else np.lib.format.open_memmap(path, "w+", np.int64, shape)
        kept = 0
        for start in range(0, len(users), self._chunk):
            rows = np.arange(start, min(start + self._chunk, len(users)))
            rows = rows if counts is None else rows[counts(slice(start, start + len(rows)))]
            keys[kept : kept + len(rows)] = self._users[rows].astype(np.int64) * self._size + rows
            kept += len(rows)
        self._keys = keys[:kept]
        self._keys.sort()

    def before(self, rows: Rows, length: int) -> Rows:
        """int64 [B, length]: the newest rows of the same user before each of `rows`, oldest first, -1 in front."""
        return self.newest(self._users[rows], rows, length)

    def newest(self, users: Integers, before: Rows, length: int) -> Rows:
        """int64 [B, length]: the newest rows of each user before that row, oldest first, -1 in front."""
        first, end = self._bounds(users, before)
        places = end[:, None] - np.arange(length, 0, -1)  # [B, length]
        if not len(self._keys):
            return np.full(places.shape, -1, np.int64)
        inside = places >= first[:, None]
        rows = self._keys[np.where(inside, places, 0)] - _first_keys(users, self._size)[:, None]
        return np.where(inside, rows, -1)

    def count(self, users: Integers, before: Rows) -> Rows:
        """int64 [B]: how many rows each user has before that row."""
        first, end = self._bounds(users, before)
        return end - first

    def all(self, users: Integers, before: Rows) -> tuple[Rows, Rows]:
        """int64 [K] twice: which of the users, and one of their rows before that row."""
        first, end = self._bounds(users, before)
        sizes = end - first
        which = np.repeat(np.arange(len(users)), sizes)
        place = np.arange(len(which)) - np.repeat(np.cumsum(sizes) - sizes, sizes) + np.repeat(first, sizes)
        return which, self._keys[place] % self._size

    def by_user(self) -> Iterator[Rows]:
        """All rows, user by user and each user's in time: whole users, about a chunk of rows together."""
        start, total = 0, len(self._keys)
        while start < total:
            stop = min(start + self._chunk, total)
            if stop < total:  # where that user begins, or else the one after the first: a user may have more rows
                users = self._keys[[stop, start]] // self._size + [0, 1]
                stop = int(np.searchsorted(self._keys, users * self._size).max())
            yield np.asarray(self._keys[start:stop]) % self._size
            start = stop

    def _bounds(self, users: Integers, before: Rows) -> tuple[Rows, Rows]:
        own = _first_keys(users, self._size)
        order = np.argsort(own + before)  # neighbours are found in the same memory
        first, end = np.empty_like(order), np.empty_like(order)
        first[order] = np.searchsorted(self._keys, own[order])
        end[order] = np.searchsorted(self._keys, (own + before)[order])
        return first, end


def _first_keys(users: Integers, size: int) -> Rows:
    """int64 [B]: below all numbers of each user."""
    return np.asarray(users, np.int64) * size


def newest_of(rows: Rows, most: int) -> Rows:
    """int64 [B, L] with -1 for none, oldest first -> [B, min(L, most)]: the newest of each, oldest first, -1 in
    front."""
    length = rows.shape[1]
    order = np.argsort(rows >= 0, axis=1, kind="stable")[:, length - min(length, most) :]
    return np.take_along_axis(rows, order, axis=1)


def first_of_pair(users: Integers, items: Integers, *, timeline: Timeline | None = None) -> Flags:
    """bool [N]: whether a row is the first of its user and item; later ones are repeats, which serving would drop.

    With the `timeline` of `users` it goes through the log user by user, and what it needs beside the answer is a chunk.
    """
    first = np.zeros(len(users), np.bool_)
    width = int(items.max(initial=0)) + 1
    for rows in [np.arange(len(users))] if timeline is None else timeline.by_user():
        pairs = users[rows].astype(np.int64) * width + items[rows]
        first[rows[np.unique(pairs, return_index=True)[1]]] = True
    return first
