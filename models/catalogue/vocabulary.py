"""Names numbered in the order in which they come: users, items, channels, regions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl


class Vocabulary:
    """`names[code]` is the name of a code."""

    def __init__(self, names: list[str] | None = None) -> None:
        self.names = [] if names is None else names
        self._code_of = {name: code for code, name in enumerate(self.names)}

    def codes(self, column: pl.Series) -> npt.NDArray[np.int32]:
        """int32 [B]; new names get the next numbers."""
        distinct = column.unique(maintain_order=True)
        codes = [self.code(name) for name in distinct]
        coded = column.replace_strict(distinct, pl.Series(codes, dtype=pl.Int32), return_dtype=pl.Int32)
        return coded.to_numpy()

    def known_codes(self, column: pl.Series) -> npt.NDArray[np.int32]:
        """int32 [B]; -1 for a name that is not there."""
        distinct = column.unique()
        codes = pl.Series([self.known_code(name) for name in distinct], dtype=pl.Int32)
        return column.replace_strict(distinct, codes, return_dtype=pl.Int32).to_numpy()

    def code(self, name: str) -> int:
        """The number of a name, its own from now on."""
        code = self._code_of.get(name)
        if code is None:
            code = self._code_of[name] = len(self.names)
            self.names.append(name)
        return code

    def known_code(self, name: str) -> int:
        """-1 for a name that is not there."""
        return self._code_of.get(name, -1)
