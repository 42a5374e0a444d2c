"""Arrays that grow together: one row per item, capacity doubled when it runs out.

Appending a row is O(1) amortised, so a stream that brings new items never pays for the size of the catalogue.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from models.arrays import Array


class Columns:
    """Named arrays with a common number of rows. `columns["name"]` is a view of the rows in use, writable in place.

    A view is outdated by the next `append` or `trim`: take it again.
    """

    def __init__(self, **columns: Array) -> None:
        sizes = {len(array) for array in columns.values()}
        if len(sizes) != 1:
            raise ValueError(f"columns differ in length: { {name: len(a) for name, a in columns.items()} }")
        self._rows = sizes.pop()
        self._arrays = dict(columns)

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name][: self._rows]

    def append(self, **values: Any) -> int:
        """Add one row; every column needs a value. Returns its number."""
        if values.keys() != self._arrays.keys():
            raise ValueError(f"a row needs exactly the columns {sorted(self._arrays)}, got {sorted(values)}")
        if self._rows == self.capacity:
            self._resize(max(16, 2 * self._rows))
        row = self._rows
        self._rows += 1
        for name, value in values.items():
            self._arrays[name][row] = value
        return row

    def extend(self, rows: int, **values: Any) -> None:
        """Add rows: by column an array of so many, or one value for all."""
        if values.keys() != self._arrays.keys():
            raise ValueError(f"rows need exactly the columns {sorted(self._arrays)}, got {sorted(values)}")
        first, self._rows = self._rows, self._rows + rows
        if self._rows > self.capacity:
            self._resize(max(16, 2 * first, self._rows))
        for name, value in values.items():
            self._arrays[name][first : self._rows] = value

    def remove(self, row: int) -> None:
        """Let go of a row: the last one takes its place."""
        self._rows -= 1
        for array in self._arrays.values():
            array[row] = array[self._rows]

    def trim(self) -> None:
        """Give room back where most of it is not used."""
        if self._rows < self.capacity // 4:
            self._resize(max(16, 2 * self._rows))

    @property
    def capacity(self) -> int:
        return len(next(iter(self._arrays.values())))

    def _resize(self, capacity: int) -> None:
        kept = min(capacity, self.capacity)
        for name, array in self._arrays.items():
            resized = np.empty((capacity, *array.shape[1:]), array.dtype)
            resized[:kept] = array[:kept]
            self._arrays[name] = resized
