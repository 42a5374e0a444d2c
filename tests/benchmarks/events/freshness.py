"""How fast a watch changes what is answered, and a new item can be found, under a steady load."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from indexer.collection import Index
from indexer.errors import IndexFailure
from indexer.schema import is_one_of
from infra.operate.replay import replay
from infra.platform.kafka_clients import client_options
from infra.platform.settings import Settings
from infra.simulation.world import NOTICE, World
from nextwatch_client import RecommendClient, RecommendRequest
from streams.messages import WatchEvent, encode
from streams.topics import ITEMS, SEARCH_EVENTS, TOPICS, WATCH_EVENTS
from tests.benchmarks.events.process_cpu import cpu_by_process
from tests.benchmarks.load import create_load, steady_requests
from tests.benchmarks.report import Report, histogram_quantile, main, quantile
from tests.harness.beside import beside
from tests.harness.system import (
    Cluster,
    embedded,
    read_metrics,
    release,
    running,
    temporary_settings,
    wait_for_health,
    wait_until,
)

EVENTS_PER_S, REQUESTS_PER_S = 200.0, 20.0
STEADY_SHARE = 0.5  # of the requests; the others ask for users who have just watched
DAY_MS = 86_400_000
PATIENCE_S = 20.0
STEP_S = 0.05  # of the world: finer steps would cost what is measured a good part of a core


def measure(report: Report, quick: bool) -> None:
    """Watch sent until a reply computed from it, and first watch of a new item until it can be retrieved."""
    seconds, events = (15, 20_000) if quick else (90, 60_000)
    report.title = f"freshness: {EVENTS_PER_S:.0f} events/s and {REQUESTS_PER_S:.0f} requests/s for {seconds} s"
    report.note(NOTICE)
    now_ms = _now_ms()
    world = World(seed=3, start_ms=now_ms, events_per_s=EVENTS_PER_S)
    log, items = world.past_log(now_ms - 7 * DAY_MS, now_ms, events), world.items_frame(now_ms)
    with temporary_settings() as own, embedded(own) as settings, running(settings) as processes:
        replay(log, settings, items=items)
        with Cluster(settings.kafka) as cluster:
            wait_until(lambda: cluster.behind("history", WATCH_EVENTS) == 0, "histories", 120)
        version = release(settings, log, items)["version"]
        wait_for_health(settings, *processes.values())
        probe(report, settings, Feed(world, settings), version, seconds)


class Feed:
    """The world's events on their way to Kafka. One lock: the world is not for two threads."""

    def __init__(self, world: World, settings: Settings) -> None:
        self.world, self.sent = world, 0
        self._prefix = settings.kafka.topic_prefix
        self._producer = create_load(settings.kafka, linger_ms=1)
        self._lock = threading.Lock()

    def step(self) -> None:
        """What has happened by now."""
        with self._lock:
            happened = self.world.step(_now_ms())
        for item in happened.items:
            self._send(ITEMS, item.item_id, item)
        for watch in happened.watches:
            self._send(WATCH_EVENTS, watch.user_id, watch)
        for search in happened.searches:
            self._send(SEARCH_EVENTS, search.user_id, search)
        self.sent += len(happened.watches)
        self._producer.poll(0)

    def visitor(self) -> str:
        with self._lock:
            return self.world.visitors(1)[0]

    def watch_something(self) -> WatchEvent:
        """Somebody watches one of the older videos to its end, now."""
        with self._lock:
            user, now_ms = self.world.visitors(1)[0], _now_ms()
            watch = self.world.watch(user, f"v{now_ms % 1000:06d}", now_ms, share=1.0)
        self._send(WATCH_EVENTS, user, watch)
        return watch

    def watch_new(self) -> str:
        """A new video appears and one of the channel's friends watches it at once; its id."""
        with self._lock:
            now_ms = _now_ms()
            channels = self.world.population.channel_names
            item = self.world.publish(channels[now_ms % len(channels)], now_ms)
            fan = self.world.fans(item.channel or "", now_ms, 1)[0]
            watch = self.world.watch(fan, item.item_id, now_ms, share=1.0)
        self._send(ITEMS, item.item_id, item)
        self._send(WATCH_EVENTS, fan, watch)
        return item.item_id

    def close(self) -> None:
        self._producer.flush(10)

    def _send(self, topic: str, key: str, message: Any) -> None:
        self._producer.produce(self._prefix + topic, key=key.encode(), value=encode(message))


