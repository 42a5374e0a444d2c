"""All that is known when a request is made: the columns that features are computed from, for many requests at once.

B requests with N candidates in all. Everything a feature may look at is here and was true at `now_ms`, so that whoever
fills a RankingBatch, serving from its views or training from a log, decides what a feature can know. What several
features need is worked out once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from models.arrays import Array, Doubles, Flags, Floats, Integers, Rows
from models.catalogue.catalogue import CHANNEL, TOPICS, Catalogue

HISTORY = 50  # watches of any length that are looked at
SHOWN = 100  # shown items that are looked at
MOST_TOPICS = 3  # of an item
DAY_MS = 24 * 3_600_000
EACH = slice(None)
FEW = 600  # candidates, of which each is compared with its user's history by itself

# Videos about as long as each other, a third of an octave: the name of each code, 0 for an unknown duration.
_EDGES_S = np.exp2(np.arange(3, 37) / 3)  # 2 s to 68 min
LENGTHS = ["", "shorter", *(f"{edge:.1f} s" for edge in _EDGES_S)]

# Columns of the statistics: decayed sums over closed impressions.
IMPRESSIONS, WATCHES, SECONDS, COMPLETIONS = range(4)
COLUMNS = 4

# What nominates candidates; the codes of the feature `sources`, 0 for none.
TWO_TOWER, TRENDING, SIMILAR, FRESH = "two_tower", "trending", "similar", "fresh"
SOURCES = ["", TWO_TOWER, TRENDING, SIMILAR, FRESH]


@dataclass(frozen=True)
class Codes:
    """Codes that mean names: `codes` [B] or [B, M], 0 for none or unknown; `names[code - first]` is the name of
    one."""

    codes: Rows
    names: list[str]
    first: int = 0

    def at(self, rows: Rows) -> Codes:
        return Codes(np.asarray(self.codes[rows]), self.names, self.first)


@dataclass(frozen=True)
class Requests:
    """B requests. Entries of one user are oldest first and padded in front with row -1.

    now_ms int64 [B]. The newest watches, [B, H]: watch_rows int64 catalogue rows (-1 also for items it does not know),
    watch_ms int64, watch_s float32 (NaN: for how long is not known; 0 where there is no entry), completed and `there`
    bool. The newest shown items, [B, S]: shown_rows and shown_ms int64. contexts: by field the value of each request.
    """

    now_ms: Rows
    watch_rows: Rows
    watch_ms: Rows
    watch_s: Floats
    completed: Flags
    there: Flags
    shown_rows: Rows
    shown_ms: Rows
    contexts: dict[str, Codes] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidates:
    """N candidates. request int64 [N]: which request each belongs to; rows int64 [N]: its catalogue row, -1 unknown.

    score float32 [N]: retrieval score, the inner product of user and item vector, NaN where there is none; rank float32
    [N]: its place among the candidates by that score, from 1; best float32 [B]: the best score of each request.
    sources: codes of SOURCES [N, M]; trending and similar float32 [N]: these sources' own scores, NaN where they have
    not nominated it.
    """

    request: Rows
    rows: Rows
    score: Floats
    rank: Floats
    best: Floats
    sources: Codes
    trending: Floats
    similar: Floats


class Known(Protocol):
    """The statistics as of `known_ms` int64 [B], which is the time of each request or a moment before it: float64
    [N, 4] of the candidates' item, channel, first topic and length, [B, 4] of everything."""

    @property
    def known_ms(self) -> Rows: ...
    @property
    def item(self) -> Doubles: ...
    @property
    def channel(self) -> Doubles: ...
    @property
    def topic(self) -> Doubles: ...
    @property
    def length(self) -> Doubles: ...
    @property
    def everything(self) -> Doubles: ...


