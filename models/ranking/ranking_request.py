"""From users and their candidates to a RankingBatch: the arrays that features are computed from, for a batch of
requests.

Used where an answer is made and where one is computed again from the topics, so both see the same to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from models.arrays import Doubles, Floats, Integers, Rows
from models.catalogue.catalogue import Catalogue
from models.catalogue.context import FIELDS
from models.catalogue.user_profile import RankedUserProfile
from models.ranking.item_statistics import ItemStatistics
from models.ranking.ranking_batch import (
    HISTORY,
    SHOWN,
    SOURCES,
    Candidates,
    Codes,
    RankingBatch,
    Requests,
    id_names,
    length_codes,
    nominated,
)


@dataclass(frozen=True)
class Nominations:
    """The nominations of C candidates. sources int64 [C, M]: codes of SOURCES, 0 for none; trending and similar float32
    [C]: the scores that these sources gave, NaN where they did not nominate."""

    sources: Rows
    trending: Floats
    similar: Floats


@dataclass(frozen=True)
class RankingQuery:
    """One request to be ranked. `scores` float32 [C] are retrieval scores, NaN where there is none; `ranks` float32 [C]
    their places from 1 and `best` the best score, worked out from `scores` where they are not given. Without
    `nominations` all are the two towers'. `rows` int64 [C]: the items' rows of the catalogue, looked up where they are
    not given. `known_ms`: the moment for which what is known of items stands, `now_ms` where none is given."""

    user: RankedUserProfile
    now_ms: int
    item_ids: Sequence[str]
    scores: Floats
    ranks: Floats | None = None
    best: float | None = None
    nominations: Nominations | None = None
    rows: Rows | None = None
    known_ms: int = 0


def ranking_batch_of(
    queries: Sequence[RankingQuery], catalogue: Catalogue, statistics: Sequence[ItemStatistics]
) -> RankingBatch:
    """Put together what is known of all queries and their candidates; `statistics` are added up."""
    now_ms = np.array([query.now_ms for query in queries], np.int64)
    known_ms = np.array([query.known_ms or query.now_ms for query in queries], np.int64)
    sizes = [len(query.item_ids) for query in queries]
    request = np.repeat(np.arange(len(queries)), sizes)
    item_ids = [item_id for query in queries for item_id in query.item_ids]
    rows = np.concatenate([catalogue.rows(query.item_ids) if query.rows is None else query.rows for query in queries])
    scores = [np.where(np.isfinite(query.scores), query.scores, np.nan).astype(np.float32) for query in queries]
    ranks, best = zip(*(_places(query, own) for query, own in zip(queries, scores, strict=True)), strict=True)
    nominations = [query.nominations or by_two_towers(size) for query, size in zip(queries, sizes, strict=True)]
    candidates = Candidates(
        request=request,
        rows=rows,
        score=np.concatenate(scores),
        rank=np.concatenate(ranks).astype(np.float32),
        best=np.array(best, np.float32),
        sources=Codes(np.concatenate([each.sources for each in nominations]), SOURCES),
        trending=np.concatenate([each.trending for each in nominations]),
        similar=np.concatenate([each.similar for each in nominations]),
    )
    requests = read_requests([query.user for query in queries], now_ms, catalogue)
    known = KnownNow(statistics, catalogue, item_ids, rows, known_ms, known_ms[request])
    return RankingBatch(catalogue, requests, candidates, known)


def by_two_towers(size: int) -> Nominations:
    """So many candidates that the two towers alone have nominated."""
    nothing = np.full(size, np.nan, np.float32)
    return Nominations(nominated([np.ones(size, np.bool_)]), nothing, nothing)


def read_requests(users: Sequence[RankedUserProfile], now_ms: Rows, catalogue: Catalogue) -> Requests:
    """The newest watches and shown items of each user as arrays, and their contexts."""
    size, width = len(users), (len(users), HISTORY)
    watch_rows, watch_ms = np.full(width, -1, np.int64), np.zeros(width, np.int64)
    watch_s, completed, there = np.zeros(width, np.float32), np.zeros(width, np.bool_), np.zeros(width, np.bool_)
    shown_rows, shown_ms = np.full((size, SHOWN), -1, np.int64), np.zeros((size, SHOWN), np.int64)
    for at, user in enumerate(users):
        newest = user.watches[-HISTORY:]
        if newest:
            last = slice(HISTORY - len(newest), None)
            watch_rows[at, last] = catalogue.rows(watch.item_id for watch in newest)
            watch_ms[at, last] = [watch.event_ms for watch in newest]
            watch_s[at, last] = [watch.watch_s for watch in newest]
            completed[at, last] = [watch.completed for watch in newest]
            there[at, last] = True
        shown = _newest_shown(user)
        if shown:
            last = slice(SHOWN - len(shown), None)
            shown_rows[at, last] = catalogue.rows(item_id for item_id, _ in shown)
            shown_ms[at, last] = [at_ms for _, at_ms in shown]
    contexts = {name: _context(users, name) for name in FIELDS}
    return Requests(now_ms, watch_rows, watch_ms, watch_s, completed, there, shown_rows, shown_ms, contexts)


def _newest_shown(user: RankedUserProfile) -> list[tuple[str, int]]:
    """Item and time of the newest SHOWN shown items, oldest first."""
    found: list[tuple[str, int]] = []
    for shown in reversed(user.impressions):
        found[:0] = [(item_id, shown.at_ms) for item_id in shown.item_ids]
        if len(found) >= SHOWN:
            break
    return found[-SHOWN:]


def _context(users: Sequence[RankedUserProfile], name: str) -> Codes:
    values = [getattr(user.context, name, None) or "" for user in users]
    names = ["", *dict.fromkeys(value for value in values if value)]
    codes = {value: code for code, value in enumerate(names)}
    return Codes(np.array([codes[value] for value in values], np.int64), names)


@dataclass(frozen=True)
class KnownNow:
    """Statistics of several sources, added up when they are asked for, as `Known` has them. known_ms int64 [B]; `at_ms`
    [N] the same for each candidate, whose id and catalogue row are given."""

    statistics: Sequence[ItemStatistics]
    catalogue: Catalogue
    item_ids: Sequence[str]
    rows: Rows
    known_ms: Rows
    at_ms: Rows

    @cached_property
    def item(self) -> Doubles:
        return self._sum("item", self.item_ids, self.at_ms)

    @cached_property
    def channel(self) -> Doubles:
        return self._of_codes("channel", self.catalogue.channel_codes(self.rows))

    @cached_property
    def topic(self) -> Doubles:
        return self._of_codes("topic", self.catalogue.topic_codes(self.rows))

    @cached_property
    def length(self) -> Doubles:
        return self._of_codes("length", length_codes(self.catalogue.duration_s(self.rows)))

    @cached_property
    def everything(self) -> Doubles:
        return self._sum("all", [""] * len(self.known_ms), self.known_ms)

    def _of_codes(self, scope: str, codes: Integers) -> Doubles:
        """By the catalogue's codes: each distinct one is looked up once per time."""
        times, at = np.unique(self.at_ms, return_inverse=True)
        keys, inverse = np.unique(codes.astype(np.int64) * len(times) + at.reshape(-1), return_inverse=True)
        distinct, names = keys // len(times), id_names(self.catalogue, scope)
        sums = self._sum(scope, [names[code] for code in distinct.tolist()], times[keys % len(times)])
        sums[distinct == 0] = 0.0
        return np.asarray(sums[inverse.reshape(-1)])

    def _sum(self, scope: str, names: Sequence[str], at_ms: Rows) -> Doubles:
        total = np.zeros((len(at_ms), 4))
        for each in self.statistics:
            total += each.at(scope, names, at_ms)
        return total


def _places(query: RankingQuery, scores: Floats) -> tuple[Floats, float]:
    """As they are given, else worked out."""
    if query.ranks is not None and query.best is not None:
        return query.ranks, query.best
    ranks, best = places_of(scores)
    return (ranks if query.ranks is None else query.ranks), (best if query.best is None else query.best)


def places_of(scores: Floats) -> tuple[Floats, float]:
    """float32 [C]: places from 1 by descending score, equal ones share theirs, NaN where there is none; and the best
    score, NaN of none."""
    best_first = np.sort(-scores[np.isfinite(scores)])
    ranks = np.searchsorted(best_first, -scores, "left") + 1
    best = -float(best_first[0]) if len(best_first) else float("nan")
    return np.where(np.isfinite(scores), ranks, np.nan).astype(np.float32), best
