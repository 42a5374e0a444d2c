"""Trending, the counts of what is watched now: exponentially decayed counts of completed watches per item, everybody's
and those of the most watched regions, by several half-lives and of all time (streams.trending.back_off makes one order
of them). Pure; time is the events' own, so the end of an old log is as good a present as any.

Counts are kept on a scale that moves with time (a watch at time t weighs 2^((t - origin) / half-life)), so that decay
costs nothing per event: an item's counts change only when it is watched.

Each scope is published by itself and carries the newest offset that is counted in it, so that it goes on from there
whatever became of the others: of the records of one batch any part may have reached the topic when a worker dies.

Regions come from whoever sends watches, so they are bounded: at most `regions` are listed (published), some twice as
many wait for a place with what was counted of them. One that waits takes a free place, or that of the least watched one
when it is watched twice as much. So the places go to the most watched, up to that factor, and with each change of hands
a place's weight doubles: who sends names at random wins no more than one change per place and half-life, and must send
twice the watches for each beyond. What waits is not published, and a restart forgets it.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from heapq import nlargest
from math import inf, log2
from urllib.parse import quote

import numpy as np

from models.arrays import Doubles, Rows
from streams.messages import Trending
from streams.trending.back_off import best_first, counts_by, shares_of

GLOBAL = "global"  # the scope that counts everybody
REGION = "region/"  # what the scopes of regions begin with
_LONGEST_NAME = 64
# Beyond this exponent the scale is moved: float64 has room for 1,023 doublings.
_MOST_DOUBLINGS = 500.0


def region_scope(region: str) -> str:
    """The scope of a context's region: `region/de`. What is no plain name is escaped as in a URL, what is long hashed:
    a client chose it, and it becomes a key."""
    name = quote(region[: _LONGEST_NAME + 1], safe="")
    if len(name) > _LONGEST_NAME:
        name = "#" + blake2b(region.encode(), digest_size=16).hexdigest()  # no escaped name begins so
    return REGION + name


class DecayedCounts:
    """Counts of items, decayed by each of several half-lives and of all time. Holds at most twice `room` items; those
    with the least share make way."""

    def __init__(self, half_lives_s: Sequence[float], room: int) -> None:
        """`half_lives_s`: the fastest first; all time, which never decays, is added behind them."""
        self._half_lives_s = (*half_lives_s, inf)
        self._per_ms = 1 / (1000 * np.array(self._half_lives_s))  # [L] halvings; 0 of all time
        self._room = room
        self._row_of: dict[str, int] = {}
        self._scaled = np.zeros((2 * room + 1, len(self._per_ms)))  # [R, L]
        self._totals = np.zeros(len(self._per_ms))  # [L] of all watches, also of items that have made way
        self._origin_ms = 0
        self.as_of_ms = 0
        self.offset = -1  # newest source offset counted

    @property
    def level(self) -> float:
        """The amount that is watched here: log2 of all counts by the fastest half-life, as if decay had begun at time
        0. Of two scopes that decay alike, the one with the higher level has the higher count at any time."""
        total = self._totals[0]
        return float(log2(total) + self._origin_ms * self._per_ms[0]) if total > 0 else -inf

    def add(self, item_id: str, event_ms: int, offset: int) -> bool:
        """Count one watch; False when its offset was counted before."""
        if offset <= self.offset:
            return False
        self.offset = offset
        if not self._row_of:
            self._origin_ms = event_ms
        if (event_ms - self._origin_ms) * self._per_ms[0] > _MOST_DOUBLINGS:
            self._move_origin(event_ms)
        weights = np.exp2((event_ms - self._origin_ms) * self._per_ms)
        self._scaled[self._row_of.setdefault(item_id, len(self._row_of))] += weights
        self._totals += weights
        self.as_of_ms = max(self.as_of_ms, event_ms)
        if len(self._row_of) > 2 * self._room:
            self._make_way()
        return True

    def top(self, limit: int) -> list[tuple[str, float]]:
        """The best items and their counts by the fastest half-life, as of `as_of_ms`."""
        rows, counts = self._best(limit)
        return list(zip(self._names(rows), counts[:, 0].tolist(), strict=True))

    def message(self, scope: str, partition: int, limit: int) -> Trending:
        rows, counts = self._best(limit)
        fastest, *slower = self._half_lives_s
        return Trending(
            scope,
            partition,
            self.as_of_ms,
            fastest,
            tuple(zip(self._names(rows), counts[:, 0].tolist(), strict=True)),
            self.offset,
            tuple(slower[:-1]),
            tuple(map(tuple, counts[:, 1:].tolist())),
            tuple((self._totals / self._now()).tolist()),
        )

    def restore(self, message: Trending) -> None:
        """Go on from what was published; what was not in its list is forgotten, but for the totals."""
        counts, self._totals = counts_by(message, self._half_lives_s)
        row_of = {item_id: row for row, (item_id, _) in enumerate(message.items)}
        self._row_of = {item_id: row for row, item_id in enumerate(row_of)}
        self._scaled = np.zeros((max(len(row_of), 2 * self._room) + 1, len(self._per_ms)))
        self._scaled[: len(row_of)] = counts[list(row_of.values())]
        self._origin_ms = self.as_of_ms = message.as_of_ms
        self.offset = message.offset

    def _best(self, limit: int) -> tuple[Rows, Doubles]:
        """Rows [N] of the best items, best first, and their counts [N, L] as of `as_of_ms`."""
        counts = self._scaled[: len(self._row_of)] / self._now()
        rows = best_first(shares_of(counts, self._totals / self._now()), counts)[:limit]
        return rows, counts[rows]

    def _now(self) -> Doubles:
        """[L]: what a watch at `as_of_ms` weighs."""
        return np.asarray(np.exp2((self.as_of_ms - self._origin_ms) * self._per_ms))

    def _names(self, rows: Rows) -> list[str]:
        names = list(self._row_of)
        return [names[row] for row in rows.tolist()]

    def _make_way(self) -> None:
        """Keep the best `room` items, in the order in which they came."""
        rows = np.sort(self._best(self._room)[0])
        kept, names = self._scaled[rows], self._names(rows)
        self._row_of = {item_id: row for row, item_id in enumerate(names)}
        self._scaled[:] = 0.0
        self._scaled[: len(kept)] = kept

    def _move_origin(self, event_ms: int) -> None:
        shrink = np.exp2((self._origin_ms - event_ms) * self._per_ms)
        self._scaled *= shrink
        self._totals *= shrink
        self._origin_ms = event_ms


class PartitionCounts:
    """The counts of one partition of `watch-events`: in all, and in each of its most watched regions."""

    def __init__(self, half_lives_s: Sequence[float], *, items: int, regions: int, region_items: int) -> None:
        """`half_lives_s`: the fastest first."""
        self._half_lives_s = half_lives_s
        self._items, self._regions, self._region_items = items, regions, region_items
        self._everybody = DecayedCounts(half_lives_s, room=10 * items)
        self._listed: dict[str, DecayedCounts] = {}  # regions by scope: what is on the topic, once it is told
        self._waiting: dict[str, DecayedCounts] = {}
        self._touched: set[str] = set()  # scopes whose record on the topic is behind

    def restore(self, message: Trending) -> None:
        """Go on from a scope that was published."""
        if message.scope.startswith(REGION):
            self._listed[message.scope] = self._new_region()
            self._listed[message.scope].restore(message)
        else:
            self._everybody.restore(message)

    def add(self, item_id: str, region: str | None, event_ms: int, offset: int) -> None:
        """Count one watch in every scope that does not hold it yet."""
        if self._everybody.add(item_id, event_ms, offset):
            self._touched.add(GLOBAL)
        if region and self._regions:
            scope = region_scope(region)
            if (counts := self._listed.get(scope)) is None:
                self._wait(scope).add(item_id, event_ms, offset)
            elif counts.add(item_id, event_ms, offset):
                self._touched.add(scope)

    def changes(self, partition: int) -> dict[str, Trending | None]:
        """Return what the topic must be told since the last call, by scope; None: the scope is no longer listed."""
        before = set(self._listed)
        self._choose()
        self._bound_waiting()
        scopes = self._touched & self._listed.keys() | (self._listed.keys() - before)
        told: dict[str, Trending | None] = dict.fromkeys(sorted(before - self._listed.keys()))
        told |= {scope: self._listed[scope].message(scope, partition, self._region_items) for scope in sorted(scopes)}
        if GLOBAL in self._touched:
            told[GLOBAL] = self._everybody.message(GLOBAL, partition, self._items)
        self._touched.clear()
        return told

    def _choose(self) -> None:
        """Give the places of the list to the most watched regions, as the module says."""
        waiting = sorted(self._waiting, key=lambda scope: (-self._waiting[scope].level, scope))
        listed = sorted(self._listed, key=lambda scope: (self._listed[scope].level, scope))
        while len(listed) > self._regions:  # the setting was lowered, or the tombstone of one that left was lost
            self._unlist(listed.pop(0))
        for scope in waiting:
            level = self._waiting[scope].level
            if level < self._least_level:
                return
            if len(self._listed) >= self._regions:
                if not listed or level < self._listed[listed[0]].level + 1:
                    return
                self._unlist(listed.pop(0))
            self._listed[scope] = self._waiting.pop(scope)

    @property
    def _least_level(self) -> float:
        """The level of half a watch now: old watches, which are cheap to outdo, win no place."""
        return self._everybody.as_of_ms / (1000 * self._half_lives_s[0]) - 1

    def _unlist(self, scope: str) -> None:
        self._waiting[scope] = self._listed.pop(scope)

    def _wait(self, scope: str) -> DecayedCounts:
        """The counts of a region that is not listed."""
        if scope not in self._waiting:
            self._bound_waiting()
            self._waiting[scope] = self._new_region()
        return self._waiting[scope]

    def _bound_waiting(self) -> None:
        if len(self._waiting) > 2 * self._regions:
            best = nlargest(self._regions, self._waiting.items(), key=lambda entry: entry[1].level)
            self._waiting = dict(best)

    def _new_region(self) -> DecayedCounts:
        return DecayedCounts(self._half_lives_s, room=2 * self._region_items)
