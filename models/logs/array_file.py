"""A one-column .npy file that grows, read and written in pieces: what is larger than memory is never mapped to sort it.

Numpy reserves room in the header of a .npy file for a longer first axis, so the number of rows is written last.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from models.arrays import Array


class ArrayFile:
    """Rows of one dtype and shape, at first `rows` of zeros. `append` adds at the end, `read` and `write` work anywhere
    before it."""

    def __init__(self, path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...] = (), rows: int = 0) -> None:
        self.path, self.dtype, self.shape = path, np.dtype(dtype), shape
        self._width, self._rows = int(np.prod(shape, dtype=np.int64)), rows  # numbers of a row
        self._file = path.open("w+b", buffering=0)
        self._write_header()
        self._first = self._file.tell()
        self._file.truncate(self._at(rows))

    def __len__(self) -> int:
        return self._rows

    def append(self, values: Array) -> None:
        start, self._rows = self._rows, self._rows + len(values)
        self.write(start, values)

    def spare(self) -> ArrayFile:
        """Make another one beside it, of as many rows."""
        return ArrayFile(self.path.with_suffix(".spare.npy"), self.dtype, self.shape, self._rows)

    def write(self, start: int, values: Array) -> None:
        self._file.seek(self._at(start))
        np.asarray(values, self.dtype).tofile(self._file)

    def read(self, start: int, stop: int) -> Array:
        rows = max(0, min(stop, self._rows) - start)
        self._file.seek(self._at(start))
        return np.fromfile(self._file, self.dtype, rows * self._width).reshape(rows, *self.shape)

    def close(self) -> None:
        """Write the number of rows; the file is an ordinary .npy file from now on."""
        if not self._file.closed:
            self._file.seek(0)
            self._write_header()
            self._file.close()

    def _at(self, row: int) -> int:
        """The place of a row in the file, in bytes."""
        return self._first + row * self._width * self.dtype.itemsize

    def _write_header(self) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (self._rows, *self.shape),
        }
        np.lib.format.write_array_header_1_0(self._file, header)


def mapped(path: Path, mode: Literal["r", "c"] = "r") -> Array:
    """The file's rows, memory-mapped and read-only. An empty file cannot be mapped and is read."""
    try:
        array: Array = np.load(path, mmap_mode=mode, allow_pickle=False)
    except ValueError:
        array = np.load(path, allow_pickle=False)
        if array.size:
            raise
    return array


def forget_pages(array: Array) -> None:
    """Let go of the memory that a mapped file's rows take; they are read again when they are needed. Nothing happens to
    an array that is none."""
    pages = getattr(array, "_mmap", None)
    if pages is not None and hasattr(mmap, "MADV_DONTNEED"):
        pages.madvise(mmap.MADV_DONTNEED)
