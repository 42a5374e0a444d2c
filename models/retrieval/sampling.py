"""The shared negatives of a step: some from the batch, some uniform, each with how often it is expected there.

In-batch negatives are the popular items, which a model must learn to tell apart; uniform ones are the tail, which it
must learn to leave down (Yang et al., WWW 2020). An item may come from either, so both count in its expected number.
How often an item is a target is known from the log in batch training; on the stream it is estimated from the gaps
between its occurrences (Yi et al., RecSys 2019), at a cost that depends on the batch alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.arrays import Floats, Rows
from models.catalogue.columns import Columns

Shares = Callable[[Rows], npt.NDArray[np.floating]]

GAP_RATE = 0.05  # how much of an item's gap the newest one is


WIDTH = 16  # the number of distinct negatives is a multiple: products of other widths take up to twice as long


class Negatives(NamedTuple):
    """rows int64 [S] and the log of how often each is expected in such a sample, float32 [S], less the log of how often
    it stands for itself there."""

    rows: Rows
    log_expected: Floats


def draw_negatives(
    targets: Rows, shares: Shares, *, items: int, negatives: int, in_batch: float, rng: np.random.Generator
) -> Negatives:
    """So many `negatives`, a share `in_batch` of them from the targets [B], the others from all items; all items once
    each, where there are fewer: the full softmax.

    `shares(rows)` says which share of all targets each item has."""
    if items <= negatives:
        return Negatives(np.arange(items), np.zeros(items, np.float32))
    most = round(negatives * in_batch)
    uniform = negatives - most
    own = targets if len(targets) <= most else rng.choice(targets, most, replace=False, shuffle=False)
    rows = np.concatenate([own, rng.integers(0, items, uniform)])
    rows, counts = merged(rows)
    expected = len(own) * shares(rows) + uniform / items
    return Negatives(rows, np.log(expected / counts).astype(np.float32))


def merged(rows: Rows) -> tuple[Rows, Rows]:
    """Negatives [K], an item perhaps several times -> its rows in order [S] and for how many of the K each stands [S]:
    a term of the softmax times that number is the same sum. Some stay twice, so that S is a multiple of WIDTH where K
    is."""
    rows = np.sort(rows)
    kept = np.r_[True, rows[1:] != rows[:-1]][: len(rows)]
    again = np.flatnonzero(~kept)
    kept[again[: -int(kept.sum()) % WIDTH]] = True
    places = np.flatnonzero(kept)
    return rows[places], np.diff(places, append=len(rows))


def find_hits(targets: Rows, negatives: Rows, distinct: int) -> Rows:
    """int64 [2, K]: all pairs of an example and a negative that are the same item, from the places of targets [B] and
    negatives [S] among `distinct` items. O(B log B + S + distinct + K)."""
    order = np.argsort(targets, kind="stable")
    having = np.bincount(targets, minlength=distinct)  # [distinct] examples of each item
    counts = having[negatives]  # [S]
    hit = np.flatnonzero(counts)
    first, counts = (np.cumsum(having) - having)[negatives[hit]], counts[hit]
    which = np.repeat(hit, counts)
    within = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([order[np.repeat(first, counts) + within], which])


class Frequency:
    """The share of targets that each item is, from the gaps between its occurrences on the stream, in targets.

    When an item was last a target is not kept here: who counts watches knows it (models.retrieval.popularity)."""

    def __init__(self, shares: npt.NDArray[np.floating]) -> None:
        """`shares` [N]: what is known at the start, 0 for an item that was never a target."""
        self._never = float(max(len(shares), 1)) * 10
        gaps = 1 / np.maximum(shares, 1 / self._never)
        self._columns = Columns(gap=gaps.astype(np.float32))

    def append(self) -> int:
        """An item that was never a target."""
        return self._columns.append(gap=self._never)

    def add(self, rows: Rows, counts: Rows, since: Rows) -> None:
        """Take note of a batch: distinct rows [R], how often each was a target in it, and how many targets ago each was
        one before, the batch included."""
        gap = self._columns["gap"]
        gap[rows] += GAP_RATE * (np.maximum(since, 1) / counts - gap[rows]).astype(np.float32)

    def restore(self, row: int, gap: float) -> None:
        """Put back what `gaps` gave."""
        self._columns["gap"][row] = gap

    def forget(self, row: int) -> None:
        """The row is another item's from now on, which was never a target."""
        self.restore(row, self._never)

    def gaps(self, rows: Rows) -> Floats:
        """float32 [R]"""
        return np.asarray(self._columns["gap"][rows])

    def shares(self, rows: Rows) -> npt.NDArray[np.floating]:
        """float32 [R]"""
        return 1 / self._columns["gap"][rows]
