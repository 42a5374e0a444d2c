"""Decayed sums over closed impressions, by item, channel, topic and all together, read at any moment for many at once.

A row is one scope's id in one part (a partition of the stream, or a release's own past) as of its own time; reading
decays each part to the moment asked for and adds the parts up in their order, so that the same rows always give the
same numbers to the bit.

Of the parts of an id only those take memory that were set, and up to as many again: a new item is shown to the users of
few partitions, an old one for months to nobody. They stand side by side, in the order of the parts, in a place for one,
two, four or more of them.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any

import numpy as np

from models.arrays import Doubles, Rows
from models.catalogue.columns import Columns
from models.ranking.ranking_batch import COLUMNS
from models.ranking.ranking_examples import CAP_S

# In `calibration` the last column holds expected seconds instead of completions.
SCOPES = ("item", "channel", "topic", "length", "all", "calibration")
MOST_FACTOR = 4.0  # a calibration beyond it is no calibration
PRIOR_S = 2000.0  # seconds, expected and watched, that a version whose cap is CAP_S begins with
WIDTHS = tuple(2**power for power in range(31))
NO_PART = 2**31 - 1
NOTHING: dict[str, float] = {"sums": 0.0, "as_of_ms": 0, "part": NO_PART}  # of what was not set


class ItemStatistics:
    """`parts`: how many rows of one id may be set; `half_life_ms` of what they count."""

    def __init__(self, half_life_ms: float, parts: int = 1) -> None:
        self.half_life_ms, self._parts = half_life_ms, parts
        self._tables = {scope: _Table(parts) for scope in SCOPES}

    def set(self, scope: str, name: str, part: int, as_of_ms: int, sums: Sequence[float]) -> None:
        """Take over a row, in place of what was there. Raises ValueError for a part or scope that there is not."""
        if scope not in self._tables or not 0 <= part < self._parts:
            raise ValueError(f"there are no statistics of {scope!r} in part {part}; parts: {self._parts}")
        self._tables[scope].set(name, part, as_of_ms, sums)

    def move(self, by_ms: int) -> None:
        """Have all that was set be of so much later: the end of an old log is the present of who serves from it."""
        for table in self._tables.values():
            table.move(by_ms)

    def remove(self, scope: str, name: str, part: int) -> None:
        """Forget a row; an id of which nothing is left takes no room. What is not known is passed over."""
        if scope in self._tables:
            self._tables[scope].remove(name, part)

    def rows(self) -> Iterator[tuple[str, str, int, int, list[float]]]:
        """Scope, name, part, time and sums of all that was set."""
        for scope, table in self._tables.items():
            yield from ((scope, *row) for row in table.rows())

    def at(self, scope: str, names: Iterable[str], now_ms: Rows) -> Doubles:
        """float64 [N, 4]: impressions, watches, seconds and completions of each, zeros for what is not known.

        now_ms int64 [N]."""
        return self._tables[scope].at(names, now_ms, self.half_life_ms)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows, without the room that they can grow into."""
        return sum(table.nbytes for table in self._tables.values())

    def factor(self, version: str, now_ms: int, cap_s: float = CAP_S) -> float:
        """Watched over expected seconds of a version's closed impressions, recent ones most: what expectations are to
        be multiplied by. 1 for a version of which nothing is known yet; `cap_s` is its ranker's."""
        _, _, watched_s, expected_s = self.at("calibration", [version], np.array([now_ms]))[0].tolist()
        prior_s = prior_of(cap_s)
        factor = (watched_s + prior_s) / (expected_s + prior_s)
        return float(min(max(factor, 1 / MOST_FACTOR), MOST_FACTOR))


def prior_of(cap_s: float) -> float:
    """Return the seconds that a version begins with: a single watch may be as long as its cap."""
    return PRIOR_S * max(1.0, cap_s / CAP_S)


