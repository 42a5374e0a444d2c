"""What the ranker has of each item whoever asks, kept while what is known of items stands still.

Most candidates are candidates of many requests. Their own features and these features' part of the ranker's first layer
are the same for all of them until something new is heard of any item (serving.state.views.StatisticsView); then all of
it is worked out again, as it is asked for. It takes memory in proportion to what was asked for lately.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from models.ranking.ranker import ItemParts
from models.ranking.ranking_batch import Codes

Rows = NDArray[np.int64]
Learn = Callable[[Rows], ItemParts]  # of the places among the items that are asked for

LEAST = 256  # items that there is room for
MOST = 16_384  # items that are kept, unless more are asked for at once
GROWTH = 2


class KnownItems:
    """Of one release, by the rows of its catalogue, at one moment."""

    def __init__(self) -> None:
        self._moment: tuple[int, ...] = ()
        self._slot_of: Rows = np.zeros(0, np.int64)
        self._parts: ItemParts | None = None
        self._used = 0

    def slots(self, rows: Rows, moment: tuple[int, ...], learn: Learn) -> Rows:
        """int64 [N]: where the parts of these items are, until the next call. What is not there, or of another
        moment, is learnt: each row once, each -1 (an item that the catalogue does not know) for itself."""
        if moment != self._moment or self._used + len(rows) > max(MOST, len(rows)):
            self._slot_of[:], self._used, self._moment = -1, 0, moment
        self._reserve(int(rows.max(initial=-1)) + 1)
        slots = np.where(rows >= 0, self._slot_of[rows], -1) if len(self._slot_of) else np.full(len(rows), -1)
        missing = np.flatnonzero(slots < 0)
        if len(missing):
            keys = np.where(rows[missing] >= 0, rows[missing], -1 - missing)
            _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
            new = missing[first]
            found = self._add(learn(new))
            slots[missing] = found[inverse.reshape(-1)]
            known = rows[new] >= 0
            self._slot_of[rows[new][known]] = found[known]
        return slots

    def parts(self, slots: Rows) -> ItemParts:
        """The parts of these items, in this order."""
        assert self._parts is not None  # whoever has slots has learnt something
        numbers, ids, hidden, shown = self._parts
        codes = {name: named.at(slots) for name, named in ids.items()}
        return ItemParts(numbers[slots], codes, hidden.index_select(1, torch.from_numpy(slots)), shown[slots])

    def forget(self, row: int) -> None:
        """The catalogue says something else of an item."""
        if row < len(self._slot_of):
            self._slot_of[row] = -1

    def _add(self, new: ItemParts) -> Rows:
        slots = np.arange(self._used, self._used + len(new.shown))
        self._used += len(slots)
        if self._parts is None or self._used > len(self._parts.shown):
            self._parts = _enlarged(self._parts, new, max(LEAST, self._used, min(GROWTH * self._used, MOST)))
        into = self._parts
        into.numbers[slots], into.shown[slots] = new.numbers, new.shown
        into.hidden[:, slots[0] : self._used] = new.hidden
        for name, named in new.ids.items():
            into.ids[name].codes[slots] = named.codes
        return slots

    def _reserve(self, rows: int) -> None:
        if rows > len(self._slot_of):
            self._slot_of = np.append(self._slot_of, np.full(GROWTH * rows - len(self._slot_of), -1))


def _enlarged(old: ItemParts | None, like: ItemParts, size: int) -> ItemParts:
    """Room for `size` items, with what there was in front."""
    members, _, width = like.hidden.shape
    codes = {name: np.zeros((size, named.codes.shape[1]), np.int64) for name, named in like.ids.items()}
    room = ItemParts(
        np.zeros((size, like.numbers.shape[1]), np.float32),
        {name: Codes(codes[name], named.names, named.first) for name, named in like.ids.items()},
        torch.zeros((members, size, width), dtype=like.hidden.dtype),
        np.zeros(size),
    )
    if old is not None:
        before = len(old.shown)
        room.numbers[:before], room.shown[:before], room.hidden[:, :before] = old.numbers, old.shown, old.hidden
        for name, named in old.ids.items():
            room.ids[name].codes[:before] = named.codes
    return room
