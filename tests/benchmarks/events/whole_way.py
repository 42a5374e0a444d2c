"""The way of events through the whole system: how many a second reach the end of each stage, and whose CPU it takes.

All processes run. A backlog is sent at once, to people whose histories are full; from then on it is noted how far each
stage has come. A figure holds only when the work was done, so everything is looked at afterwards: one training example
of each watch, the newest watch in each history and in what a server answers from, rows of the topic in the index, the
joined watches in examples, and no dead letter.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from indexer.collection import Index
from infra.operate.training import announce_bundle
from infra.platform.kafka_clients import client_options
from infra.platform.settings import Settings
from models.release.bundle import Bundle, read_bundle
from nextwatch_client import RecommendClient, RecommendRequest
from streams import topics
from streams.messages import Impression, UserHistory, WatchEvent, decode, encode
from tests.benchmarks.events.join import LENGTH, PARTITIONS, items_of, with_query
from tests.benchmarks.events.process_cpu import cpu_by_process
from tests.benchmarks.load import send_all
from tests.benchmarks.report import Report, say
from tests.benchmarks.serving import serving_ground
from tests.benchmarks.serving.large import enlarged
from tests.benchmarks.serving.serving_service import health_of
from tests.harness.crash.replay import read_all
from tests.harness.crash.verdict import SAME, newest_rows
from tests.harness.system import Cluster, read_metrics, running, services, temporary_settings, wait_until
from tests.harness.traffic import vector_of

CATALOGUE = 10_000
HISTORY = 50  # watches of everybody before anything is measured
WATCHES = 2  # of a list
APART_MS = 1000  # event time from one watch to the next: windows shall end within a backlog
PUBLISH_S = 1.0  # for a row that waits: by default longer, and then the end would be that of waiting
STILL_S = 4.0  # nothing has moved for so long: all is done
LOOK_EVERY_S = 0.5
PATIENCE_S = 240.0
ASKED, ROWS = 20, 200  # people whose newest watch a server must know, rows that must be in the index
GROUPS = {
    "history": (topics.WATCH_EVENTS, topics.IMPRESSIONS),
    "join": (topics.WATCH_EVENTS, topics.IMPRESSIONS),
    "trending": (topics.WATCH_EVENTS,),
    "trainer": (topics.TRAINING_EXAMPLES,),
}
VIEWS = (topics.ITEM_VECTORS, topics.ITEM_STATISTICS, topics.TRENDING)
WRITTEN = (topics.TRAINING_EXAMPLES, topics.ITEM_VECTORS, topics.RANKING_EXAMPLES, topics.DEAD_LETTERS)
PROCESSES = ("history", "trainer", "join", "trending", "indexer", "serve", "broker", "milvus")

Messages = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Backlog:
    """Watches, and the lists that they were chosen from; `newest` watch of each user by its time."""

    watches: Messages
    lists: Messages
    newest: dict[str, int]


@dataclass(frozen=True)
class Place:
    """A moment: how far each stage has come, and the CPU seconds by process."""

    at_s: float
    done: dict[str, float]
    cpu_s: dict[str, float]


def measure(report: Report, quick: bool) -> None:
    """Events/s from a watch to history, example, step, row, index and a server's views, and CPU ms of each process."""
    events, users = (4_000, 80) if quick else (20_000, 400)
    report.title = f"whole way: {events:,} watches of {users:,} users with {HISTORY} watches each, all at once"
    small = serving_ground.small_release(quick)
    sizes = {"": HISTORY * users, "watches only": events, f"watches, {WATCHES} of each list of {LENGTH}": events}
    sections = {"kafka": {"partitions": PARTITIONS}, "trainer": {"publish_s": PUBLISH_S}}
    with temporary_settings(**sections) as own, services(own) as (settings, _, _):
        bundle = release(settings, small)
        with running(settings) as _, Cluster(settings.kafka) as cluster:
            wait_until(lambda: health_of(settings, "serving").get("version_served") is not None, "a server", PATIENCE_S)
            system = System(settings, cluster, bundle)
            first, total, now_ms = 0, sum(sizes.values()), round(time.time() * 1000)
            for what, count in sizes.items():
                say(what or "filling histories")
                start_ms = now_ms - APART_MS * (total - first)
                backlog = make_backlog(bundle.model.item_ids, first, count, users, start_ms, with_lists="list" in what)
                row = system.measure(backlog)
                if what:
                    report.add(what=what, **row)
                first += count
    report.note(f"{CATALOGUE:,} items; CPU in ms per watch; serving answers nobody: its views alone")
    report.note(f"trainer.publish_s is {PUBLISH_S:g}: more rows than by default, and an end that can be seen")
    report.note("events/s up to the last change of: " + ", ".join((*GROUPS, "rows", "index", "views")))


