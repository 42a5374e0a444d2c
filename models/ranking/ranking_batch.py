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

    # The user's entries, for each candidate: [N, H], or [1, H] where there is one request.

    @cached_property
    def each_timed(self) -> Flags:
        return np.asarray(self._each(self.timed))

    @cached_property
    def each_watch_s(self) -> Floats:
        return np.asarray(self._each(self.requests.watch_s))

    @property
    def each_watched_share(self) -> Floats:
        return np.asarray(self._each(self.watched_share))

    @cached_property
    def _each_watched_ago_s(self) -> Floats:
        return np.asarray(self._each(self.watched_ago_s))

    @cached_property
    def _each_shown_ago_s(self) -> Floats:
        return np.asarray(self._each(self.shown_ago_s))

    # Which of the user's entries are about the candidate's item, channel, first topic, any topic: bool [N, H].

    @cached_property
    def of_item(self) -> Flags:
        return self._among(self.requests.watch_rows, self.candidates.rows, none=-1)

    @cached_property
    def of_channel(self) -> Flags:
        return self._among(self.catalogue.channel_codes(self.requests.watch_rows), self.channels, none=0)

    @cached_property
    def of_topic(self) -> Flags:
        return self._among(self._watched_topics[:, :, 0], self.topics[:, 0], none=0)

    @cached_property
    def of_any_topic(self) -> Flags:
        shared = np.zeros((len(self.request), self.requests.watch_rows.shape[1]), np.bool_)
        for mine in self.topics.T:
            for theirs in np.moveaxis(self._watched_topics, 2, 0):
                shared |= self._among(theirs, mine, none=0)
        return shared

    @cached_property
    def of_like_duration(self) -> Flags:
        """Watches of videos between two thirds and one and a half times as long."""
        ratio = self._each(self.watched_durations_s) / self.durations_s[:, None]
        return np.asarray((ratio > 1 / 1.5) & (ratio < 1.5))

    @cached_property
    def shown_item(self) -> Flags:
        """[N, S]"""
        return self._among(self.requests.shown_rows, self.candidates.rows, none=-1)

    @cached_property
    def shown_channel(self) -> Flags:
        """[N, S]"""
        return self._among(self.catalogue.channel_codes(self.requests.shown_rows), self.channels, none=0)

    def watched_s(self, entries: Flags) -> Floats:
        """[N, H] -> [N]: seconds of these entries, as far as they are known."""
        return _sum(entries & self.each_timed, self.each_watch_s)

    def since_watched_s(self, entries: Flags) -> Floats:
        """[N, H] -> [N]: since the newest of them, NaN for none."""
        return newest(self._each_watched_ago_s, entries)

    def since_shown_s(self, entries: Flags) -> Floats:
        """[N, S] -> [N]"""
        return newest(self._each_shown_ago_s, entries)

    @cached_property
    def _watched_topics(self) -> npt.NDArray[np.int32]:
        """[B, H, T]"""
        return self.catalogue.topics_at(self.requests.watch_rows, MOST_TOPICS)

    def _among(self, theirs: Integers, mine: Integers, none: int) -> Flags:
        """theirs [B, H], mine [N] -> bool [N, H]"""
        return np.asarray((self._each(theirs) == mine[:, None]) & (mine != none)[:, None])

    def _each(self, of_requests: Array) -> Array:
        """[B, H] -> [N, H]: for each candidate the row of its request; [1, H], which does for all, of one request."""
        return of_requests if len(of_requests) == 1 else of_requests[self.request]


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


def _ago_s(now_ms: Rows, at_ms: Rows) -> Floats:
    return ((now_ms[:, None] - at_ms) / 1000).astype(np.float32)


def _sum(chosen: Flags, values: Floats) -> Floats:
    """[N, H] -> [N]. Row by row in one order, so that it is the same to the bit among however many candidates."""
    total: Floats = np.where(chosen, values, np.float32(0)).sum(axis=1, dtype=np.float32)
    return total
