"""What is trending: the counts of all partitions added up, as one list for everybody and one for each region.

Shares are those of streams.trending.back_off, and time is the stream's own: the newest watch that was counted. A region
of which too little is known has the order of the whole world.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from models.arrays import Doubles
from serving.state.reading import read, refuse
from streams import topics
from streams.messages import Refused, Trending
from streams.trending.back_off import best_first, counts_by, decays, half_lives_of, shares_of
from streams.trending.rules import GLOBAL, region_scope

WORLDWIDE = 500  # of everybody's list, those that a region's list has too


@dataclass(frozen=True)
class TrendingList:
    """Items [N], best first: their share of the watches, and their watches decayed by the fastest half-life, in the
    region where it knows them, else everywhere."""

    item_ids: Sequence[str]
    shares: Doubles
    watches: Doubles

    @cached_property
    def place_of(self) -> dict[str, int]:
        return {item_id: place for place, item_id in enumerate(self.item_ids)}


NOTHING = TrendingList((), np.zeros(0), np.zeros(0))


@dataclass(frozen=True)
class Sums:
    """The counts of one scope: items [N], counts [N, L] by half-life, totals [L], all as of one time."""

    item_ids: list[str]
    counts: Doubles
    totals: Doubles
    half_lives_s: tuple[float, ...]
    as_of_ms: int


class TrendingView:
    """Follows the topic; a list is made when somebody asks for it, and again only after its scope has changed, a
    region's also after everybody's has."""

    def __init__(self) -> None:
        self._parts: dict[str, dict[bytes, Trending]] = {}  # by scope, by key: one for each partition
        self._sums: dict[str, Sums] = {}  # by scope; a change of the scope takes it out
        self._lists: dict[str, TrendingList] = {}  # by scope; as above, and a change of everybody's takes out all

    def apply(self, key: bytes | None, value: bytes | None) -> None:
        """Take over one record of `trending`; a tombstone takes a partition out of its scope."""
        if key is None:
            refuse(topics.TRENDING, Refused("invalid", "trending list without a key"))
        elif value is None:
            self._forget(key)
        elif (part := read(topics.TRENDING, Trending, value)) is not None:
            scope = _scope_of(key)
            self._parts.setdefault(scope, {})[key] = part
            self._has_changed(scope)

    def best(self, region: str | None = None) -> TrendingList:
        """What is watched in a region, as far as enough is watched there, and everywhere. Empty while nothing is
        known."""
        scope = region_scope(region) if region else GLOBAL
        if scope not in self._parts:
            scope = GLOBAL
        if scope not in self._lists:
            self._lists[scope] = self._made(scope)
        return self._lists[scope]

    def _made(self, scope: str) -> TrendingList:
        if GLOBAL not in self._parts:
            return NOTHING
        world = self._sum(GLOBAL)
        return list_of(world) if scope == GLOBAL else list_of_region(self._sum(scope), self.best(), world.as_of_ms)

    def _sum(self, scope: str) -> Sums:
        if scope not in self._sums:
            self._sums[scope] = add_up(self._parts[scope].values())
        return self._sums[scope]

    def _forget(self, key: bytes) -> None:
        scope = _scope_of(key)
        parts = self._parts.get(scope, {})
        if parts.pop(key, None) is not None:
            self._has_changed(scope)
            if not parts:
                del self._parts[scope]

    def _has_changed(self, scope: str) -> None:
        self._sums.pop(scope, None)
        if scope == GLOBAL:
            self._lists.clear()
        else:
            self._lists.pop(scope, None)


def add_up(parts: Iterable[Trending]) -> Sums:
    """The sums of the partitions' counts, each decayed to the newest one's time, by the newest one's half-lives.

    Any later time gives nearly the same order: all counts of one half-life then decay alike.
    """
    parts = list(parts)
    newest = max(parts, key=lambda part: part.as_of_ms)
    half_lives_s = half_lives_of(newest)
    row_of: dict[str, int] = {}
    for part in parts:
        for item_id, _ in part.items:
            row_of.setdefault(item_id, len(row_of))
    counts, totals = np.zeros((len(row_of), len(half_lives_s))), np.zeros(len(half_lives_s))
    for part in parts:
        left = decays(newest.as_of_ms - part.as_of_ms, half_lives_s)
        own, own_totals = counts_by(part, half_lives_s)
        np.add.at(counts, [row_of[item_id] for item_id, _ in part.items], own * left)
        totals += own_totals * left
    return Sums(list(row_of), counts, totals, half_lives_s, newest.as_of_ms)


def list_of(world: Sums) -> TrendingList:
    """Everybody's list."""
    shares = shares_of(world.counts, world.totals)
    return _listed(world.item_ids, shares, world.counts, world.counts[:, 0])


def list_of_region(own: Sums, world: TrendingList, now_ms: int) -> TrendingList:
    """A region's list: its own items and the world's best ones, by what is watched there, smoothed by what is watched
    everywhere."""
    names = list(dict.fromkeys([*own.item_ids, *world.item_ids[:WORLDWIDE]]))
    place_of = world.place_of
    places = np.array([place_of.get(item_id, -1) for item_id in names])
    base = np.where(places >= 0, world.shares[places], 0.0)
    left, mine = decays(max(0, now_ms - own.as_of_ms), own.half_lives_s), slice(0, len(own.item_ids))
    counts, watches = np.zeros((len(names), len(left))), world.watches[places]
    counts[mine] = own.counts * left
    watches[mine] = counts[mine, 0]
    return _listed(names, shares_of(counts, own.totals * left, base), counts, watches)


def _listed(item_ids: Sequence[str], shares: Doubles, counts: Doubles, watches: Doubles) -> TrendingList:
    rows = best_first(shares, counts)
    names = [item_ids[row] for row in rows.tolist()]
    return TrendingList(names, shares[rows], watches[rows])


def _scope_of(key: bytes) -> str:
    """The scope of a key `<scope>/<partition>`."""
    return key.rpartition(b"/")[0].decode(errors="replace")
