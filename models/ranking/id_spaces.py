"""The ids that the ranker knows: of each space the most frequent ones in clicked impressions (paper section 4.1).

Whatever else there is has code 0, whose embedding is zero. An embedding's width grows with the logarithm of its space.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from models.arrays import Rows
from models.ranking.ranking_batch import Codes

WIDTH = 0.6  # numbers of an embedding for each doubling of its space


class IdSpaces:
    """`names[space][code - 1]` is the name of a code."""

    def __init__(self, names: Mapping[str, Sequence[str]]) -> None:
        self.names = {space: list(known) for space, known in names.items()}
        self._code_of = {space: {name: code for code, name in enumerate(known, 1)} for space, known in names.items()}
        self._seen: dict[str, _Translation] = {}

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each embedding, code 0 included."""
        return {space: len(known) + 1 for space, known in self.names.items()}

    def codes(self, space: str, named: Codes) -> Rows:
        """Our codes, in the shape of `named.codes`. A list of names that grows is looked up once per name."""
        seen = self._seen.get(space)
        if seen is None or seen.names is not named.names:
            seen = self._seen[space] = _Translation(named.names, self._code_of.get(space, {}), named.first)
        return seen.table()[named.codes]


class _Translation:
    """From another numbering of names to ours, extended as that grows."""

    def __init__(self, names: list[str], code_of: Mapping[str, int], first: int) -> None:
        self.names, self._code_of, self._first = names, code_of, first
        self._table: Rows = np.zeros(max(1, first), np.int64)
        self._looked_up = 0

    def table(self) -> Rows:
        if self._looked_up < len(self.names):
            new = self.names[self._looked_up :]
            codes = np.fromiter((self._code_of.get(name, 0) for name in new), np.int64, len(new))
            start = self._first + self._looked_up
            if start + len(new) > len(self._table):
                grown = np.zeros(2 * (start + len(new)), np.int64)
                grown[:start] = self._table[:start]
                self._table = grown
            self._table[start : start + len(new)] = codes
            self._looked_up += len(new)
        return self._table


def width_of(size: int) -> int:
    """The width of an embedding of so many ids: "approximately proportional to the logarithm" of them."""
    return max(2, round(WIDTH * float(np.log2(max(2, size)))))


def most_frequent(counts: Rows, names: Iterable[str], *, most: int, least: int) -> list[str]:
    """The `most` names that occur most, none less than `least` times; ties in their order, and no empty one. counts
    int64 [N]."""
    known = list(names)
    order = [code for code in np.argsort(-counts, kind="stable").tolist() if known[code]][:most]
    return [known[code] for code in order if counts[code] >= least]
