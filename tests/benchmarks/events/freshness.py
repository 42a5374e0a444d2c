"""How fast a watch changes what is answered, and a new item can be found, under a steady load."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from indexer.collection import MOST_HITS, Index
from indexer.errors import IndexFailure
from infra.platform.kafka_clients import client_options
from infra.platform.settings import Settings
from infra.simulation.world import NOTICE, World
from nextwatch_client import RecommendClient, RecommendRequest
from streams.messages import WatchEvent, encode
from streams.topics import ITEMS, SEARCH_EVENTS, WATCH_EVENTS
from tests.benchmarks.load import create_load
from tests.benchmarks.report import Report, histogram_quantile, percentiles, quantile
from tests.harness.beside import beside
from tests.harness.requests import Asked, steady, wait_for_replies
from tests.harness.system import read_metrics, running_release
from tests.harness.traffic import now_ms as clock_ms

EVENTS_PER_S, REQUESTS_PER_S = 200.0, 20.0
STEADY_SHARE = 0.5  # of the requests; the others ask for users who have just watched
DAY_MS = 86_400_000
PATIENCE_S = 20.0


def measure(report: Report, quick: bool) -> None:
    """Watch sent until a reply computed from it, and first watch of a new item until it can be retrieved."""
    seconds, events = (15, 20_000) if quick else (90, 60_000)
    report.title = f"freshness: {EVENTS_PER_S:.0f} events/s and {REQUESTS_PER_S:.0f} requests/s for {seconds} s"
    report.note(NOTICE)
    now_ms = clock_ms()
    world = World(seed=3, start_ms=now_ms, events_per_s=EVENTS_PER_S)
    log, items = world.past_log(now_ms - 7 * DAY_MS, now_ms, events), world.items_frame(now_ms)
    with running_release(log, items) as (settings, version):
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
            happened = self.world.step(clock_ms())
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


def probe(report: Report, settings: Settings, feed: Feed, version: str, seconds: float) -> None:
    """Let the world live for a while, with probes going on beside it."""
    feed.world.idle_until(clock_ms())
    before = {name: read_metrics(settings, name) for name in ("history", "indexer")}
    began_s, asked = time.monotonic(), list[Asked]()
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(RecommendClient(client_options(settings.kafka)))
        index = stack.enter_context(contextlib.closing(Index(settings.milvus)))
        stack.callback(feed.close)
        stack.enter_context(every(0.02, feed.step))
        stack.callback(wait_for_replies, asked, 30.0)
        rate = STEADY_SHARE * REQUESTS_PER_S
        stack.enter_context(steady(client, feed.visitor, rate, asked, (), deadline_ms=30_000))
        found_s = stack.enter_context(watching_for_new(feed, index, version))
        fresh_s, probes = follow_watches(feed, client, seconds)
    lasted_s, answered = time.monotonic() - began_s, [each for each in asked if each.reply is not None]
    after = {name: read_metrics(settings, name) for name in before}
    add_row(report, "watch sent to a reply computed from it", fresh_s)
    add_row(report, "first watch of a new item to retrievable", found_s)
    add_row(report, "request, whole way", [each.ms / 1000 for each in answered])
    for what, process, name in (
        ("watch to history (its own metric)", "history", "nextwatch_event_to_history_seconds"),
        ("watch to vector (its own metric)", "indexer", "nextwatch_event_to_vector_seconds"),
    ):
        p50, p99 = (histogram_quantile(before[process], after[process], name, q) for q in (0.5, 0.99))
        count = after[process].get(f"{name}_count", 0.0) - before[process].get(f"{name}_count", 0.0)
        report.add(**{"what": what, "n": round(count), "p50 s": p50, "p99 s": p99})
    requests_per_s = (len(asked) + probes) / lasted_s
    report.note(
        f"load: {feed.sent / lasted_s:.0f} events/s, {requests_per_s:.0f} requests/s; "
        f"{len(asked) - len(answered)} unanswered, "
        f"{sum(bool(each.reply and each.reply.degraded) for each in answered)} degraded"
    )
    report.bar("watch to reply p99, s", quantile(fresh_s, 0.99), at_most=1.0)
    report.bar("new item to retrievable p99, s", quantile(found_s, 0.99), at_most=5.0)


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
        hits = index.search(version, np.stack([vector for _, vector in there.values()]), MOST_HITS)
        return [item_id for item_id, (ids, _) in zip(there, hits, strict=True) if item_id in ids]
    return []


def every(pause_s: float, work: Callable[[], None]) -> contextlib.AbstractContextManager[None]:
    """Call `work` in a thread, again and again, while the block runs; its failure is raised at the end."""

    def run(stop: threading.Event) -> None:
        while not stop.wait(pause_s):
            work()

    return beside(run, "every")


def add_row(report: Report, what: str, seconds: list[float]) -> None:
    row = {"what": what, "n": len(seconds), **percentiles(seconds, "s")}
    report.add(**row, **{"max s": max(seconds, default=float("nan"))})
