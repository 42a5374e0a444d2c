"""Ranking examples from an impression log: every feature as a server would have known it when the list was asked for.

The log is read forward once, in pieces. A row's request is its page: what the user was shown within one hour, and what
is known is frozen at the first row of it, as one request sees it (within a page, features that move between the rows
that are compared move against the label). History windows end before that row; statistics know only impressions whose
window had closed by then. So no feature can see its own future: a test shuffles the future and finds nothing changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.arrays import Doubles, Flags, Floats, Integers, Rows
from models.catalogue.catalogue import Catalogue
from models.catalogue.context import FIELDS, ContextVocabulary
from models.logs.decayed_past import DecayedPast
from models.logs.skips import is_watch
from models.logs.stored_log import StoredLog
from models.logs.timeline import Timeline
from models.logs.training_set import TrainingSet
from models.ranking.features import compute_ids, compute_numbers
from models.ranking.item_statistics import ItemStatistics
from models.ranking.ranking_batch import (
    COLUMNS,
    HISTORY,
    MOST_TOPICS,
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
from models.ranking.ranking_examples import (
    CAP_S,
    MOST_CAP_S,
    SAMPLE,
    SCOPES,
    ExampleWriter,
    RankingExamples,
    target_of,
)

Progress = Callable[[int, int], None]

PAGE_MS = 3_600_000
CHUNK = 16_384
LEAST_IMPRESSIONS = 0.01  # decayed; with fewer nothing is known of an item
SETTLED = 500_000  # rows counted together


@dataclass(frozen=True)
class Delays:
    """As the live system has them: how long an outcome is not known, and how fast statistics forget."""

    window_ms: int = 1_800_000
    half_life_ms: float = 168 * 3_600_000.0


class Retrieved(NamedTuple):
    """What retrieval would have said of B rows of a log, as serving puts it on record, float32 [B] each and NaN where
    nobody can tell: score, the request's best score, the place among its candidates; `found` bool [B]: whether the two
    towers nominate it."""

    score: Floats
    best: Floats
    rank: Floats
    found: Flags


Scorer = Callable[[Rows, Rows], Retrieved]  # of rows of the log, and the rows at which their requests were frozen


@dataclass(frozen=True)
class KnownThen:
    """What was known of the items of a log's rows when they were shown, as `Known` has it."""

    known_ms: Rows
    item: Doubles
    channel: Doubles
    topic: Doubles
    length: Doubles
    everything: Doubles


