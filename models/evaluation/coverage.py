"""The catalogue as recommendation lists show it: how much of the catalogue, and how popular that is.

A list can be right and the same for everyone; coverage and popularity say so. Only counts per item and a number per
list are kept, never the lists.
"""

from __future__ import annotations

import numpy as np

from models.arrays import Doubles, Flags, Rows
from models.evaluation.comparison import Estimate, mean

DEPTHS = (10, 50, 100, 500)
TOP = 0.01  # of the items known, the most watched before the cut
NOBODY, SEVERAL = -1, -2


class Coverage:
    """The lists of one recommender: the first k items of each list, for k in DEPTHS."""

    def __init__(self, log_shares: Doubles) -> None:
        """log_shares float64 [C]: of the watches before the cut."""
        self._shares = log_shares
        self._is_top = np.zeros(len(log_shares), np.bool_)
        self._is_top[np.argsort(-log_shares, kind="stable")[: max(1, round(TOP * len(log_shares)))]] = True
        self._lists = 0
        self._owner = {k: np.full(len(log_shares), NOBODY) for k in DEPTHS}  # [C] the one list that shows an item
        self._popularity: dict[int, list[Doubles]] = {k: [np.empty(0)] for k in DEPTHS}
        self._top_share: dict[int, list[Doubles]] = {k: [np.empty(0)] for k in DEPTHS}

    def add(self, items: Rows) -> None:
        """items int64 [B, K], best first, -1 for none."""
        for k in DEPTHS:
            first = items[:, :k]
            there = first >= 0
            sizes = np.maximum(1, there.sum(axis=1))
            self._popularity[k].append(np.where(there, self._shares[first], 0).sum(axis=1) / sizes)
            self._top_share[k].append((self._is_top[first] & there).sum(axis=1) / sizes)
            self._mark(self._owner[k], first, there)
        self._lists += len(items)

    def coverage(self, k: int) -> Estimate:
        """Share of the catalogue in anybody's first k; the error is the jackknife's, over lists."""
        owner = self._owner[k]
        alone = np.bincount(owner[owner >= 0], minlength=self._lists) / len(owner)  # [n] lost without this list
        spread = float(np.square(alone - alone.mean()).sum()) * (self._lists - 1) / self._lists if self._lists else 0.0
        return Estimate(float((owner != NOBODY).mean()), spread**0.5, self._lists)

    def popularity(self, k: int) -> Estimate:
        """Mean over lists of the mean log share of what is shown."""
        return mean(np.concatenate(self._popularity[k]))

    def top_share(self, k: int) -> Estimate:
        """Mean over lists of the share of what is shown that belongs to the most watched 1 % of items."""
        return mean(np.concatenate(self._top_share[k]))

    def _mark(self, owner: Rows, items: Rows, there: Flags) -> None:
        lists, places = np.nonzero(there)
        shown, first, times = np.unique(items[lists, places], return_index=True, return_counts=True)
        once = (times == 1) & (owner[shown] == NOBODY)
        owner[shown] = np.where(once, self._lists + lists[first], SEVERAL)
