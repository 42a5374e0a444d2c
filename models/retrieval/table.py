"""Embedding tables that learn by row: only the rows that a step touches are read, moved and written.

A table of ten million rows is stepped as fast as one of ten thousand, because nothing here is as large as the table.
Room is reserved as addresses and becomes memory page by page, so that a table grows to four times its size before
anything is copied. Huge pages keep a look-up in a large table from missing the processor's page cache as well.
"""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.arrays import Array, Floats, Rows

FIRST_SQUARE = 1e-12  # Adagrad's accumulator of a row that has not moved yet: its first step is a whole one
ROOM = 1 << 20  # rows reserved at least where a table may grow; addresses, not memory
GROWTH = 4
NO_RESERVE: int = getattr(mmap, "MAP_NORESERVE", 0x4000)  # of Linux: Python names it from 3.13 on


class Table:
    """Rows float32 [N, D] with one Adagrad accumulator each (Duchi et al. 2011, by row instead of by number).

    `values` and `squares` are views of the rows in use and may be written in place, until rows are added."""

    def __init__(self, dim: int, *, room: int = ROOM, first_square: float = FIRST_SQUARE) -> None:
        self.dim = dim
        self._first_square = first_square
        self._size = 0
        self._values, self._squares = reserve(room * dim).view(room, dim), reserve(room)

    @classmethod
    def of(cls, values: Floats, *, room: int | None = None, first_square: float = FIRST_SQUARE) -> Table:
        """A table that begins with a copy of `values` [N, D]; they may be memory-mapped from a file. `room` is for how
        many rows there is place before a copy."""
        room = max(ROOM, GROWTH * len(values)) if room is None else room
        table = cls(values.shape[1], room=max(room, len(values)), first_square=first_square)
        table.extend(values)
        return table

    @classmethod
    def over(cls, values: Tensor, size: int, *, first_square: float = FIRST_SQUARE) -> Table:
        """A table on memory that is there, [R, D], of which the first `size` rows are in use."""
        table = cls(values.shape[1], room=0, first_square=first_square)
        table._values, table._squares, table._size = values, reserve(len(values)), size
        table._squares[:size] = first_square
        return table

    def __len__(self) -> int:
        return self._size

    @property
    def values(self) -> Tensor:
        """float32 [N, D]"""
        return self._values[: self._size]

    @property
    def squares(self) -> Tensor:
        """float32 [N]"""
        return self._squares[: self._size]

    def extend(self, values: Floats) -> None:
        """Add rows behind the others. O(len(values)), but for the rare call that outgrows the room."""
        size = self._size + len(values)
        if size > len(self._squares):
            self._grow(max(ROOM, GROWTH * size))
        self._values[self._size : size].numpy()[...] = values
        self._squares[self._size : size] = self._first_square
        self._size = size

    def append(self, value: Floats) -> int:
        """Add one row [D]; its number."""
        self.extend(value[None])
        return self._size - 1

    def reset(self, rows: Rows, values: Floats) -> None:
        """Give rows new values, as if they had never moved."""
        self.values.numpy()[rows] = values
        self.squares.numpy()[rows] = self._first_square

    def gather(self, rows: Tensor) -> Tensor:
        """A copy of rows: int64 [T] -> [T, D], a leaf whose gradient `move` takes."""
        return self._values.index_select(0, rows).requires_grad_()

    def change(self, rows: Tensor, gradient: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        """Work out what a step would do to distinct `rows` [T] with their summed `gradient` [T, D]: the change [T, D]
        and the accumulators after it [T]. Nothing is changed yet, so that a step which is not finite can be dropped
        whole."""
        squares = self._squares.index_select(0, rows) + gradient.square().mean(dim=1)
        return gradient * (-rate * squares.rsqrt())[:, None], squares

    def apply(self, rows: Tensor, change: Tensor, squares: Tensor) -> None:
        """Do what `change` said."""
        self._values.index_add_(0, rows, change)
        self._squares.index_copy_(0, rows, squares)

    def move(self, rows: Tensor, gradient: Tensor, rate: float) -> None:
        """One step of row-wise Adagrad on distinct rows."""
        self.apply(rows, *self.change(rows, gradient, rate))

    def _grow(self, room: int) -> None:
        values, squares = reserve(room * self.dim).view(room, self.dim), reserve(room)
        values[: self._size], squares[: self._size] = self.values, self.squares
        self._values, self._squares = values, squares


def reserve(numbers: int) -> Tensor:
    """float32 zeros that take memory only where they are written."""
    size = max(4 * numbers, mmap.PAGESIZE)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
    memory = mmap.mmap(-1, size, flags=flags)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.from_numpy(np.frombuffer(memory, np.float32, numbers))


def distinct(rows: Rows, find: Distinct | None = None) -> tuple[Rows, Rows]:
    """int64 [B, H], -1 for none -> the distinct rows [U], and where each stands among them [B, H], -1 for none."""
    there = rows >= 0
    found, inverse = np.unique(rows[there], return_inverse=True) if find is None else find(rows[there])
    places = np.full(rows.shape, -1, np.int64)
    places[there] = inverse
    return found, places


class Distinct:
    """Finds the distinct rows among many without sorting: a mark per row of the table, written over each time."""

    def __init__(self, rows: int) -> None:
        self._marks = np.empty(max(rows, 1), np.int32)  # no mark is read that this call has not written

    def __call__(self, rows: Rows) -> tuple[Rows, Rows]:
        """int64 [K], none negative -> the distinct rows [U] in the order of their last places, and where each of the K
        stands among them [K]."""
        if len(rows) and len(self._marks) <= (most := int(rows.max())):
            self._marks = np.empty(2 * most, np.int32)
        places = np.arange(len(rows), dtype=np.int32)
        self._marks[rows] = places  # the last place of a row wins
        last = self._marks[rows]
        is_last = last == places
        return rows[is_last], (np.cumsum(is_last) - 1)[last]


def write_table(path: Path, values: Array) -> None:
    """One array in one file that can be memory-mapped."""
    with path.open("wb") as file:
        np.save(file, values, allow_pickle=False)
