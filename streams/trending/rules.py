"""Trending, the counts of what is watched now: exponentially decayed counts of completed watches per item, everybody's
and those of the most watched regions. Pure; time is the events' own.

Counts are kept on a scale that moves with time (a watch at time t weighs 2^((t - origin) / half-life)), so that decay
costs nothing per event: an item's count changes only when it is watched.

Each scope is published by itself and carries the newest offset that is counted in it, so that it goes on from there
whatever became of the others: of the records of one batch any part may have reached the topic when a worker dies.

Regions come from whoever sends watches, so they are bounded: at most `regions` are listed (published), some twice as
many wait for a place with what was counted of them. One that waits takes a free place, or that of the least watched one
when it is watched twice as much. So the places go to the most watched, up to that factor, and with each change of hands
a place's weight doubles: who sends names at random wins no more than one change per place and half-life, and must send
twice the watches for each beyond. What waits is not published, and a restart forgets it.
"""

from __future__ import annotations

from hashlib import blake2b
from heapq import nlargest
from math import inf, log2
from operator import itemgetter
from urllib.parse import quote

from streams.messages import Trending

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
    """Decayed counts of items. Holds at most twice `room` items; the least watched make way."""

    def __init__(self, half_life_s: float, room: int) -> None:
        self._half_life_ms = half_life_s * 1000
        self._room = room
        self._scaled: dict[str, float] = {}
        self._total = 0.0  # of all watches, also of items that have made way
        self._origin_ms = 0
        self.as_of_ms = 0
        self.offset = -1  # newest source offset counted

    @property
    def level(self) -> float:
        """The amount that is watched here: log2 of all counts, as if decay had begun at time 0. Of two scopes that
        decay alike, the one with the higher level has the higher count at any time."""
        return log2(self._total) + self._origin_ms / self._half_life_ms if self._total > 0 else -inf

    def add(self, item_id: str, event_ms: int, offset: int) -> bool:
        """Count one watch; False when its offset was counted before."""
        if offset <= self.offset:
            return False
        self.offset = offset
        if not self._scaled:
            self._origin_ms = event_ms
        doublings = (event_ms - self._origin_ms) / self._half_life_ms
        if doublings > _MOST_DOUBLINGS:
            self._move_origin(event_ms)
            doublings = 0.0
        weight = 2.0**doublings
        self._scaled[item_id] = self._scaled.get(item_id, 0.0) + weight
        self._total += weight
        self.as_of_ms = max(self.as_of_ms, event_ms)
        if len(self._scaled) > 2 * self._room:
            self._scaled = dict(nlargest(self._room, self._scaled.items(), key=itemgetter(1)))
        return True

    def top(self, limit: int) -> list[tuple[str, float]]:
        """The most watched items and their counts as of `as_of_ms`, most watched first, ties by id."""
        now = 2.0 ** ((self.as_of_ms - self._origin_ms) / self._half_life_ms)
        best = nlargest(limit, self._scaled.items(), key=lambda entry: (entry[1], entry[0]))
        return [(item_id, scaled / now) for item_id, scaled in best]

    def message(self, scope: str, partition: int, limit: int) -> Trending:
        half_life_s = self._half_life_ms / 1000
        return Trending(scope, partition, self.as_of_ms, half_life_s, tuple(self.top(limit)), self.offset)

    def restore(self, message: Trending) -> None:
        """Go on from what was published; what was not in its top list is forgotten."""
        self._scaled = dict(message.items)
        self._total = sum(self._scaled.values())
        self._origin_ms = self.as_of_ms = message.as_of_ms
        self.offset = message.offset

    def _move_origin(self, event_ms: int) -> None:
        shrink = 2.0 ** -((event_ms - self._origin_ms) / self._half_life_ms)
        self._scaled = {item_id: scaled * shrink for item_id, scaled in self._scaled.items() if scaled * shrink > 0}
        self._total *= shrink
        self._origin_ms = event_ms


class PartitionCounts:
    """The counts of one partition of `watch-events`: in all, and in each of its most watched regions."""

    def __init__(self, half_life_s: float, *, items: int, regions: int, region_items: int) -> None:
        self._half_life_s = half_life_s
        self._items, self._regions, self._region_items = items, regions, region_items
        self._everybody = DecayedCounts(half_life_s, room=10 * items)
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
        return self._everybody.as_of_ms / (1000 * self._half_life_s) - 1

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
        return DecayedCounts(self._half_life_s, room=2 * self._region_items)
