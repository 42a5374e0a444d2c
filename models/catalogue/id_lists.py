"""For each row a short list of names, as codes in one flat array: channels, topics, whatever id columns there are.

A list that grows moves to the end of the array and leaves its old place unused; most lists never change. Rows that were
never set have no codes, so a column that comes late costs nothing for the rows before it.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import polars as pl

from models.arrays import Array, Rows
from models.catalogue.columns import Columns
from models.catalogue.vocabulary import Vocabulary


class IdLists:
    """`names[code]` is the name of a code; codes start at 1, 0 means none."""

    def __init__(self) -> None:
        self._vocabulary = Vocabulary([""])
        self._rows = Columns(start=np.empty(0, np.int64), count=np.empty(0, np.int32))
        self._flat = Columns(code=np.empty(0, np.int32))

    @property
    def names(self) -> list[str]:
        return self._vocabulary.names

    def code_of(self, name: str) -> int:
        """0 for a name that no row has had."""
        return max(0, self._vocabulary.known_code(name))

    def set(self, row: int, names: Iterable[str]) -> None:
        """Give a row these names (distinct ones, empty ones passed over) in place of those it had."""
        codes = tuple(dict.fromkeys(self._vocabulary.code(name) for name in names if name))
        if not codes and row >= len(self._rows):
            return
        while len(self._rows) <= row:
            self._rows.append(start=0, count=0)
        starts, counts = self._rows["start"], self._rows["count"]
        if len(codes) > counts[row]:
            starts[row] = len(self._flat)
            for code in codes:
                self._flat.append(code=code)
        else:
            self._flat["code"][starts[row] : starts[row] + len(codes)] = codes
        counts[row] = len(codes)

    def set_all(self, rows: Rows, names: pl.Series) -> None:
        """The same for many rows at once, int64 [N], distinct: `names` has a list of text for each, or null."""
        counts, codes = self._coded(names)
        last = int(rows[counts > 0].max(initial=-1))
        if last >= len(self._rows):
            self._rows.extend(last + 1 - len(self._rows), start=0, count=0)
        here = rows < len(self._rows)  # the others have no names, and had none
        rows, counts = rows[here], counts[here]
        grows = counts > self._rows["count"][rows]
        ends = len(self._flat) + np.cumsum(counts[grows])
        self._rows["start"][rows[grows]] = ends - counts[grows]
        self._flat.extend(int(counts[grows].sum()), code=0)
        self._flat["code"][_places(self._rows["start"][rows], counts)] = codes
        self._rows["count"][rows] = counts

    def names_of(self, row: int) -> tuple[str, ...]:
        if row >= len(self._rows):
            return ()
        start, count = self._rows["start"][row], self._rows["count"][row]
        return tuple(self.names[code] for code in self._flat["code"][start : start + count].tolist())

    def lists(self, rows: int) -> pl.Series:
        """The names of rows 0 to `rows` - 1, a list of text for each."""
        known = min(rows, len(self._rows))
        starts, counts = self._rows["start"][:known], self._rows["count"][:known]
        codes = self._flat["code"][_places(starts, counts)]
        sizes = np.r_[counts, np.zeros(rows - known, np.int64)]
        return lists_of(sizes, pl.Series(self.names).gather(codes))

    def first(self, rows: Rows) -> npt.NDArray[np.int32]:
        """int32, in the shape of `rows`: the first code of each, 0 for none; rows below 0 have none."""
        return self.first_of(rows, 1)[..., 0]

    def first_of(self, rows: Rows, most: int) -> npt.NDArray[np.int32]:
        """int32, in the shape of `rows` and [T] behind it: the first `most` codes of each, 0 where there are fewer."""
        codes = np.zeros((*np.shape(rows), most), np.int32)
        if not len(self._flat):
            return codes
        known = (rows >= 0) & (rows < len(self._rows))
        safe = np.where(known, rows, 0)
        starts, counts = self._rows["start"][safe], np.where(known, self._rows["count"][safe], 0)
        for column in range(most):
            there = counts > column
            if not there.any():
                break
            codes[..., column] = np.where(there, self._flat["code"][np.where(there, starts + column, 0)], 0)
        return codes

    def table(self, rows: int, most: int) -> Rows:
        """int64 [N, T]: the first `most` codes of rows 0 to `rows` - 1, 0 where there are fewer; T is at least 1."""
        width = max(1, min(most, int(self._rows["count"][:rows].max(initial=0))))
        return self.first_of(np.arange(rows), width).astype(np.int64)

    def _coded(self, names: pl.Series) -> tuple[Rows, npt.NDArray[np.int32]]:
        """Count the distinct names of each list, int64 [N], and number them all, list by list: int32 [K]."""
        flat = pl.DataFrame({"row": np.arange(len(names)), "name": names}).explode("name")
        flat = flat.filter(pl.col("name") != "")
        if not len(flat):
            return np.zeros(len(names), np.int64), np.zeros(0, np.int32)
        coded = flat.select("row", code=pl.Series(self._vocabulary.codes(flat["name"])))
        coded = coded.unique(maintain_order=True)
        return np.bincount(coded["row"].to_numpy(), minlength=len(names)), coded["code"].to_numpy()


def lists_of(sizes: Array, names: pl.Series) -> pl.Series:
    """`names` cut into lists, `sizes` [N] of them: polars makes lists of Python's one at a time."""
    flat = pl.DataFrame({"row": np.repeat(np.arange(len(sizes)), sizes), "names": names})
    named = flat.group_by("row", maintain_order=True).agg("names")
    everything = pl.DataFrame({"row": np.arange(len(sizes))}).join(named, on="row", how="left", maintain_order="left")
    return everything["names"].fill_null([])


def _places(starts: Rows, counts: Array) -> Rows:
    """int64 [K]: the numbers from each start on, `counts` of them, one list after the other."""
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(counts.sum())
