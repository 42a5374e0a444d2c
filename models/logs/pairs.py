"""Pairs of items that the same user watched soon after each other, counted so that order tells.

As in sequential rules (Ludewig and Jannach 2018) a near pair weighs more than a far one, and what came after more than
what came before.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from models.arrays import Floats, Rows

REACH = 10  # places between two watches of a user that are still a pair
FADING = 0.7  # a pair d places apart weighs d^-FADING
BACKWARDS = 0.5  # of that: how much the later one speaks for the earlier one
KEPT = 0.6  # a watch in a history counts so much of the one after it


def soon_after(users: Rows, items: Rows, size: int) -> sparse.csr_array:
    """float32 [size, size]: how often an item (row) is followed by another (column) within REACH watches of a user, and
    in part the other way round. users and items int64 [K], each user's in order."""
    order = np.argsort(users, kind="stable")
    user, item = users[order], items[order]
    pairs = [_apart(user, item, places) for places in range(1, min(REACH, len(user) - 1) + 1)]
    if not pairs:
        return sparse.csr_array((size, size), dtype=np.float32)
    first, second, weight = (np.concatenate(column) for column in zip(*pairs, strict=True))
    places = np.concatenate([first, second]), np.concatenate([second, first])
    values = np.concatenate([weight, np.float32(BACKWARDS) * weight])
    counted = sparse.csr_array((values, places), shape=(size, size), dtype=np.float32)
    counted.setdiag(0)
    counted.eliminate_zeros()
    return counted


def _apart(user: Rows, item: Rows, places: int) -> tuple[Rows, Rows, Floats]:
    """The pairs of one user that stand so many places apart, the earlier ones first, and their weights."""
    at = np.flatnonzero(user[places:] == user[:-places])
    return item[at], item[at + places], np.full(len(at), places**-FADING, np.float32)
