"""Who watched what before: the windows of earlier rows that make a history, for any row of a log sorted by time.

A history holds only rows before its own (paper section 3.4): a window is cut from the user's own sequence and ends at
the row it belongs to, so that the future cannot leak into it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


class Timeline:
    """Windows over a log whose rows are sorted by time. `users` int64 [N]: each row's user."""

    def __init__(self, users: Rows) -> None:
        self._order = np.argsort(users, kind="stable")  # [N] rows, user by user, in time
        by_user = users[self._order]
        is_first = np.r_[True, by_user[1:] != by_user[:-1]] if len(users) else np.zeros(0, bool)
        firsts = np.flatnonzero(is_first)
        self._place = np.empty(len(users), np.int64)  # [N] where each row stands in `_order`
        self._place[self._order] = np.arange(len(users))
        self._start = np.empty(len(users), np.int64)  # [N] where its user begins there
        self._start[self._order] = np.repeat(firsts, np.diff(np.r_[firsts, len(users)]))

    def before(self, rows: Rows, length: int) -> Rows:
        """int64 [B, H]: the `length` rows of the same user before each of `rows`, oldest first, -1 in front."""
        places = self._place[rows][:, None] - np.arange(length, 0, -1)  # [B, H]
        inside = places >= self._start[rows][:, None]
        return np.where(inside, self._order[np.where(inside, places, 0)], -1)


def first_of_pair(users: Rows, items: Rows) -> npt.NDArray[np.bool_]:
    """bool [N]: whether a row is the first of its user and item; later ones are repeats, which serving would drop."""
    first = np.zeros(len(users), np.bool_)
    pairs = users * (items.max(initial=0) + 1) + items
    first[np.unique(pairs, return_index=True)[1]] = True
    return first
