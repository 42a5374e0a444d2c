"""How fast a watch changes what is answered, and a new item can be found, under a steady load.

What the world does is made up before it is measured, and only sent at its time: making it up would cost what is
measured a part of the cores that everything shares.
"""

from __future__ import annotations

import contextlib
import gc
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from msgspec.structs import replace

from indexer.collection import Index
from indexer.errors import IndexFailure
from indexer.schema import is_one_of
from infra.platform.kafka_clients import client_options
from infra.platform.settings import Settings
from infra.simulation.world import NOTICE, World
from nextwatch_client import RecommendClient, RecommendRequest, RequestTimeout
from streams.messages import WatchEvent, encode
from streams.topics import ITEMS, SEARCH_EVENTS, TOPICS, WATCH_EVENTS
from tests.benchmarks.events.process_cpu import cpu_by_process
from tests.benchmarks.load import create_load
from tests.benchmarks.report import Report, histogram_quantile, percentiles, quantile
from tests.harness.beside import beside
from tests.harness.requests import Asked, steady, wait_for_replies
from tests.harness.system import Cluster, read_metrics, running_release, wait_until
from tests.harness.traffic import now_ms as clock_ms

LOADS = ((200.0, 20.0), (500.0, 60.0))  # events/s and requests/s
STEADY_SHARE = 0.5  # of the requests; the others ask for users who have just watched
DAY_MS = 86_400_000
PATIENCE_S = 20.0
STEP_MS = 50  # of the world
PROBE_S = 0.5  # more than a probe takes while the system keeps up
WARM_S = 10.0  # of the load before anything is measured
SPARE_S = 10.0  # of it beyond what is measured: counters are read before, and the last probe ends after


def measure(report: Report, quick: bool) -> None:
    """Watch sent until a reply computed from it, and first watch of a new item until it can be retrieved."""
    seconds, events, loads = (15, 20_000, LOADS[:1]) if quick else (60, 60_000, LOADS)
    report.title = "freshness"
    report.note(NOTICE)
    now_ms = clock_ms()
    world = World(seed=3, start_ms=now_ms)
    log, items = world.past_log(now_ms - 7 * DAY_MS, now_ms, events), world.items_frame(now_ms)
    with running_release(log, items) as (settings, version):
        for events_per_s, requests_per_s in loads:
            feed = Feed(world, settings, events_per_s, WARM_S + seconds + SPARE_S)
            probe(report, settings, feed, version, requests_per_s, seconds)
            with Cluster(settings.kafka) as cluster:
                wait_until(lambda: cluster.behind("history", WATCH_EVENTS) == 0, "histories", 120)


class Feed:
    """What the world does in `seconds` from now on, on its way to Kafka. One lock: the world is not for two threads."""

    def __init__(self, world: World, settings: Settings, events_per_s: float, seconds: float) -> None:
        self.world, self.sent = world, 0
        world.events_per_s = events_per_s
        begin_ms, self._lock = clock_ms(), threading.Lock()
        world.idle_until(begin_ms)
        steps = range(begin_ms + STEP_MS, begin_ms + round(1000 * seconds), STEP_MS)
        self._coming = deque((at_ms, world.step(at_ms)) for at_ms in steps)
        self._begin_ms = begin_ms
        self._late_ms: int | None = None  # by which all of it is put off: known with the first step
        self._prefix = settings.kafka.topic_prefix
        self._producer = create_load(settings.kafka, linger_ms=1)

    def step(self) -> None:
        """Send what has happened by now; the first call begins it, however long getting ready took."""
        if self._late_ms is None:
            self._late_ms = clock_ms() - self._begin_ms
        while self._coming and self._coming[0][0] + self._late_ms <= clock_ms():
            _, happened = self._coming.popleft()
            for item in happened.items:
                self._send(ITEMS, item.item_id, replace(item, published_ms=clock_ms()))
            for watch in happened.watches:
                self._send(WATCH_EVENTS, watch.user_id, replace(watch, event_ms=watch.event_ms + self._late_ms))
            for search in happened.searches:
                self._send(SEARCH_EVENTS, search.user_id, replace(search, event_ms=search.event_ms + self._late_ms))
            self.sent += len(happened.watches)
        self._producer.poll(0)

    def visitor(self) -> str:
        with self._lock:
            return self.world.visitors(1)[0]

    def watch_something(self) -> WatchEvent:
        """Somebody watches one of the older videos to its end, now."""
        with self._lock:
            user, now_ms = self.world.visitors(1)[0], clock_ms()
            watch = self.world.watch(user, f"v{now_ms % 1000:06d}", now_ms, share=1.0)
        self._send(WATCH_EVENTS, user, watch)
        return watch

    def watch_new(self) -> str:
        """A new video appears and one of the channel's friends watches it at once; its id."""
        with self._lock:
            now_ms = clock_ms()
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


