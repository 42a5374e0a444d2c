"""A service of the simulated world in one process: it answers people with lists, sees what they watch, and learns.

The parts are those that serve and train (towers, features, ranker, serving.request.reranking); what is left out is
what only carries (topics, index, join): an impression's outcome is known at once. The towers stay as they were
released, the ranker is trained anew on everything that was served so far, as `nextwatch train --stage ranking
--from-topics` does.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace

from infra.platform.settings import Selection
from infra.simulation.browsing_model import LOOK_ON, MOST_ANSWERS, without_repeats
from models.arrays import Array, Doubles, Floats, Rows
from models.ranking.features import ids_of
from models.ranking.item_statistics import ItemStatistics
from models.ranking.ranker import Ranked, Ranker
from models.ranking.ranker_training import train_ranker
from models.ranking.ranking_batch import SOURCES, Codes, id_names, length_codes
from models.ranking.ranking_examples import SCOPES, ExampleWriter
from models.ranking.ranking_request import RankingQuery, ranking_batch_of
from serving.request.exploration import seed_of
from serving.request.reranking import Choice, Options, choose
from streams.messages import ShownList
from tests.benchmarks.selection.selection_scene import HOUR_MS, NOW_MS, RANKER, Scene
from tests.harness.service import COMPLETED_S, watch_of

K, CANDIDATES, TOGETHER = 20, 300, 32
HALF_LIFE_H = 168.0
ROUND_MS = 3 * HOUR_MS
SELDOM = 3  # an item that was shown less often is little known
OFF = Selection()


class Shown(NamedTuple):
    """A list that was made, and what it is worth by the world's truth."""

    rows: Rows
    choice: Choice
    value_s: float  # expected seconds watched out of it
    options: Options


class Served(NamedTuple):
    """What the ranker learns from: features of B queries and of what was shown of them, and outcomes."""

    numbers: dict[str, Floats]
    codes: dict[str, Rows]
    outcomes: dict[str, Array]


