"""Who watched what before: the windows of earlier rows that make a history, for any row of a log sorted by time.

A history holds only rows before its own (paper section 3.4): a window is cut from the user's own sequence and ends at
the row it belongs to, so that the future cannot leak into it. With a directory the tables lie in files there and are
mapped, so that a log may be larger than memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
Integers = npt.NDArray[np.integer[Any]]

CHUNK = 1_000_000
SPARSE = 4  # user numbers that reach this many times the number of rows are numbered anew first


class Timeline:
    """Windows over a log whose rows are sorted by time. `users` integers [N], not negative: each row's user.

    With `directory` the two tables of [N] are files there (`timeline_*.npy`); in memory is one number for each user.
    """

    def __init__(self, users: Integers, directory: Path | None = None, *, chunk: int = CHUNK) -> None:
        self._chunk = chunk
        self._users = _dense(users, chunk)
        self._starts = self._count()  # [U + 1] where each user begins in `_order`
        self._order = _table(len(users), directory, "order")  # [N] rows, user by user, in time
        self._place = _table(len(users), directory, "place")  # [N] where each row stands in `_order`
        self._fill()

    def before(self, rows: Rows, length: int) -> Rows:
        """int64 [B, H]: the `length` rows of the same user before each of `rows`, oldest first, -1 in front."""
        places = self._place[rows][:, None] - np.arange(length, 0, -1)  # [B, H]
        inside = places >= self._starts[self._users[rows]][:, None]
        windows: Rows = np.where(inside, self._order[np.where(inside, places, 0)], -1)
        return windows

    def around(self, rows: Rows, length: int) -> Rows:
        """int64 [B, H]: rows of the same user on both sides of each of `rows`, itself left out: half of them lie in its
        future. Only the ablation that shows why this is wrong asks for it."""
        half = length // 2
        away = np.r_[np.arange(-half, 0), np.arange(1, length - half + 1)]
        places = self._place[rows][:, None] + away  # [B, H]
        users = self._users[rows]
        inside = (places >= self._starts[users][:, None]) & (places < self._starts[users + 1][:, None])
        windows: Rows = np.where(inside, self._order[np.where(inside, places, 0)], -1)
        return windows

    def by_user(self) -> Iterator[Rows]:
        """All rows, user by user and each user's in time: whole users, about a chunk of rows together."""
        start = 0
        while start < len(self._order):
            stop = int(self._starts[np.searchsorted(self._starts, start + self._chunk, side="right") - 1])
            if stop <= start:  # one user with more rows than that
                stop = int(self._starts[np.searchsorted(self._starts, start, side="right")])
            yield np.asarray(self._order[start:stop])
            start = stop

    def _count(self) -> Rows:
        counts = np.zeros(0, np.int64)
        for users in _chunks(self._users, self._chunk):
            more = np.bincount(users, minlength=len(counts))
            more[: len(counts)] += counts
            counts = more
        starts: Rows = np.r_[0, np.cumsum(counts)].astype(np.int64)
        return starts

    def _fill(self) -> None:
        """A counting sort: each row goes to its user's next free place."""
        free = self._starts.copy()
        first = 0
        for users in _chunks(self._users, self._chunk):
            order = np.argsort(users, kind="stable")
            ordered = users[order]
            begins = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
            counts = np.diff(np.r_[begins, len(ordered)])
            places = free[ordered] + np.arange(len(ordered)) - np.repeat(begins, counts)
            free[ordered[begins]] += counts
            self._order[places] = first + order
            self._place[first + order] = places
            first += len(users)


def first_of_pair(
    users: Integers, items: Integers, *, timeline: Timeline | None = None, directory: Path | None = None
) -> npt.NDArray[np.bool_]:
    """bool [N]: whether a row is the first of its user and item; later ones are repeats, which serving would drop.

    With the `timeline` of `users` it goes through the log user by user, and what it needs beside the answer is a chunk;
    with a `directory` the answer is a file there.
    """
    first = _table(len(users), directory, "first", np.bool_)
    width = int(items.max(initial=0)) + 1
    for rows in [np.arange(len(users))] if timeline is None else timeline.by_user():
        pairs = users[rows].astype(np.int64) * width + items[rows]
        first[rows[np.unique(pairs, return_index=True)[1]]] = True
    return first


def _chunks(values: Integers, chunk: int) -> Iterator[Rows]:
    for start in range(0, len(values), chunk):
        yield np.asarray(values[start : start + chunk], np.int64)


def _dense(users: Integers, chunk: int) -> Integers:
    """The same users under small numbers, if theirs are large."""
    most = max((int(some.max()) for some in _chunks(users, chunk)), default=0)
    if most <= SPARSE * len(users) + chunk:
        return users
    dense: Integers = np.unique(users, return_inverse=True)[1]
    return dense


def _table(
    rows: int, directory: Path | None, name: str, dtype: npt.DTypeLike = np.int64
) -> np.ndarray[tuple[int], np.dtype[Any]]:
    if directory is None or not rows:  # an empty file cannot be mapped
        return np.zeros(rows, dtype)
    return np.lib.format.open_memmap(directory / f"timeline_{name}.npy", "w+", np.dtype(dtype), (rows,))
