"""The watches of a log's users that they did not complete: what was tried and left, as of any time.

As a history on the stream has them (streams.history.rules): among a user's newest watches of whatever length. What was
shown and left alone, a row of 0 seconds, is no watch and in no history.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from models.arrays import Flags, Integers, Rows
from models.logs.stored_log import BUFFER_ROWS, StoredLog
from models.logs.timeline import HISTORY, Timeline, newest_of


class SkipTimeline:
    """The newest `most` uncompleted of the newest HISTORY watches of each user; a file beside the log holds the order
    of the watches."""

    def __init__(self, log: StoredLog, rows: Rows, most: int) -> None:
        """`rows` int64 [I]: the catalogue row of each item of the log."""
        self.most = most
        self._log, self._rows = log, rows
        self._watches = Timeline(log.users, log.directory / "watches.npy", counts=self._is_watch)

    def before(self, users: Integers, event_ms: Integers) -> Rows:
        """int64 [B, most]: catalogue rows of each user's uncompleted watches before that moment, oldest first, -1 in
        front."""
        past = np.searchsorted(self._log.event_ms, event_ms, side="left")  # rows of all users before that moment
        watched = self._watches.newest(users, past, HISTORY)
        at = np.maximum(watched, 0)
        skipped = (watched >= 0) & ~self._log.completed[at]
        return newest_of(np.where(skipped, self._rows[self._log.items[at]], -1), self.most)

    def items(self, size: int, before_ms: float) -> Flags:
        """bool [size]: whether each of the first rows of the catalogue was left by anybody before that moment."""
        found = np.zeros(size, np.bool_)
        for rows in _parts(int(np.searchsorted(self._log.event_ms, before_ms, side="left"))):
            found[self._rows[self._log.items[rows][_is_skip(self._log, rows)]]] = True
        return found

    def _is_watch(self, rows: slice) -> Flags:
        return is_watch(self._log, rows)


def is_watch(log: StoredLog, rows: slice) -> Flags:
    """bool [B]: whether each row is a watch, also of unknown length, and not only an impression."""
    return np.asarray(~(log.watch_s[rows] <= 0))


def has_skips(log: StoredLog) -> bool:
    """Return whether any watch was not completed."""
    return any(_is_skip(log, rows).any() for rows in _parts(len(log)))


def _is_skip(log: StoredLog, rows: slice) -> Flags:
    return is_watch(log, rows) & ~log.completed[rows]


def _parts(stop: int) -> Iterator[slice]:
    return (slice(start, min(start + BUFFER_ROWS, stop)) for start in range(0, stop, BUFFER_ROWS))
