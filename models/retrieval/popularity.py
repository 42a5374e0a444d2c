"""The live popularity of each item: log of a smoothed, decayed share of the watches, counted in events.

It is one coordinate of the item's vector, learnt *around* (a fixed offset of the softmax) and updated from the stream
without gradient. Decay runs in events, not seconds, so a quiet night does not flatten it. With c the decayed count, p
the all-time share and m the weight of p: q = (c + m p) / (sum c + m).
"""

from __future__ import annotations

import math

import numpy as np

from models.arrays import Array, Doubles, Floats, Integers, Rows
from models.catalogue.columns import Columns

SNAPSHOT_EVENTS = 1000  # watches between two snapshots
SNAPSHOT_CELLS = 50_000_000  # most numbers in all snapshots together
AT_ONCE = 100_000
HALF_LIVES = (500.0, 1000.0, 2000.0, 4000.0, 8000.0, 16_000.0, 32_000.0, 64_000.0)
HALF_LIFE = 8000.0  # where there are no validation days
MOST_WALKED = 10_000  # watches of the validation days that are walked through, the newest
WALK_BLOCK = 500
NEVER = math.inf  # the half-life of what does not decay: where a log has an order only
NEAR_BEST = 0.01  # of a mean log rank: one place in a hundred
PRIOR_SHARE = 1 / 8  # m in half-lives: a twelfth of what all decayed counts add up to


class Popularity:
    """Counts of all items at an event clock. A count is stored as of the item's last watch and decays when read."""

    def __init__(self, half_life_events: float, counts: Doubles, totals: Doubles, touched: Rows, *, clock: int) -> None:
        """Per item: the count as of the clock at its last watch, all watches ever, that clock."""
        self.half_life_events = half_life_events
        self.clock = clock
        self._columns = Columns(count=counts, total=totals, touched=touched)

    @classmethod
    def empty(cls, items: int, half_life_events: float) -> Popularity:
        return cls(half_life_events, np.zeros(items), np.zeros(items), np.zeros(items, np.int64), clock=0)

    def copy(self) -> Popularity:
        columns = (column.copy() for column in self.arrays().values())
        return Popularity(self.half_life_events, *columns, clock=self.clock)

    @property
    def prior_watches(self) -> float:
        """m: watches' worth of the all-time share; one for each item where nothing decays."""
        return float(len(self)) if self.half_life_events == NEVER else PRIOR_SHARE * self.half_life_events

    def __len__(self) -> int:
        return len(self._columns)

    def arrays(self) -> dict[str, Array]:
        return {name: self._columns[name] for name in ("count", "total", "touched")}

    def totals(self) -> Doubles:
        """float64 [N]: all watches ever."""
        return np.asarray(self._columns["total"])

    def touched(self, rows: Rows | slice) -> Rows:
        """int64 [N]: the clock at each row's last watch."""
        return np.asarray(self._columns["touched"][rows])

    def append(self) -> int:
        return self._columns.append(count=0.0, total=0.0, touched=self.clock)

    def add(self, rows: Rows) -> None:
        """Count one watch per entry, in order; a row may occur more than once. O(len(rows))."""
        after = np.arange(len(rows), 0, -1) - 1  # watches that follow in this call
        self.clock += len(rows)
        distinct, inverse = np.unique(rows, return_inverse=True)
        self._columns["count"][distinct] = self.counts(distinct) + np.bincount(inverse, self._decay(after))
        self._columns["total"][distinct] += np.bincount(inverse)
        self._columns["touched"][distinct] = self.clock

    def restore(self, row: int, count: float, total: float, touched: int) -> None:
        """Put back a row as it was published; the clock is at least its last watch."""
        self._columns["count"][row], self._columns["total"][row] = count, total
        self._columns["touched"][row] = touched
        self.clock = max(self.clock, touched)

    def stored(self, rows: Rows) -> tuple[Array, ...]:
        """count, total, touched of each row [R]: what `restore` takes."""
        return tuple(column[rows] for column in self.arrays().values())

    def counts(self, rows: Rows | slice = slice(None)) -> Doubles:
        """float64 [N]: decayed to the clock."""
        columns = self._columns
        return np.asarray(columns["count"][rows] * self._decay(self.clock - columns["touched"][rows]))

    def prior(self, rows: Rows | slice = slice(None)) -> Doubles:
        """float64 [N]: m p, with one watch granted to each item so that the logarithm is finite."""
        return np.asarray(self.prior_watches * (self._columns["total"][rows] + 1) / (self.clock + len(self)))

    def log_share(self, rows: Rows | slice = slice(None)) -> Floats:
        """float32 [N]: log q."""
        everything = decayed_sum(self.clock, self.half_life_events) + self.prior_watches
        return np.log((self.counts(rows) + self.prior(rows)) / everything).astype(np.float32)

    def _decay(self, events: Rows) -> Doubles:
        return np.exp2(-events / self.half_life_events)