def release(settings: Settings, small: Bundle) -> Bundle:
    """Announce a release of the whole catalogue, as it is written."""
    manifest = enlarged(small, settings.bundles_dir, CATALOGUE)
    bundle = read_bundle(settings.bundles_dir / manifest.version)
    items = serving_ground.items_of(bundle.catalogue)
    send_all(settings.kafka, topics.ITEMS, ((item.item_id.encode(), encode(item)) for item in items))
    announce_bundle(settings, manifest)
    return bundle


def make_backlog(names: list[str], first: int, count: int, users: int, start_ms: int, *, with_lists: bool) -> Backlog:
    """Completed watches, the users in turn; each list comes before the first of its watches."""
    rng = np.random.default_rng(first)
    watches, lists, newest = [], [], {}
    shown: dict[str, tuple[str, list[str]]] = {}  # by user: the request, and what of it was not watched yet
    for number in range(first, first + count):
        user, at_ms, request_id = f"u{number % users}", start_ms + APART_MS * (number - first), None
        item_id = names[number * 7919 % len(names)]
        if with_lists:
            if not shown.get(user, ("", []))[1]:
                item_ids = [names[row] for row in rng.choice(len(names), LENGTH, replace=False)]
                shown[user] = f"r{number}", item_ids[:WATCHES]
                listed = Impression(f"r{number}", user, at_ms - 1, "server", "v1", items_of(item_ids, True, rng))
                lists.append((user.encode(), encode(with_query(listed, rng))))
            request_id, item_id = shown[user][0], shown[user][1].pop(0)
        watch = WatchEvent(f"e{number}", user, item_id, at_ms, 30.0 + number % 7, 60.0, request_id)
        watches.append((user.encode(), encode(watch)))
        newest[user] = at_ms
    return Backlog(watches, lists, newest)


