"""A one-column .npy file that grows, read and written in pieces: what is larger than memory is never mapped to sort it.

Numpy reserves room in the header of a .npy file for a longer first axis, so the number of rows is written last.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from models.arrays import Array


class ArrayFile:
    """Rows of one dtype and shape. `append` adds at the end, `read` and `write` work anywhere before it."""

    def __init__(self, path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...] = ()) -> None:
        self.path, self.dtype, self.shape = path, np.dtype(dtype), shape
        self._row_bytes = self.dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        self._rows = 0
        self._file = path.open("w+b", buffering=0)
        self._write_header()
        self._first = self._file.tell()

    def __len__(self) -> int:
        return self._rows

    def append(self, values: Array) -> None:
        start, self._rows = self._rows, self._rows + len(values)
        self.write(start, values)

    def extend(self, rows: int) -> None:
        """Make it `rows` long; new rows are zeros."""
        self._rows = rows
        os.truncate(self._file.fileno(), self._first + rows * self._row_bytes)

    def write(self, start: int, values: Array) -> None:
        left = np.ascontiguousarray(values, self.dtype).data.cast("B") if values.size else memoryview(b"")
        at = self._first + start * self._row_bytes
        while left:  # one call writes 2 GiB at most
            done = os.pwrite(self._file.fileno(), left, at)
            left, at = left[done:], at + done

    def read(self, start: int, stop: int) -> Array:
        stop = min(stop, self._rows)
        values = np.empty((max(0, stop - start), *self.shape), self.dtype)
        left = values.data.cast("B") if values.size else memoryview(b"")
        at = self._first + start * self._row_bytes
        while left:
            done = os.preadv(self._file.fileno(), [left], at)
            if not done:
                raise OSError(f"{self.path}: ends before row {stop}")
            left, at = left[done:], at + done
        return values

    def close(self) -> None:
        """Write the number of rows; the file is an ordinary .npy file from now on."""
        if not self._file.closed:
            self._file.seek(0)
            self._write_header()
            self._file.close()

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
