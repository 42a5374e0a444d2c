"""The whole system under a steady load of watches and requests, of which parts are taken away for a while.

What the load has had acknowledged is counted again in everything that is made of it: histories, examples learnt, what
is trending, examples of impressions, and the index. Nothing of that is what the system counts itself.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from statistics import median
from typing import Generic, Protocol, TypeVar

import numpy as np
from kafka import KafkaProducer

from indexer.collection import Index
from infra.local.broker import Broker
from infra.local.milvus_server import MilvusServer
from infra.platform.guarded_process import GuardedProcess
from infra.platform.kafka_clients import client_options, kafka_python_options
from infra.platform.settings import Embedded, Indexer, Join, Kafka, Serving, Settings, Trending
from nextwatch_client import RecommendClient
from streams import messages, topics
from streams.kafka.faust_app import EXIT_AGAIN
from streams.messages import Impression, ItemVector, RankingExample, UserHistory, WatchEvent, decode, encode
from tests.benchmarks.reliability.soak import resident_mb
from tests.harness.beside import beside, paced
from tests.harness.crash.replay import read_all
from tests.harness.crash.verdict import trending_counts
from tests.harness.needs import LIBFAKETIME
from tests.harness.network.line import Line, line_to
from tests.harness.requests import Asked, steady, wait_for_replies
from tests.harness.service import READY_S, Releases, Service, Size, train_releases
from tests.harness.system import ALL, services, wait_until, with_section
from tests.harness.traffic import Histories, Reader, Traffic, now_ms, total_of, vector_of

PATIENCE_S = 180.0
PER_USER = 40  # watches; fewer than a history keeps, so that all of them must be in it
AT_ONCE = 20  # users who are watching
SENDING_S = 1800.0  # those who watch try for longer than any outage
KNOWN_S = 1800.0  # for so long an impression that is sent again, after a rebalance, is known as the same one
PROCESSES = ALL


class Brokers(Protocol):
    """One or several; whether they answer, and have all that they should."""

    def is_ready(self) -> bool: ...


B = TypeVar("B", bound=Brokers)


class Watching:
    """Watches one after the other. `acknowledged` are those that the brokers have taken."""

    def __init__(self, kafka: Kafka, items: list[str]) -> None:
        self.acknowledged: dict[str, tuple[str, str]] = {}  # event id: user and item
        self._prefix, self._items = kafka.topic_prefix, items
        self._producer = KafkaProducer(
            **kafka_python_options(kafka),
            acks="all",
            delivery_timeout_ms=round(1000 * SENDING_S),
            max_block_ms=round(1000 * SENDING_S),
            reconnect_backoff_max_ms=1000,
        )
        self._tag, self._numbers = uuid.uuid4().hex[:6], itertools.count()

    def close(self) -> None:
        self._producer.flush(timeout=PATIENCE_S)
        self._producer.close(timeout=10)

    def watch(self) -> None:
        number = next(self._numbers)
        block, at = divmod(number, AT_ONCE * PER_USER)
        user, item = f"w{self._tag}-{block}-{at % AT_ONCE}", self._items[number % len(self._items)]
        event = WatchEvent(f"{self._tag}-{number}", user, item, now_ms(), 60.0, 60.0)
        sent = self._producer.send(self._prefix + topics.WATCH_EVENTS, encode(event), key=user.encode())
        sent.add_callback(lambda _: self.acknowledged.update({event.event_id: (user, item)}))


@dataclass
class Counted:
    """What became of the acknowledged watches and of the impressions, by what is made of them."""

    watches: int = 0
    lost: dict[str, int] = field(default_factory=dict)
    doubled: dict[str, int] = field(default_factory=dict)

    @property
    def is_exact(self) -> bool:
        return not any(self.lost.values()) and not any(self.doubled.values())


@dataclass
class System(Generic[B]):
    settings: Settings
    releases: Releases
    broker: B
    milvus: MilvusServer
    line: Line  # from our processes to Milvus
    service: Service
    vectors: Reader
    histories: Histories
    clock: WallClock | None = None
    acknowledged: dict[str, tuple[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._item_keys = {item.encode() for item in self.releases.items}

    @property
    def processes(self) -> dict[str, GuardedProcess]:
        return self.service.processes

    @contextlib.contextmanager
    def watching(self, per_s: float) -> Iterator[Watching]:
        """So many watches a second; at the end all are acknowledged."""
        load = Watching(self.settings.kafka, list(self.releases.items))
        try:
            with contextlib.closing(load), beside(lambda stop: paced(load.watch, per_s, stop), "watches"):
                yield load
        finally:  # whoever counts after a failure counts these too
            self.acknowledged |= load.acknowledged

    @contextlib.contextmanager
    def asking(self, per_s: float) -> Iterator[list[Asked]]:
        """So many requests a second; at the end all are answered, or none any more is waited for."""
        asked: list[Asked] = []
        next_user = partial(Random(1).choice, list(self.releases.histories))
        with RecommendClient(client_options(self.settings.kafka)) as client:
            with steady(client, next_user, per_s, asked, tag=uuid.uuid4().hex[:6]):
                yield asked
            wait_for_replies(asked, PATIENCE_S)

    @contextlib.contextmanager
    def growing(self) -> Iterator[dict[str, float]]:
        """By process the MB that its resident memory grows by, at most, while the block runs; looked at beside it."""
        before, grown = self._resident_mb(), dict[str, float]()

        def look(stop: threading.Event) -> None:
            while not stop.wait(0.2):
                for name, mb in self._resident_mb().items():
                    if name in before:
                        grown[name] = round(max(mb - before[name], grown.get(name, -before[name])), 1)

        with beside(look, "memory"):
            yield grown

    def _resident_mb(self) -> dict[str, float]:
        return {name: resident_mb(process.pid) for name, process in self.processes.items() if process.poll() is None}

    # --- what is taken away ------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def stopped(self, pid: int) -> Iterator[None]:
        """Within the block this process group stands still: it takes connections, and answers nothing."""
        os.killpg(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(pid, signal.SIGCONT)

    @contextlib.contextmanager
    def killed(self, service: Broker | MilvusServer) -> Iterator[None]:
        service.process.kill()
        try:
            yield
        finally:
            service.restart()

    # --- what is there -----------------------------------------------------------------------------------------------

    def all_ready(self) -> bool:
        return all(each["ready"] for each in self.service.health().values())

    def wait_until_it_works(self) -> dict[str, float]:
        """Seconds until the services answer, all are ready, a new watch is in its history, and a new request is
        answered: each from the beginning, the last is when everything works."""
        began_s, after_s = time.monotonic(), dict[str, float]()

        def done(what: str) -> None:
            after_s[what] = round(time.monotonic() - began_s, 1)

        wait_until(lambda: self.broker.is_ready() and self.milvus.is_ready(), "services", PATIENCE_S)
        done("services")
        wait_until(self.all_ready, "all processes ready", PATIENCE_S)
        done("ready")
        user = f"probe-{uuid.uuid4().hex[:8]}"
        item = next(iter(self.releases.items))
        with contextlib.closing(Traffic(self.settings.kafka)) as traffic:
            event = traffic.watch(user, item)
        self.acknowledged[event.event_id] = (user, item)
        wait_until(lambda: self._has_history(user), "a watch in its history", PATIENCE_S)
        done("watch")
        with RecommendClient(client_options(self.settings.kafka)) as client:
            client.recommend(next(iter(self.releases.histories)), timeout_s=PATIENCE_S, retries=round(PATIENCE_S))
        done("request")
        return after_s

    def _has_history(self, user: str) -> bool:
        self.histories.records += self.histories._follower.poll(0.1)
        return user.encode() in self.histories.newest()

    def count(self) -> Counted:
        """Wait until all has arrived, or does not any more, and count."""
        counted = Counted(len(self.acknowledged))
        deadline = time.monotonic() + PATIENCE_S
        while True:
            for name, (lost, doubled) in self._differences().items():
                counted.lost[name], counted.doubled[name] = lost, doubled
            if counted.is_exact or time.monotonic() > deadline:
                return counted
            time.sleep(0.5)

    def _differences(self) -> dict[str, tuple[int, int]]:
        watched = Counter(item for _, item in self.acknowledged.values())
        return {
            "histories": in_histories(self.histories, self.acknowledged),
            "learnt": difference(watched, self._learnt()),
            "trending": difference(watched, trending_counts(self.settings)),
            "joined": self._of_impressions(),
            "index": self._of_index(),
        }

    def rows(self) -> dict[str, ItemVector]:
        """The newest row of each item."""
        self.vectors.to_the_end()
        items = (record for record in self.vectors.records if record.key in self._item_keys)
        newest = {record.key.decode(): record.value for record in items}
        return {item: decode(ItemVector, value) for item, value in newest.items() if value is not None}

    def _learnt(self) -> Counter[str]:
        """How often each item was learnt since the release, as its row says."""
        model = self.releases.bundles[0].model
        before = dict(zip(model.item_ids, model.popularity.totals().tolist(), strict=True))
        return Counter({item: round(total_of(row) - before.get(item, 0.0)) for item, row in self.rows().items()})

    def _of_impressions(self) -> tuple[int, int]:
        """Impressions without an example, and of one request more than one. Windows are short here. An impression that
        was sent twice, since its first acknowledgement was lost, has one."""
        shown, made = (read_all(self.settings, topic) for topic in (topics.IMPRESSIONS, topics.RANKING_EXAMPLES))
        impressions = [decode(Impression, each.value, max_bytes=len(each.value)) for each in shown]
        examples = [decode(RankingExample, each.value, max_bytes=len(each.value)) for each in made]
        found = {(each.impression.request_id, each.partition, each.offset) for each in examples}
        requests = {request_id for request_id, *_ in found}
        return len({each.request_id for each in impressions} - requests), len(found) - len(requests)

    def _of_index(self) -> tuple[int, int]:
        """Items whose vector in the index is not that of their newest row; there is no second one of an item."""
        version = self.releases.bundles[0].manifest.version
        rows = {item: vector_of(row) for item, row in self.rows().items()}
        try:
            with contextlib.closing(Index(self.settings.milvus)) as index:
                found = index.vectors(version, list(rows))
        except Exception:  # Milvus is not back yet: looked at again
            return len(rows), 0
        right = [item for item in rows if item in found and np.allclose(found[item][1], rows[item], atol=1e-5)]
        return len(rows) - len(right), 0


def in_histories(histories: Histories, acknowledged: Mapping[str, object]) -> tuple[int, int]:
    """How many of these events are in no history, and how many are there too often."""
    histories.to_the_end()
    found: Counter[str] = Counter()
    for record in histories.newest().values():
        if record.value is not None:
            history = decode(UserHistory, record.value, max_bytes=len(record.value))
            found.update(watch.event_id for watch in history.watches if watch.event_id in acknowledged)
    return len(acknowledged) - len(found), sum(count - 1 for count in found.values())


def difference(wanted: Counter[str], found: Counter[str]) -> tuple[int, int]:
    """How many are missing, and how many too many."""
    return (wanted - found).total(), (found - wanted).total()


@dataclass
class Replies:
    """What became of requests."""

    answered: int
    told: int  # the client has failed them, with a reason
    unanswered: int
    longest_s: float
    median_s: float
    by_mirror: int  # of those answered, in place of the index

    @classmethod
    def of(cls, asked: list[Asked]) -> Replies:
        answered = [each for each in asked if each.reply is not None]
        told = [each for each in asked if each.future.done() and each.reply is None]
        took_s = [each.ms / 1000 for each in answered] or [0.0]
        by_mirror = sum(any(step.startswith("mirror") for step in each.reply.degraded) for each in answered)
        unanswered = len(asked) - len(answered) - len(told)
        return cls(len(answered), len(told), unanswered, max(took_s), median(took_s), by_mirror)


class WallClock:
    """The wall clock of our processes, by libfaketime: `jump` sets it. Monotonic clocks, and the services', go on."""

    def __init__(self, library: str, file: Path) -> None:
        self._file = file
        self.jump(0)
        self.environ = {
            "LD_PRELOAD": library,
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def jump(self, seconds: int) -> None:
        """So far ahead of this machine's clock, at once."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{seconds:+d}\n")
        fresh.replace(self._file)

    @contextlib.contextmanager
    def jumped(self, seconds: int) -> Iterator[None]:
        self.jump(seconds)
        try:
            yield
        finally:
            self.jump(0)


@contextlib.contextmanager
def running_outages(data_dir: Path) -> Iterator[System[Broker]]:
    """On one broker (Apache Kafka when KAFKA_HOME is set)."""
    with (
        services(outage_settings(data_dir)) as (settings, broker, milvus),
        running_on(settings, broker, milvus) as system,
    ):
        yield system


def outage_settings(data_dir: Path) -> Settings:
    return Settings(
        data_dir=data_dir,
        kafka=Kafka(partitions=2, session_timeout_s=6.0),
        join=Join(window_s=2.0, grace_s=KNOWN_S, early_s=KNOWN_S),
        trending=Trending(half_life_s=1e9),
        indexer=Indexer(window_s=0.1),
        serving=Serving(first="index", heartbeat_s=0.5),
        embedded=Embedded(ready_timeout_s=READY_S),
    )


@contextlib.contextmanager
def running_on(settings: Settings, broker: B, milvus: MilvusServer) -> Iterator[System[B]]:
    """Milvus Lite at the end of a line, and every process of ours, answering from a release. Where libfaketime is
    found, `clock` is our processes' wall clock."""
    releases = train_releases(settings.bundles_dir, 1, Size(), now_ms=now_ms())
    with contextlib.ExitStack() as stack:
        line = stack.enter_context(line_to(milvus.address))
        settings = with_section(settings, "milvus", uri=f"http://{line.address}")
        traffic = stack.enter_context(contextlib.closing(Traffic(settings.kafka)))
        service = Service(settings, releases, milvus, traffic, stack)
        service.tell_known()
        library = LIBFAKETIME.find()
        clock = WallClock(library, settings.data_dir / "clock") if library else None
        service.environ = clock.environ if clock else {}
        for name in PROCESSES:
            service.start(name)
        service.wait_ready(*PROCESSES)
        service.wait_served(service.publish(0))
        readers = Reader(settings.kafka, topics.ITEM_VECTORS), Histories(settings.kafka)
        for reader in readers:
            stack.callback(reader.close)
        with beside(lambda stop: start_again(service, stop), "supervisor"):
            yield System(settings, releases, broker, milvus, line, service, *readers, clock)


def start_again(service: Service, stop: threading.Event) -> None:
    """As a supervisor does, those that have stepped aside because the group had gone on without them; no others."""
    while not stop.wait(0.2):
        for name, process in list(service.processes.items()):
            if process.poll() == EXIT_AGAIN:
                service.start(name)


def ask_and_wait(bootstrap: str, partitions: str, user: str, count: str) -> None:
    """A client as a process of its own: it sends, says so, and then reads its replies, or tries to."""
    with RecommendClient(client_options(Kafka(bootstrap=bootstrap, partitions=int(partitions)))) as client:
        waiting = [client.submit(messages.RecommendRequest(f"slow/{n}", user)) for n in range(int(count))]
        print("sent", flush=True)
        answered = [future.result(PATIENCE_S) for future in waiting]
    print(f"{len(answered)} answered", flush=True)