class System:
    """What runs, seen from outside."""

    def __init__(self, settings: Settings, cluster: Cluster, bundle: Bundle) -> None:
        self._settings, self._cluster, self._bundle = settings, cluster, bundle

    def measure(self, backlog: Backlog) -> dict[str, Any]:
        """Send a backlog, follow it to its end, and look at all that came of it."""
        before = self._look()
        joined = self._joined()
        send_all(self._settings.kafka, topics.IMPRESSIONS, backlog.lists)
        send_all(self._settings.kafka, topics.WATCH_EVENTS, backlog.watches)
        looks = [before, *self._looks(before)]
        self._check(backlog, before, looks[-1], self._joined() - joined)
        count = len(backlog.watches)
        ends = {name: end_of(name, looks) for name in (*GROUPS, "rows", "index", "views")}
        last = max(ends.values(), key=lambda look: look.at_s)
        row: dict[str, Any] = {"events/s": count / (last.at_s - before.at_s)}
        row["events/s by stage"] = ", ".join(
            f"{name} {count / (look.at_s - before.at_s):,.0f}" for name, look in ends.items()
        )
        spent = {name: 1000 * (last.cpu_s[name] - before.cpu_s[name]) / count for name in PROCESSES}
        return row | {"CPU ms": sum(spent.values()), **spent}

    def _looks(self, before: Place) -> Iterator[Place]:
        """Look again and again until nothing is left to do and nothing moves."""
        last, moved_s = before, time.monotonic()
        while time.monotonic() - before.at_s < PATIENCE_S:
            time.sleep(LOOK_EVERY_S)
            look = self._look()
            yield look
            if look.done != last.done:
                last, moved_s = look, time.monotonic()
            if not look.done["behind"] and time.monotonic() - moved_s > STILL_S:
                return
        raise TimeoutError(f"not at the end after {PATIENCE_S:g} s: {last.done}")

    def _look(self) -> Place:
        cluster, settings = self._cluster, self._settings
        done: dict[str, float] = {name: float(cluster.total(name)) for name in WRITTEN}
        behind = {name: sum(cluster.behind(name, topic) for topic in read) for name, read in GROUPS.items()}
        indexer, serving = read_metrics(settings, "indexer"), read_metrics(settings, "serving")
        behind["index"] = indexer["nextwatch_index_changes_waiting"] + lag_of(indexer)
        behind["views"] = lag_of(serving)
        for name, left in behind.items():
            done[name] = sum(cluster.total(topic) for topic in GROUPS.get(name, ())) - left
        done["behind"] = sum(behind.values())
        done["rows"] = done[topics.ITEM_VECTORS]
        done["upserted"] = indexer["nextwatch_index_rows_upserted_total"]
        done["index"] += done["upserted"]
        done["received"] = sum(serving.get(f'nextwatch_messages_received_total{{topic="{name}"}}', 0) for name in VIEWS)
        done["views"] += done["received"]
        done["steps"] = read_metrics(settings, "trainer")["nextwatch_training_steps_total"]
        return Place(time.monotonic(), done, cpu_by_process())

    def _joined(self) -> float:
        return read_metrics(self._settings, "join").get('nextwatch_join_watches_total{outcome="joined"}', 0.0)

    def _check(self, backlog: Backlog, before: Place, after: Place, joined: float) -> None:
        """Raise RuntimeError unless every stage has done its work."""
        made = {name: after.done[name] - before.done[name] for name in after.done}
        count = len(backlog.watches)
        wrong = [name for name in (topics.ITEM_VECTORS, "upserted", "received", "steps") if not made[name] > 0]
        if made[topics.TRAINING_EXAMPLES] != count:
            wrong.append(f"{made[topics.TRAINING_EXAMPLES]:.0f} training examples of {count} watches")
        if backlog.lists and (joined != count or not made[topics.RANKING_EXAMPLES] > 0):
            wrong.append(f"{joined:.0f} watches joined, {made[topics.RANKING_EXAMPLES]:.0f} ranking examples")
        if after.done[topics.DEAD_LETTERS]:
            wrong.append("dead letters")
        wrong += [*self._histories(backlog), *self._answers(backlog), *self._index()]
        if wrong:
            raise RuntimeError(f"the work was not done: {', '.join(wrong[:5])}")

    def _histories(self, backlog: Backlog) -> Iterator[str]:
        found = {}
        for record in read_all(self._settings, topics.USER_HISTORIES):
            history = decode(UserHistory, record.value, max_bytes=len(record.value))
            found[history.user_id] = len(history.watches), history.watches[-1].event_ms
        for user, newest_ms in backlog.newest.items():
            if found.get(user) != (HISTORY, newest_ms):
                yield f"history of {user}: {found.get(user)}"

    def _answers(self, backlog: Backlog) -> Iterator[str]:
        users = list(backlog.newest)[:ASKED]
        with contextlib.closing(RecommendClient(client_options(self._settings.kafka))) as client:
            for user in users:
                request = RecommendRequest(f"look-{user}-{backlog.newest[user]}", user, record=False)
                reply = client.result(client.submit(request), request, 30.0)
                if not reply.items or reply.history_event_ms != backlog.newest[user]:
                    yield f"answer for {user}: of {reply.history_event_ms}"

    def _index(self) -> Iterator[str]:
        """Some of the rows that were learnt, as the trainer wrote them last."""
        version, rows = self._bundle.manifest.version, newest_rows(self._settings, self._bundle)
        item_ids = sorted(rows)[:: max(1, len(rows) // ROWS)]
        with contextlib.closing(Index(self._settings.milvus)) as index:
            found, count = index.vectors(version, item_ids), index.count(version)
        if count != CATALOGUE:
            yield f"{count} rows in the index"
        for item_id in item_ids:
            if item_id not in found or not np.allclose(found[item_id][1], vector_of(rows[item_id]), SAME, SAME):
                yield f"row of {item_id} in the index"


def end_of(name: str, looks: list[Place]) -> Place:
    """The moment of a stage's last step."""
    return next(look for look in looks if look.done[name] == looks[-1].done[name])


def lag_of(page: dict[str, float]) -> float:
    """Messages that a process has not handled of all that it follows."""
    return sum(value for sample, value in page.items() if sample.startswith("nextwatch_consumer_lag_messages{"))