def decayed_sum(events: int, half_life_events: float) -> float:
    """The sum of all decayed counts after `events` watches."""
    if half_life_events == NEVER:
        return float(events)
    keep = 2.0 ** (-1 / half_life_events)
    return float((1 - keep**events) / (1 - keep))


class Snapshots:
    """log q of all items after 0, `every`, 2 `every`... watches: what an example's popularity was before it.

    Row k // every is older than watch k: an example never sees its own watch in its offset. Where there are many items
    snapshots are further apart, so that they fit into a bounded memory. Where popularity never decays there is one, of
    all of them: a constant of each item, which says nothing of an example."""

    def __init__(self, items: Integers, size: int, half_life_events: float, *, every: int = SNAPSHOT_EVENTS) -> None:
        """`items` [N]: rows watched, in order of time."""
        if half_life_events == NEVER:
            self.every = max(1, len(items))
            self._table = popularity_of(items, size, half_life_events).log_share()[None]
            return
        self.every = max(every, -(-len(items) * size // SNAPSHOT_CELLS))
        state = Popularity.empty(size, half_life_events)
        self._table = np.empty((-(-len(items) // self.every), size), np.float32)  # [K, items]
        for number, start in enumerate(range(0, len(items), self.every)):
            self._table[number] = state.log_share()
            state.add(items[start : start + self.every].astype(np.int64))

    def offsets(self, rows: Rows, targets: Rows, others: Rows, minus: Floats | float = 0.0) -> tuple[Floats, Floats]:
        """rows int64 [B]: places in the order of time; targets [B] and others [S]: items. -> log q of the targets [B]
        and of the others less `minus` [S], [B, S], before each row. Costs in proportion to the rows asked for, not to
        the snapshots that there are."""
        which = rows // self.every
        used, at = np.unique(which, return_inverse=True)
        cells = self._table.ravel().take((used * self._table.shape[1])[:, None] + others)
        cells -= minus
        return self._table[which, targets], cells[at]


def popularity_of(items: Integers, size: int, half_life_events: float) -> Popularity:
    """The counts after all of `items`, without keeping what was before."""
    state = Popularity.empty(size, half_life_events)
    for start in range(0, len(items), AT_ONCE):
        state.add(items[start : start + AT_ONCE].astype(np.int64))
    return state


def choose_half_life(items: Integers, size: int, *, since: int, tolerance: float = NEAR_BEST) -> float:
    """The slowest half-life whose popularity foresees the watches from `since` on about as well as the best one does,
    walked through as a live system would: its mean log rank may be `tolerance` worse. Beside a personal part the slower
    finds more in depth. `items` [N]: rows watched, in order of time."""
    walked = items[max(since, len(items) - MOST_WALKED) :].astype(np.int64)
    first = len(items) - len(walked)
    found = {}
    for half_life_events in HALF_LIVES:
        state, log_ranks = popularity_of(items[:first], size, half_life_events), []
        for start in range(0, len(walked), WALK_BLOCK):
            block = walked[start : start + WALK_BLOCK]
            shares = np.sort(state.log_share())
            log_ranks.append(np.log1p(size - np.searchsorted(shares, state.log_share(block), side="right")))
            state.add(block)
        found[half_life_events] = float(np.concatenate(log_ranks).mean()) if log_ranks else 0.0
    best = min(found.values())
    return max(half_life_events for half_life_events, mean in found.items() if mean <= best + tolerance)