class _Table:
    """The rows of one scope. An id has a place in the columns of the least width that takes its parts."""

    def __init__(self, parts: int) -> None:
        self._widths = [*(width for width in WIDTHS if width < parts), parts]
        self._columns = [
            Columns(
                sums=np.zeros((0, width, COLUMNS)),
                as_of_ms=np.zeros((0, width), np.int64),
                part=np.zeros((0, width), np.int32),  # ascending, NO_PART behind the last
            )
            for width in self._widths
        ]
        self._names: list[list[str]] = [[] for _ in self._widths]  # of the rows
        self._place_of: dict[str, int] = {}  # the row, times the number of widths, plus which of them it is

    def set(self, name: str, part: int, as_of_ms: int, sums: Sequence[float]) -> None:
        place = self._place_of.get(name)
        if place is None:
            self._take(sys.intern(name), 0, sums=sums, as_of_ms=as_of_ms, part=part)
            return
        columns, row = self._at(place)
        parts = columns["part"][row]
        at = 0 if parts[0] == part else int(parts.searchsorted(part))
        if at == len(parts) or parts[at] != part:
            columns, row = self._insert(place, at, part)
        columns["sums"][row, at], columns["as_of_ms"][row, at] = sums, as_of_ms

    def move(self, by_ms: int) -> None:
        for columns in self._columns:
            as_of_ms = columns["as_of_ms"]
            as_of_ms[as_of_ms > 0] += by_ms

    def remove(self, name: str, part: int) -> None:
        place = self._place_of.get(name)
        if place is None:
            return
        columns, row = self._at(place)
        parts = columns["part"][row]
        at = int(parts.searchsorted(part))
        if at == len(parts) or parts[at] != part:
            return
        for column, nothing in NOTHING.items():
            values = columns[column][row]
            values[at:-1] = values[at + 1 :].copy()
            values[-1] = nothing
        known, kind = int(np.count_nonzero(parts != NO_PART)), place % len(self._widths)
        if not known:
            del self._place_of[name]
            self._give_back(place)
        elif kind and known <= max(1, self._widths[kind - 1] // 2):  # half: it shall not go to and fro
            self._move(place, bisect_left(self._widths, known))

    def rows(self) -> Iterator[tuple[str, int, int, list[float]]]:
        for name, place in self._place_of.items():
            columns, row = self._at(place)
            for at in np.flatnonzero(columns["part"][row] != NO_PART).tolist():
                part, as_of_ms, sums = (columns[each][row, at] for each in ("part", "as_of_ms", "sums"))
                yield name, int(part), int(as_of_ms), sums.tolist()

    def at(self, names: Iterable[str], now_ms: Rows, half_life_ms: float) -> Doubles:
        places = np.fromiter(map(self._place_of.get, names, repeat(-1)), np.int64, len(now_ms))
        row, kind = np.divmod(places, len(self._widths))
        total = np.zeros((len(now_ms), COLUMNS))
        for number, columns in enumerate(self._columns):
            asked = np.flatnonzero((kind == number) & (places >= 0))  # [M]
            if not len(asked):
                continue
            own = row[asked]
            sums, as_of_ms = columns["sums"][own], columns["as_of_ms"][own]  # [M, W, 4], [M, W]
            decay = np.exp2(-(now_ms[asked, None] - as_of_ms) / half_life_ms)
            of_asked = np.zeros((len(asked), COLUMNS))
            for at in range(self._widths[number]):
                of_asked += sums[:, at] * decay[:, at, None]
            total[asked] = of_asked
        return total

    @property
    def nbytes(self) -> int:
        return sum(columns[each].nbytes for columns in self._columns for each in NOTHING)

    def _at(self, place: int) -> tuple[Columns, int]:
        row, kind = divmod(place, len(self._widths))
        return self._columns[kind], row

    def _insert(self, place: int, at: int, part: int) -> tuple[Columns, int]:
        """Make room for a part among those of an id; where they are then."""
        columns, row = self._at(place)
        if columns["part"][row, -1] != NO_PART:
            columns, row = self._move(place, place % len(self._widths) + 1)
        if columns["part"][row, at] != NO_PART:
            for column in NOTHING:
                values = columns[column][row]
                values[at + 1 :] = values[at:-1].copy()
        columns["part"][row, at] = part
        return columns, row

    def _move(self, place: int, kind: int) -> tuple[Columns, int]:
        """Move an id to a width that takes all its parts; where it is then."""
        columns, row = self._at(place)
        into, at = self._take(self._names[place % len(self._widths)][row], kind, **NOTHING)
        size = min(columns["part"].shape[1], self._widths[kind])
        for column in NOTHING:
            into[column][at, :size] = columns[column][row, :size]
        self._give_back(place)
        return into, at

    def _take(self, name: str, kind: int, **values: Any) -> tuple[Columns, int]:
        """A row of a width, which is the id's from now on."""
        columns = self._columns[kind]
        row = columns.append(**values)
        self._names[kind].append(name)
        self._place_of[name] = row * len(self._widths) + kind
        return columns, row

    def _give_back(self, place: int) -> None:
        """Let go of a row; the last one takes its place."""
        kind = place % len(self._widths)
        columns, row = self._at(place)
        columns.remove(row)
        columns.trim()
        name = self._names[kind].pop()
        if row < len(columns):
            self._names[kind][row] = name
            self._place_of[name] = place