class ImpressionLog:
    """A stored log as impressions. `directory` takes the tables that windows are cut from.

    Rows whose watch_s is unknown are history only: completed, for how long nobody knows.
    """

    def __init__(
        self,
        log: StoredLog,
        training_set: TrainingSet,
        directory: Path,
        delays: Delays,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.log, self.training_set, self.delays, self._directory = log, training_set, delays, directory
        self.catalogue: Catalogue = training_set.catalogue
        self._shown = Timeline(log.users, directory / "shown.npy")
        self._watched = Timeline(log.users, directory / "watched.npy", counts=self._is_watch)
        self.pages = self._first_of_page(directory / "pages.npy")
        self.cap_s = CAP_S  # the most seconds that a watch counts for

    def __len__(self) -> int:
        return len(self.log)

    def choose_cap(self, cap_s: Callable[[Floats], float], stop: int) -> None:
        """Set the cap by the newest watches before that row."""
        newest = slice(max(0, stop - SAMPLE), stop)
        self.cap_s = cap_s(self._target_s(newest, MOST_CAP_S)[self.timed(newest)])

    def timed(self, rows: slice | Rows) -> Flags:
        return np.isfinite(self.log.watch_s[rows])

    def items(self, rows: slice | Rows) -> Rows:
        """Catalogue rows of rows of the log."""
        return self.training_set.rows[self.log.items[rows]]

    def target_s(self, rows: slice | Rows) -> Floats:
        return self._target_s(rows, self.cap_s)

    def first_of_user(self, start: int) -> Rows:
        """int64 [N - start]: of each row from `start` on, the first of them that its user has."""
        users = np.asarray(self.log.users[start:])
        _, first, inverse = np.unique(users, return_index=True, return_inverse=True)
        return start + first[inverse]

    def completed_before(self, asked: Rows, length: int) -> Rows:
        """int64 [B, H]: catalogue rows of the user's newest completed watches before each row, -1 for none."""
        dataset = self.training_set.dataset
        before = np.searchsorted(self.training_set.completed, asked)
        rows = dataset.timeline.newest(self.log.users[asked], before, length)
        return np.where(rows >= 0, dataset.items[np.maximum(rows, 0)], -1).astype(np.int64)

    def skipped_before(self, asked: Rows, length: int) -> Rows:
        """int64 [B, H]: of those among the newest watches of whatever length that were not completed."""
        watched = self._watched.before(asked, length)
        at = np.maximum(watched, 0)
        return np.where((watched >= 0) & ~self.log.completed[at], self.items(at), -1)

    def watched_before(self, asked: Rows, length: int) -> Rows:
        """int64 [B, H]: catalogue rows of the newest watches of whatever length before each row, -1 for none: no list
        shows them again."""
        watched = self._watched.before(asked, length)
        return np.where(watched >= 0, self.items(np.maximum(watched, 0)), -1)

    def context(self, rows: Rows, vocabulary: ContextVocabulary) -> tuple[Rows, Floats]:
        """Codes int64 [B, K] and traits float32 [B, M] of these rows, as the vocabulary reads those of a request."""
        log, codes = self.log, np.zeros((len(rows), len(vocabulary.fields)), np.int64)
        for column, (name, values) in enumerate(vocabulary.fields.items()):
            if name in log.contexts:
                code_of = {value: code for code, value in enumerate(values, 1)}
                known = np.array([code_of.get(value, 0) for value in log.vocabularies[name]], np.int64)
                codes[:, column] = known[log.contexts[name][rows]]
        traits = np.full((len(rows), len(vocabulary.traits)), np.nan, np.float32)
        for column, name in enumerate(vocabulary.traits):
            if name in log.contexts:
                traits[:, column] = log.contexts[name][rows]
        return codes, traits

    def statistics(self) -> ItemStatistics:
        """The statistics at the end of the log, all windows closed."""
        past = _Statistics(self)
        end_ms = int(self.log.event_ms[-1])
        past.move_to(end_ms + 1 + self.delays.window_ms, end_ms + 1 + self.delays.window_ms)
        return past.summed_up(end_ms)

    def examples(
        self,
        name: str,
        *,
        start: int = 0,
        stop: int | None = None,
        frozen: Rows | None = None,
        scorer: Scorer | None = None,
        progress: Progress = lambda done, total: None,
    ) -> RankingExamples:
        """The timed rows `start` to `stop` as ranking examples, in files below `<directory>/<name>`.

        `frozen` int64 [stop - start]: the row before which each row's request was asked (its page's first, where not
        given). Examples are in the rows' order.
        """
        stop = len(self) if stop is None else stop
        writer = ExampleWriter(self._directory / name)
        statistics = _Statistics(self)
        if frozen is not None and len(frozen):  # of any time: what they look back on is sorted once
            statistics.move_to(int(self.log.event_ms[frozen].min()), int(self.log.event_ms[frozen].max()))
        for at in range(start, stop, CHUNK):
            rows = at + np.flatnonzero(self.timed(slice(at, min(at + CHUNK, stop))))
            asked = np.asarray(self.pages[rows]) if frozen is None else frozen[rows - start]
            if len(rows):
                if frozen is None:
                    statistics.move_to(int(self.log.event_ms[rows[0]]) - PAGE_MS, int(self.log.event_ms[asked].max()))
                self._add(writer, rows, asked, statistics, scorer)
            progress(min(at + CHUNK, stop) - start, stop - start)
        return writer.finish(self._names(), self.cap_s)

    def _add(
        self, writer: ExampleWriter, rows: Rows, asked: Rows, statistics: _Statistics, scorer: Scorer | None
    ) -> None:
        contexts = {name: self.log.contexts[name][rows] for name in FIELDS if name in self.log.contexts}
        keys = np.stack([asked, *contexts.values()])
        _, first, request = np.unique(keys, axis=1, return_index=True, return_inverse=True)
        named = {
            name: Codes(codes[first].astype(np.int64), self.log.vocabularies[name]) for name, codes in contexts.items()
        }
        batch = RankingBatch(
            self.catalogue,
            self._requests(asked[first], named),
            self._candidates(rows, asked, request.reshape(-1), asked[first], scorer),
            self._known(rows, asked, asked[first], statistics),
        )
        before = writer.queries
        for scope in SCOPES:
            codes = {name: each.codes for name, each in compute_ids(batch, scope).items()}
            writer.add(scope, compute_numbers(batch, scope), codes)
        writer.add_outcomes(
            request=before + request.reshape(-1),
            target_s=self.target_s(rows),
            duration_s=self._duration_s(rows),
            completed=self.log.completed[rows],
            position=np.zeros(len(rows), np.int32),
            user=self.log.users[rows],
            at_ms=self.log.event_ms[rows],
        )

    def _requests(self, asked: Rows, contexts: dict[str, Codes]) -> Requests:
        watched, shown = self._watched.before(asked, HISTORY), self._shown.before(asked, SHOWN)
        there, was_shown = watched >= 0, (shown >= 0) & self.timed(np.maximum(shown, 0))
        return Requests(
            now_ms=np.asarray(self.log.event_ms[asked]),
            watch_rows=np.where(there, self.items(np.maximum(watched, 0)), -1),
            watch_ms=np.where(there, self.log.event_ms[np.maximum(watched, 0)], 0),
            watch_s=np.where(there, self.log.watch_s[np.maximum(watched, 0)], 0).astype(np.float32),
            completed=there & self.log.completed[np.maximum(watched, 0)],
            there=there,
            shown_rows=np.where(was_shown, self.items(np.maximum(shown, 0)), -1),
            shown_ms=np.where(was_shown, self.log.event_ms[np.maximum(shown, 0)], 0),
            contexts=contexts,
        )

    def _candidates(self, rows: Rows, asked: Rows, request: Rows, firsts: Rows, scorer: Scorer | None) -> Candidates:
        nothing = np.full(len(rows), np.nan, np.float32)
        nobody = Retrieved(nothing, nothing, nothing, np.zeros(len(rows), np.bool_))
        retrieved = nobody if scorer is None else scorer(rows, asked)
        best_of = np.full(len(firsts), np.nan, np.float32)
        best_of[request] = retrieved.best
        return Candidates(
            request=request,
            rows=self.items(rows),
            score=retrieved.score,
            rank=retrieved.rank,
            best=best_of,
            sources=Codes(nominated([retrieved.found]), SOURCES),
            trending=nothing,
            similar=nothing,
        )

    def _known(self, rows: Rows, asked: Rows, firsts: Rows, statistics: _Statistics) -> KnownThen:
        items, now_ms = self.items(rows), np.asarray(self.log.event_ms[asked])
        known_ms = np.asarray(self.log.event_ms[firsts])
        return KnownThen(
            known_ms=known_ms,
            item=statistics.of("item", items, now_ms),
            channel=statistics.of("channel", self.catalogue.channel_codes(items), now_ms),
            topic=statistics.of("topic", self.catalogue.topic_codes(items), now_ms),
            length=statistics.of("length", length_codes(self.catalogue.duration_s(items)), now_ms),
            everything=statistics.of("all", np.zeros(len(firsts), np.int64), known_ms),
        )

    def _target_s(self, rows: slice | Rows, cap_s: float) -> Floats:
        return target_of(np.asarray(self.log.watch_s[rows]), self._duration_s(rows), cap_s)

    def _is_watch(self, rows: slice) -> Flags:
        return is_watch(self.log, rows)

    def _duration_s(self, rows: slice | Rows) -> Floats:
        """The row's own, else the catalogue's."""
        own = np.asarray(self.log.duration_s[rows])
        return np.where(np.isnan(own), self.catalogue.duration_s(self.items(rows)), own).astype(np.float32)

    def _names(self) -> dict[str, tuple[list[str], int]]:
        names = {space: (id_names(self.catalogue, space), 0) for space in ("channel", "topic", "length")}
        names |= {name: (self.log.vocabularies[name], 0) for name in FIELDS if name in self.log.contexts}
        return names | {"item": (self.catalogue.item_ids, 1), "source": (SOURCES, 0)}

    def _first_of_page(self, path: Path) -> Rows:
        """int64 [N] on disk: the first row of each row's user and hour."""
        pages: Rows = np.lib.format.open_memmap(path, "w+", np.dtype(np.int64), (max(1, len(self)),))
        for rows in self._shown.by_user():
            users, hours = self.log.users[rows], self.log.event_ms[rows] // PAGE_MS
            new = np.r_[True, (users[1:] != users[:-1]) | (hours[1:] != hours[:-1])]
            pages[rows] = rows[np.maximum.accumulate(np.where(new, np.arange(len(rows)), 0))]
        return pages


class _Statistics:
    """Impressions, watches, seconds and completions by each scope, known as late as live."""

    def __init__(self, impressions: ImpressionLog) -> None:
        catalogue, half_life_ms = impressions.catalogue, impressions.delays.half_life_ms
        self._impressions, self._delay_ms = impressions, impressions.delays.window_ms
        self._settled = 0
        spaces = {space: id_names(catalogue, space) for space in ("channel", "topic", "length")}
        self._names = {"item": catalogue.item_ids, **spaces, "all": [""]}
        self._past = {scope: DecayedPast(len(names), COLUMNS, half_life_ms) for scope, names in self._names.items()}

    def move_to(self, from_ms: int, until_ms: int) -> None:
        """Be ready for questions of times from `from_ms` to `until_ms`; the former never falls."""
        event_ms = self._impressions.log.event_ms
        base_ms = from_ms - self._delay_ms
        base, stop = np.searchsorted(event_ms, [base_ms, until_ms - self._delay_ms])
        for start in range(self._settled, int(base), SETTLED):
            for scope, events in self._events(start, min(start + SETTLED, int(base))):
                self._past[scope].settle(*events, base_ms)
        self._settled = max(self._settled, int(base))
        for scope, events in self._events(self._settled, max(int(stop), self._settled)):
            self._past[scope].move_to(base_ms)  # also when nothing came to be settled
            self._past[scope].open(*events)

    def summed_up(self, now_ms: int) -> ItemStatistics:
        """All that was ever shown, as of a time at or before which nothing is missing."""
        names = self._names
        found = ItemStatistics(self._impressions.delays.half_life_ms)
        for scope, past in self._past.items():
            codes = np.arange(len(names[scope]))
            sums = past.at(codes, np.full(len(codes), now_ms), np.full(len(codes), now_ms))
            for code in np.flatnonzero(sums[:, 0] > LEAST_IMPRESSIONS).tolist():
                if names[scope][code] or scope == "all":
                    found.set(scope, names[scope][code], 0, now_ms, sums[code].tolist())
        return found

    def of(self, scope: str, codes: Integers, now_ms: Rows) -> Doubles:
        """float64 [B, 4]: of these codes at these times, zeros for the code 0 of an id."""
        past = self._past[scope].at(codes.astype(np.int64), now_ms - self._delay_ms, now_ms)
        return past if scope in ("item", "all") else past * (codes > 0)[:, None]

    def _events(self, start: int, stop: int) -> Iterator[tuple[str, tuple[Rows, Rows, Doubles]]]:
        """By scope: code, time and values of the timed rows `start` to `stop` of the log."""
        impressions = self._impressions
        rows = start + np.flatnonzero(impressions.timed(slice(start, stop)))
        items, at_ms = impressions.items(rows), np.asarray(impressions.log.event_ms[rows])
        target_s = impressions.target_s(rows)
        values = np.stack(
            [np.ones(len(rows)), impressions.log.watch_s[rows] > 0, target_s, impressions.log.completed[rows]], axis=1
        ).astype(np.float64)
        topics = impressions.catalogue.topics_at(items, MOST_TOPICS).astype(np.int64)  # [E, T]
        event, place = np.nonzero(topics)
        yield "item", (items, at_ms, values)
        yield "channel", (impressions.catalogue.channel_codes(items).astype(np.int64), at_ms, values)
        yield "topic", (topics[event, place], at_ms[event], values[event])
        yield "length", (length_codes(impressions.catalogue.duration_s(items)), at_ms, values)
        yield "all", (np.zeros(len(rows), np.int64), at_ms, values)