def probe(report: Report, settings: Settings, feed: Feed, version: str, per_s: float, seconds: float) -> None:
    """Let the world live for a while, with probes going on beside it."""
    asked = list[Asked]()
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(RecommendClient(client_options(settings.kafka)))
        index = stack.enter_context(contextlib.closing(Index(settings.milvus)))
        stack.callback(feed.close)
        gc.collect()
        gc.freeze()  # what the load holds: looking through it would stop the clock's threads, not the system
        stack.callback(gc.unfreeze)
        stack.enter_context(every(STEP_MS / 1000, feed.step))
        stack.callback(wait_for_replies, asked, 30.0)
        stack.enter_context(steady(client, feed.visitor, STEADY_SHARE * per_s, asked, (), deadline_ms=30_000))
        time.sleep(WARM_S)
        before = {name: read_metrics(settings, name) for name in ("history", "indexer")}
        records_before, records_began_s = records_by_topic(settings), time.monotonic()
        cpu_before, began_s = cpu_by_process(), time.monotonic()
        asked.clear()
        feed.sent = 0  # from here on, for reading what was there before takes seconds too
        found_s = stack.enter_context(watching_for_new(feed, index, version))
        fresh_s, probes = follow_together(feed, client, (1 - STEADY_SHARE) * per_s, seconds)
        lasted_s = time.monotonic() - began_s
        cores = {name: (spent - cpu_before.get(name, 0.0)) / lasted_s for name, spent in cpu_by_process().items()}
        requests_per_s, events_per_s = (len(asked) + probes) / lasted_s, feed.sent / lasted_s
        records = {topic: count - records_before[topic] for topic, count in records_by_topic(settings).items()}
        records_s = time.monotonic() - records_began_s
    answered = [each for each in asked if each.reply is not None]
    after = {name: read_metrics(settings, name) for name in before}
    load = f"{feed.world.events_per_s:.0f}/{per_s:.0f}"
    add_row(report, load, "watch sent to a reply computed from it", fresh_s)
    add_row(report, load, "first watch of a new item to retrievable", found_s)
    add_row(report, load, "request, whole way", [each.ms / 1000 for each in answered])
    for what, process, name in (
        ("watch to history (its own metric)", "history", "nextwatch_event_to_history_seconds"),
        ("watch to vector (its own metric)", "indexer", "nextwatch_event_to_vector_seconds"),
    ):
        p50, p99 = (histogram_quantile(before[process], after[process], name, q) for q in (0.5, 0.99))
        count = after[process].get(f"{name}_count", 0.0) - before[process].get(f"{name}_count", 0.0)
        report.add(**{"events/s, requests/s": load, "what": what, "n": round(count), "p50 s": p50, "p99 s": p99})
    degraded = sum(bool(each.reply and each.reply.degraded) for each in answered)
    first = sum(bool(each.reply and each.reply.retrieved_by == "mirror") for each in answered)
    report.note(
        f"{load}: {events_per_s:.0f} events/s, {requests_per_s:.0f} requests/s made; {len(asked) - len(answered)} "
        f"unanswered, {degraded} of {len(answered)} degraded, {first} from the mirror"
    )
    report.note(
        f"{load}: CPU, of one core: " + ", ".join(f"{name} {share:.0%}" for name, share in sorted(cores.items()))
    )
    rates = ", ".join(f"{topic} {count / records_s:.0f}" for topic, count in records.items() if count)
    report.note(f"{load}: records/s: {rates}")
    stops = {name: read_metrics(settings, name)["nextwatch_gc_longest_seconds"] for name in ("serving", *before)}
    told = ", ".join(f"{name} {1000 * longest_s:.0f} ms" for name, longest_s in stops.items())
    report.note(f"{load}: longest full garbage collection of what is newer than readiness: {told}")
    is_first = feed.world.events_per_s == LOADS[0][0]
    report.bar(f"{load}: watch to reply p99, s", quantile(fresh_s, 0.99), at_most=0.3 if is_first else 1.0)
    report.bar(f"{load}: events made, of asked for", events_per_s / feed.world.events_per_s, at_least=0.95)
    report.bar(f"{load}: requests made, of asked for", requests_per_s / per_s, at_least=0.95)
    if is_first:
        report.bar(f"{load}: new item to retrievable p99, s", quantile(found_s, 0.99), at_most=1.2)
        report.bar(f"{load}: degraded, share", degraded / max(1, len(answered)), at_most=0.01)