@dataclass(frozen=True)
class RankingBatch:
    catalogue: Catalogue
    requests: Requests
    candidates: Candidates
    known: Known

    # --- of the requests -------------------------------------------------------------------------------------------

    @cached_property
    def entries(self) -> Rows:
        """[B]: how many watches of each user are known."""
        return np.asarray(np.count_nonzero(self.requests.there, axis=1), np.int64)

    @cached_property
    def timed(self) -> Flags:
        """[B, H]: entries that say for how long."""
        return np.asarray(self.requests.there & ~np.isnan(self.requests.watch_s))

    @cached_property
    def watched_ago_s(self) -> Floats:
        """[B, H]"""
        return _ago_s(self.requests.now_ms, self.requests.watch_ms)

    @cached_property
    def shown_ago_s(self) -> Floats:
        """[B, S]"""
        return _ago_s(self.requests.now_ms, self.requests.shown_ms)

    @cached_property
    def watched_durations_s(self) -> Floats:
        """[B, H], NaN where it is not known."""
        return self.catalogue.duration_s(self.requests.watch_rows)

    @cached_property
    def watched_share(self) -> Floats:
        """[B, H]: of each watched video, at most all of it; NaN where its duration is not known."""
        share: Floats = np.minimum(self.requests.watch_s / self.watched_durations_s, np.float32(1))
        return share

    # --- of the candidates -----------------------------------------------------------------------------------------

    @property
    def request(self) -> Rows:
        return self.candidates.request

    @cached_property
    def known_ms(self) -> Rows:
        """[N]: the moment for which what is known of each candidate's item stands."""
        return self.known.known_ms[self.request]

    @cached_property
    def channels(self) -> npt.NDArray[np.int32]:
        """[N], 0 for none."""
        return self.catalogue.channel_codes(self.candidates.rows)

    @cached_property
    def topics(self) -> npt.NDArray[np.int32]:
        """[N, T], 0 for none."""
        return self.catalogue.topics_at(self.candidates.rows, MOST_TOPICS)

    @cached_property
    def durations_s(self) -> Floats:
        """[N], NaN where it is not known."""
        return self.catalogue.duration_s(self.candidates.rows)

    @cached_property
    def lengths(self) -> Rows:
        """[N]: codes of LENGTHS."""
        return length_codes(self.durations_s)

    # Which of the user's entries are about the candidate's item, channel, first topic, any topic.

    @cached_property
    def of_item(self) -> Entries:
        return self._of_items(self.requests.watch_rows)

    @cached_property
    def of_channel(self) -> Entries:
        return self._of_codes(self.catalogue.channel_codes(self.requests.watch_rows), self.channels)

    @cached_property
    def of_topic(self) -> Entries:
        return self._of_codes(self._watched_topics[:, :, 0], self.topics[:, 0])

    @cached_property
    def of_any_topic(self) -> Entries:
        first, group = distinct(self.request, *self.topics.T)
        request, topics = self.request[first], self.topics[first]
        shared = np.zeros((len(topics), self.requests.watch_rows.shape[1]), np.bool_)
        for theirs in np.moveaxis(self._watched_topics, 2, 0):
            watched = each(theirs, request)
            for mine in topics.T:
                shared |= _equal(watched, mine, none=0)
        return Entries(shared, request, group)

    @cached_property
    def shown_item(self) -> Entries:
        return self._of_items(self.requests.shown_rows)

    @cached_property
    def shown_channel(self) -> Entries:
        return self._of_codes(self.catalogue.channel_codes(self.requests.shown_rows), self.channels)

    @cached_property
    def of_like_duration(self) -> Flags:
        """[N, H]: watches of videos between two thirds and one and a half times as long, as far as they are timed."""
        ratio = each(self.watched_durations_s, self.request) / self.durations_s[:, None]
        return np.asarray((ratio > 1 / 1.5) & (ratio < 1.5) & each(self.timed, self.request))

    def watched_s(self, entries: Entries) -> Floats:
        """[N]: seconds of these entries, as far as they are known."""
        return _sum(entries.among(self.timed), each(self.requests.watch_s, entries.request))[entries.group]

    def mean_watched_s(self, entries: Entries) -> Floats:
        """[N]: seconds of each of them, NaN for none whose seconds are known."""
        return mean_of(each(self.requests.watch_s, entries.request), entries.among(self.timed))[entries.group]

    def since_watched_s(self, entries: Entries) -> Floats:
        """[N]: since the newest of them, NaN for none."""
        return newest(each(self.watched_ago_s, entries.request), entries.chosen)[entries.group]

    def since_shown_s(self, entries: Entries) -> Floats:
        """[N]"""
        return newest(each(self.shown_ago_s, entries.request), entries.chosen)[entries.group]

    @cached_property
    def _watched_topics(self) -> npt.NDArray[np.int32]:
        """[B, H, T]"""
        return self.catalogue.topics_at(self.requests.watch_rows, MOST_TOPICS)

    def _of_codes(self, theirs: Integers, mine: Integers) -> Entries:
        """theirs [B, H], mine [N], 0 for none: many candidates of a request have the same."""
        first, group = distinct(self.request, mine)
        request = self.request[first]
        return Entries(_equal(each(theirs, request), mine[first], none=0), request, group)

    def _of_items(self, theirs: Rows) -> Entries:
        """theirs [B, H], -1 for none: few candidates are in the history. Those that are not share one group."""
        rows, request = self.candidates.rows, self.request
        if len(rows) < FEW:
            return Entries(_equal(each(theirs, request), rows, none=-1), request, EACH)
        width = max(int(rows.max(initial=-1)), int(theirs.max(initial=-1))) + 1
        known = np.unique((np.arange(len(theirs))[:, None] * width + theirs)[theirs >= 0])
        wanted = request * width + rows
        place = np.searchsorted(known, wanted)
        there = (rows >= 0) & (place < len(known))
        there[there] = known[place[there]] == wanted[there]
        places = np.append(np.flatnonzero(there), -1)
        group = np.where(there, np.cumsum(there) - 1, len(places) - 1)
        of, mine = np.append(request, 0)[places], np.append(rows, -1)[places]
        return Entries(_equal(each(theirs, of), mine, none=-1), of, group)


