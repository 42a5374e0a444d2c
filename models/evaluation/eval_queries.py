"""The queries of a backtest: a user as of some time, their history, and what they watched then.

A history holds only rows before that time (paper section 3.4); it is cut from the user's own sequence, so the future
cannot leak into it. Nothing here is as large as users times items: queries are put together batch by batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.arrays import Doubles, Flags, Rows
from models.logs.timeline import HISTORY, Timeline, first_of_pair


@dataclass(frozen=True)
class Stream:
    """Positives in time, int64 [N] each (they may be mapped files): `users` are codes from 0, `items` rows from 0 in
    the order in which items became known, so that those known at a cut are the first C; `event_ms` never falls."""

    users: Rows
    items: Rows
    event_ms: Rows

    def __len__(self) -> int:
        return len(self.users)


@dataclass(frozen=True)
class EvalQuery:
    """int64 [n] each: the user, the row of the stream just before which is asked, and the row of what they watched then
    (frozen: some way behind; -1: nothing)."""

    users: Rows
    before: Rows
    watched: Rows

    def __len__(self) -> int:
        return len(self.users)

    def __getitem__(self, part: slice | Rows) -> EvalQuery:
        return EvalQuery(self.users[part], self.before[part], self.watched[part])

    def between(self, rows: slice) -> EvalQuery:
        """Those asked before one of these rows of the stream; `before` must be sorted."""
        return self[slice(*np.searchsorted(self.before, [rows.start, rows.stop]).tolist())]


def evenly(asked: EvalQuery, most: int) -> EvalQuery:
    """All, or `most` of them with about equal gaps."""
    return asked if len(asked) <= most else asked[np.linspace(0, len(asked) - 1, most).astype(np.int64)]


@dataclass(frozen=True)
class EvalQueries:
    """A batch of queries with all that a recommender needs. Item rows of C and above were not known at the cut."""

    rows: Rows  # [B] as of just before this row of the stream
    users: Rows  # [B]
    targets: Rows  # [B] item row, -1 for none
    histories: Rows  # [B, HISTORY] item rows of the newest watches, oldest first, -1 in front
    seen_query: Rows  # [K] with `seen_item`: all items that the user has watched before, each once
    seen_item: Rows  # [K]
    event_ms: Rows  # [B]

    def __len__(self) -> int:
        return len(self.users)


class History:
    """The whole stream, to be looked back into from any row."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._new = first_of_pair(stream.users, stream.items)  # [N] no repeat
        self._watches = Timeline(stream.users)
        self._firsts = Timeline(stream.users, counts=self._new.__getitem__)

    def watched_before(self, users: Rows, before: Rows) -> Rows:
        """int64 [n]: how many watches, repeats included."""
        return self._watches.count(users, before)

    def newest(self, users: Rows, before: Rows) -> Rows:
        """int64 [n]: the row of each user's newest watch, -1 for none."""
        return self._watches.newest(users, before, 1)[:, 0]

    def next_unseen(self, cut: int) -> EvalQuery:
        """The queries of all who have watched before the cut: their first unseen item after it, asked for at the
        cut."""
        asked = self._first_unseen(cut)
        return asked[np.flatnonzero(self._is_warm(asked))]

    def first_ever(self, cut: int) -> EvalQuery:
        """The queries of all who have watched nothing before the cut: their first watch after it, asked for at the
        cut."""
        asked = self._first_unseen(cut)
        return asked[np.flatnonzero(~self._is_warm(asked))]

    def unseen_since(self, cut: int) -> EvalQuery:
        """Each watch after the cut that is no repeat, of a user who has watched before it."""
        rows = np.flatnonzero(self._new[cut:]) + cut
        asked = EvalQuery(np.asarray(self.stream.users[rows]), rows, rows)
        return asked[np.flatnonzero(self._is_warm(asked))]

    def targets(self, asked: EvalQuery) -> Rows:
        """int64 [n]: the item watched, -1 for none."""
        return np.where(asked.watched >= 0, self.stream.items[np.maximum(asked.watched, 0)], -1)

    def queries(self, asked: EvalQuery) -> EvalQueries:
        windows = self._watches.newest(asked.users, asked.before, HISTORY)
        seen_query, seen = self._firsts.all(asked.users, asked.before)
        moments = np.minimum(asked.before, len(self.stream) - 1)
        return EvalQueries(
            rows=asked.before,
            users=asked.users,
            targets=self.targets(asked),
            histories=np.where(windows >= 0, self.stream.items[windows], -1),
            seen_query=seen_query,
            seen_item=np.asarray(self.stream.items[seen]),
            event_ms=np.asarray(self.stream.event_ms[moments]),
        )

    def log_shares(self, cut: int, catalogue: int) -> Doubles:
        """float64 [C]: log of each item's share of the watches before the cut, one watch granted to each."""
        counts = np.bincount(self.stream.items[:cut], minlength=catalogue)[:catalogue] + 1
        return np.asarray(np.log(counts / counts.sum()))

    def _first_unseen(self, cut: int) -> EvalQuery:
        """Each user's first watch after the cut that is no repeat, asked for at the cut."""
        later = np.flatnonzero(self._new[cut:]) + cut
        users, at = np.unique(self.stream.users[later], return_index=True)
        return EvalQuery(users, np.full(len(users), cut), later[at])

    def _is_warm(self, asked: EvalQuery) -> Flags:
        return np.asarray(self.watched_before(asked.users, asked.before) > 0)