class Service:
    """One way of selecting, in its own copy of the world."""

    def __init__(self, scene: Scene, selection: Selection) -> None:
        self.scene, self.selection, self.ranker = scene, selection, scene.bundle.ranker
        self.world, self.histories = copy.deepcopy(scene.world), dict(scene.histories)
        self.shown = np.zeros(len(scene.vectors))  # times that each item was shown
        self.statistics = ItemStatistics(HALF_LIFE_H * HOUR_MS)
        self.served: list[Served] = []
        self._sums: dict[tuple[str, str], Doubles] = {}
        self._requests = 0

    def told(self, other: Service) -> Service:
        """With what another service knows of the items; the people stay as they are here."""
        self.statistics, self.shown = other.statistics, other.shown
        return self

    def make_lists(
        self, users: Sequence[str], now_ms: int, selection: Selection, ranker: Ranker
    ) -> tuple[list[Shown], list[Rows], Ranked]:
        """A list for each (all different), the candidates' rows of each, and what the ranker was fed."""
        rows, scores = self._candidates(users, now_ms)
        ranked = self._rank(ranker, users, rows, scores, now_ms)
        assert ranked.spread is not None
        lists, first = [], 0
        for user, own in zip(users, rows, strict=True):
            part = slice(first, first + len(own))
            options = Options(
                scores=ranked.expected_s[part],
                channels=self.scene.bundle.catalogue.channel_codes(own),
                shown=self.shown[own],
                spread=ranked.spread[part],
                vectors=self.scene.vectors[own],
            )
            choice = choose(options, K, selection, seed_of(f"{user}/{now_ms}", selection.seed))
            chosen = own[[each.row for each in choice.items]]
            lists.append(Shown(chosen, choice, self.value_s(user, chosen, now_ms), options))
            first = part.stop
        return lists, rows, ranked

    def serve(self, users: Sequence[str], now_ms: int) -> list[Shown]:
        """Show each of them a list, and take over what they watch of it."""
        lists, rows, ranked = self.make_lists(users, now_ms, self.selection, self.ranker)
        first = np.cumsum([0, *(len(own) for own in rows)])
        watched_s = [
            self._show(user, each.rows, now_ms, self._requests + at)
            for at, (user, each) in enumerate(zip(users, lists, strict=True))
        ]
        at = np.concatenate(
            [start + np.array([c.row for c in each.choice.items]) for start, each in zip(first, lists, strict=False)]
        )
        self._record(ranked, at, lists, watched_s, now_ms)
        self._requests += len(users)
        return lists

    def learn(self, directory: Path, seed: int) -> None:
        """Train the ranker anew on all that was served."""
        writer, requests = ExampleWriter(directory), 0
        for each in self.served:
            for scope in SCOPES:
                writer.add(scope, each.numbers[scope], {f.name: each.codes[f.name] for f in ids_of(scope)})
            outcomes = dict(each.outcomes)
            outcomes["request"] = requests + np.asarray(outcomes["request"])
            writer.add_outcomes(**outcomes)
            requests += len(each.numbers["query"])
        catalogue = self.scene.bundle.catalogue
        names = {space: (id_names(catalogue, space), 0) for space in ("channel", "topic", "length")}
        examples = writer.finish(names | {"item": (catalogue.item_ids, 1), "source": (SOURCES, 0)})
        self.ranker = train_ranker(examples, directory, settings=RANKER.model_copy(update={"seed": seed}))

    def value_s(self, user: str, rows: Rows, now_ms: int) -> float:
        """True expected seconds watched out of a list."""
        item_ids = [self.scene.bundle.catalogue.item_ids[row] for row in rows.tolist()]
        return value_of(
            self.world.start_chance(user, item_ids, now_ms), self.world.expected_watch_s(user, item_ids, now_ms)
        )

    def _candidates(self, users: Sequence[str], now_ms: int) -> tuple[list[Rows], list[Floats]]:
        """The best CANDIDATES by inner product that each has not watched: rows and scores, best first."""
        catalogue, histories = self.scene.bundle.catalogue, [self.histories[user] for user in users]
        scores = self.scene.bundle.model.user_vectors(histories, now_ms) @ self.scene.vectors.T  # [B, N]
        for own, history in zip(scores, histories, strict=True):
            seen = catalogue.rows(watch.item_id for watch in history.watches)
            own[seen[seen >= 0]] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")[:, :CANDIDATES]
        return list(order), list(np.take_along_axis(scores, order, 1).astype(np.float32))

    def _rank(
        self, ranker: Ranker, users: Sequence[str], rows: list[Rows], scores: list[Floats], now_ms: int
    ) -> Ranked:
        catalogue = self.scene.bundle.catalogue
        queries = [
            RankingQuery(self.histories[user], now_ms, [catalogue.item_ids[row] for row in own.tolist()], score)
            for user, own, score in zip(users, rows, scores, strict=True)
        ]
        return ranker.rank(ranking_batch_of(queries, catalogue, [self.scene.bundle.statistics, self.statistics]))

    def _show(self, user: str, rows: Rows, now_ms: int, request: int) -> Doubles:
        """What this person watches of each shown item; it is in their history from now on. [K]"""
        item_ids = [self.scene.bundle.catalogue.item_ids[row] for row in rows.tolist()]
        events = self.world.respond(user, item_ids, now_ms)
        history, watched_s = self.histories[user], {event.item_id: event.watch_s for event in events}
        new = [watch_of(e.item_id, e.event_ms, e.watch_s, e.duration_s or 0.0, e.event_id) for e in events]
        shown = ShownList(f"r{request}", now_ms, tuple(item_ids))
        self.histories[user] = replace(
            history, watches=(*history.watches, *new), impressions=(*history.impressions, shown)[-5:]
        )
        self.shown[rows] += 1
        return np.array([watched_s.get(item_id, 0.0) for item_id in item_ids])

    def _record(self, ranked: Ranked, at: Rows, lists: list[Shown], watched_s: list[Doubles], now_ms: int) -> None:
        """Put what was shown on record, as it was fed to the ranker (rows `at`), and count it."""
        rows, seconds = np.concatenate([each.rows for each in lists]), np.concatenate(watched_s)
        sizes = [len(each.rows) for each in lists]
        duration_s = self.scene.bundle.catalogue.duration_s(rows)
        target_s = np.minimum(seconds, duration_s).astype(np.float32)
        completed = seconds >= np.minimum(duration_s, COMPLETED_S)
        numbers = {"query": ranked.numbers["query"], "impression": ranked.numbers["impression"][at]}
        codes = {f.name: _wide(ranked.ids[f.name]) for f in ids_of("query")}
        codes |= {f.name: _wide(ranked.ids[f.name])[at] for f in ids_of("impression")}
        outcomes: dict[str, Array] = {
            "request": np.repeat(np.arange(len(lists)), sizes),
            "target_s": target_s,
            "duration_s": duration_s,
            "completed": completed,
            "position": np.concatenate([np.arange(1, size + 1) for size in sizes]).astype(np.int32),
            "user": np.repeat(np.arange(len(lists)), sizes),
            "at_ms": np.full(len(rows), now_ms),
        }
        self.served.append(Served(numbers, codes, outcomes))
        self._count(rows, np.stack([np.ones(len(rows)), seconds > 0, target_s, completed], axis=1), now_ms)

    def _count(self, rows: Rows, outcomes: Doubles, now_ms: int) -> None:
        """Add outcomes [E, 4] to the item statistics. Nothing decays in so short a time."""
        catalogue = self.scene.bundle.catalogue
        lengths = id_names(catalogue, "length")
        length = length_codes(catalogue.duration_s(rows)).tolist()
        touched = set()
        for row, code, outcome in zip(rows.tolist(), length, outcomes, strict=True):
            keys = [("all", ""), ("item", catalogue.item_ids[row]), ("channel", catalogue.channel_of(row) or "")]
            keys += [("length", lengths[code]), *(("topic", topic) for topic in catalogue.topics_of(row))]
            for key in keys:
                self._sums[key] = self._sums.get(key, np.zeros(4)) + outcome
            touched.update(keys)
        for scope, name in touched:
            self.statistics.set(scope, name, 0, now_ms, self._sums[scope, name].tolist())