@dataclass(frozen=True)
class Entries:
    """The entries of a user that are about what a candidate is about, worked out once for all candidates of a request
    that are about the same: chosen bool [G, H], request int64 [G]; group int64 [N] or EACH: where a candidate's are."""

    chosen: Flags
    request: Rows
    group: Rows | slice

    def among(self, flags: Flags) -> Flags:
        """[B, H] -> [G, H]: those of them that are flagged."""
        return np.asarray(self.chosen & each(flags, self.request))

    def count(self) -> Floats:
        """[N]"""
        return count_of(self.chosen)[self.group]


def distinct(request: Rows, *codes: Integers) -> tuple[Rows | slice, Rows | slice]:
    """The groups of candidates [N] that agree in their request and in all codes, from 0: the first of each group [G],
    and each candidate's group [N]. Few candidates are a group each: sorting them is not worth it."""
    if len(request) < FEW:
        return EACH, EACH
    first, group = EACH, request
    for code in codes:
        keys = group * (int(code.max(initial=0)) + 1) + code
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        group = inverse.reshape(-1)
    return first, group


def each(of_requests: Array, request: Rows) -> Array:
    """[B, H] -> [N, H]: the row of each request; [1, H], which does for all, of one request."""
    return of_requests if len(of_requests) == 1 else of_requests[request]


def newest(ago_s: Floats, chosen: Flags) -> Floats:
    """The smallest of the chosen entries of each row, at least 0; NaN where none is chosen."""
    smallest = np.where(chosen, ago_s, np.float32(np.inf)).min(axis=1, initial=np.float32(np.inf))
    return np.where(np.isinf(smallest), np.float32(np.nan), np.maximum(smallest, 0)).astype(np.float32)


def count_of(entries: Flags) -> Floats:
    """[N, H] -> [N]"""
    return np.asarray(np.count_nonzero(entries, axis=1), np.float32)


def known_or_nan(known: Flags, values: npt.NDArray[np.floating]) -> Floats:
    return np.where(known, values, np.nan).astype(np.float32)


def mean_of(values: Array, chosen: Flags) -> Floats:
    """[B, H], [B, H] -> [B]: of the chosen entries, NaN for none."""
    count = chosen.sum(axis=1)
    total = np.where(chosen, values, np.float32(0)).sum(axis=1, dtype=np.float32)
    return known_or_nan(count > 0, total / np.maximum(count, 1).astype(np.float32))


def length_codes(duration_s: Floats) -> Rows:
    """int64, in the shape of `duration_s`: codes of LENGTHS."""
    codes = np.searchsorted(_EDGES_S, duration_s, side="right") + 1
    return np.where(np.isnan(duration_s), 0, codes).astype(np.int64)


def nominated(by: Sequence[Flags]) -> Rows:
    """Encode who has nominated each candidate: bool [C] by source, in the order of SOURCES -> codes int64 [C, M]."""
    sources = np.zeros((len(by[0]), len(SOURCES) - 1), np.int64)
    for code, mine in enumerate(by, 1):
        sources[:, code - 1] = np.where(mine, code, 0)
    return sources


def id_names(catalogue: Catalogue, space: str) -> list[str]:
    """The names of the codes of channel, topic and length, code 0 first."""
    return LENGTHS if space == "length" else catalogue.id_values({"channel": CHANNEL, "topic": TOPICS}[space])


def _equal(theirs: Integers, mine: Integers, none: int) -> Flags:
    """theirs [N, H] or [1, H], mine [N] -> bool [N, H]; `none` equals nothing."""
    return np.asarray((theirs == mine[:, None]) & (mine != none)[:, None])


def _ago_s(now_ms: Rows, at_ms: Rows) -> Floats:
    return ((now_ms[:, None] - at_ms) / 1000).astype(np.float32)


def _sum(chosen: Flags, values: Floats) -> Floats:
    """[N, H] -> [N]. Row by row in one order, so that it is the same to the bit among however many candidates."""
    total: Floats = np.where(chosen, values, np.float32(0)).sum(axis=1, dtype=np.float32)
    return total