def records_by_topic(settings: Settings) -> dict[str, int]:
    with Cluster(settings.kafka) as cluster:
        return {topic.name: cluster.total(topic.name) for topic in TOPICS}


def follow_together(feed: Feed, client: RecommendClient, per_s: float, seconds: float) -> tuple[list[float], int]:
    """As many at once as make so many requests a second of half a second each; they come at random as people do, for
    in step they would be one large batch again and again."""
    size = max(1, round(per_s * PROBE_S))
    with ThreadPoolExecutor(size) as pool:
        found = list(pool.map(lambda seed: follow_watches(feed, client, per_s / size, seconds, seed), range(size)))
    return [each for fresh_s, _ in found for each in fresh_s], sum(requests for _, requests in found)


def follow_watches(
    feed: Feed, client: RecommendClient, per_s: float, seconds: float, seed: int
) -> tuple[list[float], int]:
    """Send a watch, then ask for its user until the reply knows of it, again and again; the seconds each time, and how
    many requests it took."""
    fresh_s: list[float] = []
    requests, rng = 0, np.random.default_rng(seed)
    began_s = time.monotonic()
    due_s = began_s + rng.exponential(1 / per_s)
    while due_s - began_s < seconds:
        time.sleep(max(0.0, due_s - time.monotonic()))
        sent_s = time.monotonic()
        watch = feed.watch_something()
        while time.monotonic() - sent_s < PATIENCE_S:
            request = RecommendRequest(uuid.uuid4().hex, watch.user_id)
            requests += 1
            due_s += rng.exponential(1 / per_s)
            try:
                reply = client.result(client.submit(request), request, PATIENCE_S)
            except RequestTimeout:  # as long as we would have waited for a reply that knows the watch
                break
            if (reply.history_event_ms or 0) >= watch.event_ms:
                break
        fresh_s.append(time.monotonic() - sent_s)
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
        # among these alone: the look should not be what is measured
        hits = index.search(version, vectors, len(there), expression=is_one_of(list(there)))
        return [item_id for item_id, (ids, _) in zip(there, hits, strict=True) if item_id in ids]
    return []


def every(pause_s: float, work: Callable[[], None]) -> contextlib.AbstractContextManager[None]:
    """Call `work` in a thread, again and again, while the block runs; its failure is raised at the end."""

    def run(stop: threading.Event) -> None:
        while not stop.wait(pause_s):
            work()

    return beside(run, "every")


def add_row(report: Report, load: str, what: str, seconds: list[float]) -> None:
    row = {"events/s, requests/s": load, "what": what, "n": len(seconds), **percentiles(seconds, "s")}
    report.add(**row, **{"max s": max(seconds, default=float("nan"))})