def serve_round(service: Service, number: int, lists: int) -> list[Shown]:
    """Some hours in which so many lists are shown, to people drawn by how active they are."""
    rng = np.random.default_rng([number, 7])
    users = rng.choice(len(service.world.user_ids), lists, p=service.world.population.user_activity)
    found: list[Shown] = []
    for block in without_repeats(users, TOGETHER):
        now_ms = NOW_MS + number * ROUND_MS + block.start * ROUND_MS // lists
        found += service.serve([service.world.user_ids[user] for user in users[block]], now_ms)
    return found


def most_active(service: Service, viewers: int) -> list[str]:
    """The most active people: those who would ask."""
    active = np.argsort(-service.world.population.user_activity, kind="stable")[:viewers]
    return [service.world.user_ids[user] for user in active]


def together(users: list[str]) -> list[list[str]]:
    rest = iter(users)
    return list(iter(lambda: list(islice(rest, TOGETHER)), []))


def value_of(chance: Doubles, watch_s: Doubles) -> float:
    """Expected seconds out of a list [K]."""
    return float(values_of(chance[None], watch_s[None])[0])


def values_of(chance: Doubles, watch_s: Doubles) -> Doubles:
    """Expected seconds out of each of B lists [B, K] whose places are looked at from the top
    (infra.simulation.browsing_model.look_down): chance to start each, and its seconds once started. Who has started
    MOST_ANSWERS looks no further."""
    total, started = np.zeros(len(chance)), np.zeros((len(chance), MOST_ANSWERS))
    started[:, 0] = 1.0  # chances to have started 0, 1, ... so far
    for place, each in enumerate(chance.T, 1):
        total += LOOK_ON**place * started.sum(1) * each * watch_s[:, place - 1]
        more = started[:, :-1] * each[:, None]
        started *= 1 - each[:, None]
        started[:, 1:] += more
    return total


def _wide(named: Codes) -> Rows:
    """[B] or [B, M] -> [B, M]"""
    return named.codes[:, None] if named.codes.ndim == 1 else named.codes
