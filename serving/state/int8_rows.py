"""Rows in int8: what an item's inner product with a query can be at most, several times as fast as the product.

A row is int8 numbers times one scale. Its last coordinate, the popularity, is of another size than the others and
stays float32. The product with a query (serving/state/patches.py) is wrong in four places, and in none by more than:

- the row is rounded: |row - its int8 form| |query| (Cauchy and Schwarz; the first norm is taken when it is written);
- the query is rounded to bfloat16: 1 / 256 of |its int8 form| |query|;
- sums are in float32: a share of |its int8 form| |query| that grows with the width;
- the result is rounded to bfloat16: 1 / 256 of it.

So what `bounds` says is no estimate: no score lies above it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.arrays import Floats, Rows
from models.retrieval.table import reserve
from models.threads import in_parts
from serving.state.patches import ALIGNED, int8_product
from serving.state.shared_rows import map_numbers, write_numbers

FILES = ("mirror_int8", "mirror_scales", "mirror_sides")  # of `save`
LARGEST = 127
LEAST_SCALE = np.float32(1e-30)  # a smaller one would be no normal bfloat16; rows of smaller numbers are all rest
OF_BFLOAT16 = 2.0**-8  # what rounding to it changes at most, as a share
OF_FLOAT32 = 2.0**-24
SLACK = 1e-30  # beside the bounds: what is lost where a product is too small for its format
BLOCK = 131_072  # rows compared at once: what is computed of them stays in the processor's last cache
HALF = 16  # bits by which a bfloat16 is shorter than a float32
ROWS_OF_A_PART = 20_000  # compared by one thread, of rows that are compared by two


class Int8Rows:
    """Rows of D numbers, in room for so many. One writer, whose thread asks for bounds too."""

    def __init__(self, room: int, dim: int) -> None:
        self._width = max(1, -(-(dim - 1) // ALIGNED)) * ALIGNED
        self._use(reserve(-(-room * self._width // 4)), reserve(-(-room // 2)), reserve(2 * room))

    @classmethod
    def opened(cls, directory: Path, dim: int) -> Int8Rows:
        """What `save` has written, mapped."""
        opened = cls(0, dim)
        opened._use(*(map_numbers(directory / name) for name in FILES))
        return opened

    def save(self, directory: Path, size: int) -> None:
        """Write the first `size` rows to files that can be mapped, with the room that they have."""
        rows, scales, sides = (directory / name for name in FILES)
        room = self._sides.shape[1]
        write_numbers(rows, self._rows.size // 4, [(0, self._rows[:size])])
        write_numbers(scales, -(-len(self._scales) // 2), [(0, self._scales[:size])])
        write_numbers(sides, 2 * room, [(0, self._sides[0, :size]), (room, self._sides[1, :size])])

    def _use(self, rows: Tensor, scales: Tensor, sides: Tensor) -> None:
        """Work on these numbers, flat float32 as they are reserved."""
        self._tensors = (
            rows.view(torch.int8).view(-1, self._width),
            scales.view(torch.bfloat16),
            sides.view(2, -1),  # error as a share of the query's norm, last coordinate
        )
        self._rows = self._tensors[0].numpy()
        self._scales, self._sides = self._tensors[1].view(torch.int16).numpy(), self._tensors[2].numpy()

    def write(self, rows: Rows, vectors: Floats, popularity: Floats) -> None:
        """Set rows [N] to vectors float32 [N, D]. Their last coordinates may be other ones than the popularity: such
        as put a row behind all others."""
        numbers, scales, errors = in_int8(vectors[:, :-1], popularity)
        self._rows[rows, : numbers.shape[1]] = numbers
        self._scales[rows] = scales.view(np.int32) >> HALF
        self._sides[0, rows], self._sides[1, rows] = errors, vectors[:, -1]

    def set_last(self, row: int, value: np.float32) -> None:
        """Set the last coordinate alone, to the popularity that was written or to what puts the row behind others."""
        self._sides[1, row] = value

    def grown(self, room: int, size: int) -> Int8Rows:
        """The first `size` rows, in more room."""
        larger = Int8Rows(room, 1 + self._width)
        larger._rows[:size], larger._scales[:size] = self._rows[:size], self._scales[:size]
        larger._sides[:, :size] = self._sides[:, :size]
        return larger

    def bounds(self, queries: Floats, size: int) -> Floats:
        """What the inner products of queries [B, D] with the first `size` rows are at most, but for SLACK: [B, N]."""
        numbers, last = queries[:, :-1], queries[:, -1]
        rounded = torch.zeros(len(queries), self._width, dtype=torch.bfloat16)
        rounded[:, : numbers.shape[1]] = torch.from_numpy(np.ascontiguousarray(numbers))
        norms = np.maximum(np.linalg.norm(numbers.astype(np.float64), axis=1), np.abs(last)) * (1 + 4 * OF_FLOAT32)
        sides = torch.from_numpy(np.stack((norms, last), axis=1).astype(np.float32))  # [B, 2]
        found = torch.empty(len(queries), size)
        rows, scales, rest = self._tensors

        def compare(part: slice) -> None:
            for first in range(part.start, part.stop, BLOCK):
                block = slice(first, min(first + BLOCK, part.stop))
                product = int8_product(rounded, rows[block], scales[block]).float()
                product.add_(product.abs(), alpha=OF_BFLOAT16)
                found[:, block] = product.addmm_(sides, rest[:, block])

        in_parts(compare, size, ROWS_OF_A_PART)
        return np.asarray(found.numpy())


def in_int8(numbers: Floats, popularity: Floats) -> tuple[Floats, Floats, Floats]:
    """Rows [N, D - 1] and their popularities [N] -> whole numbers of int8 [N, D - 1]; their scales [N], which are
    numbers of bfloat16; and by how much a product may be wrong [N], as a share of the query's norm."""
    exact_scales = np.maximum(np.abs(numbers).max(axis=1, initial=0.0) * np.float32(1 / LARGEST), LEAST_SCALE)
    scales = ((exact_scales.view(np.int32) >> HALF) + 1 << HALF).view(np.float32)  # rounded up, so that all fits
    exact = numbers * (1 / scales)[:, None]
    rows = np.rint(exact)
    rest, size = _norms(exact - rows), _norms(rows)  # in scales, so that no square is too small
    rounding = OF_FLOAT32 * (8 + 4 * numbers.shape[1])  # of the sums here, of the product's, and of the score's own
    errors = scales * (rest + (OF_BFLOAT16 + rounding) * size) * (1 + rounding)
    return rows, scales, errors + 8 * OF_FLOAT32 * np.abs(popularity)


def _norms(rows: Floats) -> Floats:
    return np.asarray(np.sqrt(np.einsum("nd,nd->n", rows, rows)))