def probe(report: Report, settings: Settings, feed: Feed, version: str, seconds: float) -> None:
    """Let the world live for a while, with probes going on beside it."""
    feed.world.idle_until(_now_ms())
    before = {name: read_metrics(settings, name) for name in ("history", "indexer")}
    cpu_before, records_before = cpu_by_process(), records_by_topic(settings)
    began_s = time.monotonic()
    print("PROBE", flush=True)
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(RecommendClient(client_options(settings.kafka)))
        index = stack.enter_context(contextlib.closing(Index(settings.milvus)))
        stack.callback(feed.close)
        stack.enter_context(every(STEP_S, feed.step))
        asked = stack.enter_context(steady_requests(client, feed.visitor, STEADY_SHARE * REQUESTS_PER_S))
        found_s = stack.enter_context(watching_for_new(feed, index, version))
        fresh_s, probes = follow_watches(feed, client, seconds)
    lasted_s = time.monotonic() - began_s
    cores = {name: (spent - cpu_before.get(name, 0.0)) / lasted_s for name, spent in cpu_by_process().items()}
    records = {topic: count - records_before[topic] for topic, count in records_by_topic(settings).items()}
    after = {name: read_metrics(settings, name) for name in before}
    add_row(report, "watch sent to a reply computed from it", fresh_s)
    add_row(report, "first watch of a new item to retrievable", found_s)
    add_row(report, "request, whole way", [ms / 1000 for ms in asked.latencies_ms])
    for what, process, name in (
        ("watch to history (its own metric)", "history", "nextwatch_event_to_history_seconds"),
        ("watch to vector (its own metric)", "indexer", "nextwatch_event_to_vector_seconds"),
    ):
        p50, p99 = (histogram_quantile(before[process], after[process], name, q) for q in (0.5, 0.99))
        count = after[process].get(f"{name}_count", 0.0) - before[process].get(f"{name}_count", 0.0)
        report.add(**{"what": what, "n": round(count), "p50 s": p50, "p99 s": p99})
    report.note("CPU, of one core: " + ", ".join(f"{name} {share:.0%}" for name, share in sorted(cores.items())))
    report.note(
        "records/s: " + ", ".join(f"{topic} {count / lasted_s:.0f}" for topic, count in records.items() if count)
    )
    requests_per_s = (len(asked.latencies_ms) + asked.failed + probes) / lasted_s
    report.note(
        f"load: {feed.sent / lasted_s:.0f} events/s, {requests_per_s:.0f} requests/s; {asked.failed} unanswered, "
        f"{sum(bool(reply.degraded) for reply in asked.replies)} degraded"
    )
    report.bar("watch to reply p99, s", quantile(fresh_s, 0.99), at_most=1.0)
    report.bar("new item to retrievable p99, s", quantile(found_s, 0.99), at_most=5.0)


def records_by_topic(settings: Settings) -> dict[str, int]:
    with Cluster(settings.kafka) as cluster:
        return {topic.name: cluster.total(topic.name) for topic in TOPICS}


def follow_watches(feed: Feed, client: RecommendClient, seconds: float) -> tuple[list[float], int]:
    """Send a watch, then ask for its user until the reply knows of it, again and again; the seconds each time, and how
    many requests it took."""
    fresh_s: list[float] = []
    requests = 0
    began_s = time.monotonic()
    while time.monotonic() - began_s < seconds:
        sent_s = time.monotonic()
        watch = feed.watch_something()
        while time.monotonic() - sent_s < PATIENCE_S:
            request = RecommendRequest(uuid.uuid4().hex, watch.user_id)
            reply = client.result(client.submit(request), request, PATIENCE_S)
            requests += 1
            if (reply.history_event_ms or 0) >= watch.event_ms:
                break
        fresh_s.append(time.monotonic() - sent_s)
        due_s = began_s + requests / ((1 - STEADY_SHARE) * REQUESTS_PER_S)
        time.sleep(max(0.0, due_s - time.monotonic()))
    return fresh_s, requests


@contextlib.contextmanager
def watching_for_new(feed: Feed, index: Index, version: str) -> Iterator[list[float]]:
    """Every second a new item is watched for the first time; the seconds until a search finds it. One that is never
    found counts as PATIENCE_S."""
    waiting: dict[str, float] = {}
    found_s: list[float] = []
    last_s = 0.0

    def look() -> None:
        nonlocal last_s
        if time.monotonic() - last_s >= 1:
            last_s = time.monotonic()
            waiting[feed.watch_new()] = last_s
        for item_id in retrievable(index, version, list(waiting)):
            found_s.append(time.monotonic() - waiting.pop(item_id))

    with every(0.1, look):
        yield found_s
    deadline = time.monotonic() + PATIENCE_S
    while waiting and time.monotonic() < deadline:
        for item_id in retrievable(index, version, list(waiting)):
            found_s.append(time.monotonic() - waiting.pop(item_id))
    found_s.extend(PATIENCE_S for _ in waiting)


def retrievable(index: Index, version: str, item_ids: list[str]) -> list[str]:
    """Those of the items that a search of the collection finds."""
    if not item_ids:
        return []
    with contextlib.suppress(IndexFailure):  # busy: it is asked again
        there = index.vectors(version, item_ids)
        if not there:
            return []
        vectors = np.stack([vector for _, vector in there.values()])
        hits = index.search(version, vectors, len(there), expression=is_one_of(list(there)))
        return [item_id for item_id, (ids, _) in zip(there, hits, strict=True) if item_id in ids]
    return []


def every(pause_s: float, work: Callable[[], None]) -> contextlib.AbstractContextManager[None]:
    """Call `work` in a thread, again and again, while the block runs; its failure is raised at the end."""

    def run(stop: threading.Event) -> None:
        while not stop.wait(pause_s):
            work()

    return beside(run, "every")


def add_row(report: Report, what: str, seconds: list[float]) -> None:
    row = {"what": what, "n": len(seconds), "p50 s": quantile(seconds, 0.5), "p99 s": quantile(seconds, 0.99)}
    report.add(**row, **{"max s": max(seconds, default=float("nan"))})


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


if __name__ == "__main__":
    main("freshness", measure)
