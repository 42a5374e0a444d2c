"""The loop on a broker that librdkafka makes up in this process: what a rebalance, a first start and a stop do."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from infra.platform import metrics
from infra.platform.health import Health
from infra.platform.port_locks import is_listening
from infra.platform.settings import Ingest, Kafka, Settings
from infra.platform.topic_mappings import TopicMapping
from streams.ingest.batch import Reader, readers_of
from streams.ingest.registry import Waiting
from streams.ingest.worker import IngestLoop, addresses_of, run_ingest
from streams.kafka.intake import Raw
from streams.kafka.requirements import TopicUnfit
from streams.topics import WATCH_EVENTS

PLAYS = TopicMapping(
    topic="plays", becomes="watch-events", fields={name: name for name in ("user_id", "item_id", "event_ms", "watch_s")}
)
PLACE = ("plays", 0)


class Cluster:
    """One broker, which makes a topic when somebody writes to it."""

    def __init__(self) -> None:
        self._producer = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "in this process", "log_level": 0})
        (broker,) = self._producer.list_topics(timeout=10).brokers.values()
        self.bootstrap = f"{broker.host}:{broker.port}"
        self.send(WATCH_EVENTS, b"")

    def send(self, topic: str, value: bytes) -> None:
        self._producer.produce(topic, value=value, partition=0)
        assert self._producer.flush(10) == 0

    def play(self, item_id: str) -> None:
        self.send("plays", json.dumps({"user_id": "u", "item_id": item_id, "event_ms": 1, "watch_s": 3}).encode())

    def committed(self, group: str = "nextwatch-ingest") -> int:
        with closing(Consumer({"bootstrap.servers": self.bootstrap, "group.id": group})) as consumer:
            (place,) = consumer.committed([TopicPartition(*PLACE)], timeout=10)
            return int(place.offset)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@contextmanager
def running(cluster: Cluster, readers: dict[str, Reader] | None = None, **ingest: Any) -> Iterator[IngestLoop]:
    ours = Settings(
        kafka=Kafka(bootstrap=cluster.bootstrap, session_timeout_s=6), ingest=Ingest(topics=(PLAYS,), **ingest)
    )
    loop = IngestLoop(ours, Health("ingest"), readers or readers_of(ours), threading.Event())
    try:
        yield loop
    finally:
        loop.close()


def turn_until(loop: IngestLoop, is_so: Callable[[], Any], wait_s: float = 20) -> None:
    end_s = time.monotonic() + wait_s
    while not is_so():
        assert time.monotonic() < end_s, "it does not come to that"
        loop.turn()


class Unready(Reader):
    """A reader for which a schema may not be there yet."""

    is_ready = False

    def read(self, raw: Raw) -> Any:
        if not self.is_ready:
            raise Waiting("a schema")
        return super().read(raw)


def test_a_partition_that_waits_and_comes_back_after_a_rebalance_is_read_again(cluster: Cluster):
    cluster.play("v")
    reader = Unready([PLAYS], None, 1000)
    with running(cluster, {"plays": reader}) as loop:
        turn_until(loop, lambda: loop._health.waiting_for == "a schema")
        loop._problems = {"plays": "of before", "": "of none", "theirs": "of another topic"}
        told = {"on_assign": loop._assigned, "on_revoke": loop._revoked, "on_lost": loop._lost}
        loop._consumer.subscribe(["plays"], **told)  # joins again
        turn_until(loop, lambda: not loop._stuck)
        assert "plays" not in loop._problems, "it may be another's by now"
        reader.is_ready = True
        turn_until(loop, lambda: loop.handled == 1)
        assert list(loop._problems) == ["theirs"]


class Watched:
    """The loop's consumer: its waits for a commit are counted, and at first nobody says what is committed."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self.waited = self.asked = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    def commit(self, offsets: Any, asynchronous: bool) -> None:
        self.waited += not asynchronous
        self._consumer.commit(offsets=offsets, asynchronous=asynchronous)

    def committed(self, *given: Any) -> Any:
        self.asked += 1
        if self.asked == 1:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        return self._consumer.committed(*given)


def test_a_start_at_the_end_is_settled_once_and_what_comes_while_nobody_reads_is_read(cluster: Cluster):
    cluster.play("before")
    with running(cluster, start="latest") as loop:
        loop._consumer = watched = Watched(loop._consumer)
        turn_until(loop, lambda: loop._next and not loop._is_committing)
        assert (loop._next[PLACE], watched.asked) == (1, 2)
    assert watched.waited == 0, "a stop waits for no broker without end"
    assert cluster.committed() == 1
    cluster.play("meanwhile")
    with running(cluster, start="latest") as loop:
        turn_until(loop, lambda: loop.handled)
        assert (loop.handled, loop._next[PLACE]) == (1, 2)


def test_brokers_are_not_looked_for_while_records_move(cluster: Cluster, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []
    monkeypatch.setattr("streams.ingest.worker.is_listening", asked.append)
    with running(cluster) as loop:
        loop.handled = 1
        loop._look()
        assert not asked and loop._are_brokers_there
        loop._look_s = 0
        loop._look()
        assert asked == [cluster.bootstrap] and not loop._are_brokers_there


def test_brokers_may_be_told_in_every_way_that_librdkafka_knows():
    assert addresses_of("a:1, b,,[::1]:9093,[::1],") == ["a:1", "b:9092", "[::1]:9093", "[::1]:9092"]


def test_an_address_that_can_be_none_is_one_where_nobody_listens(monkeypatch: pytest.MonkeyPatch):
    assert not any(map(is_listening, ("", "host", "host:x", "127.0.0.1:99999", "a..b:1")))
    asked: list[Any] = []
    monkeypatch.setattr("socket.create_connection", lambda to, timeout: nullcontext(asked.append(to)))
    assert is_listening("[::1]:9092") and asked == [("::1", 9092)]


def test_topics_that_would_lose_what_is_written_end_the_start(monkeypatch: pytest.MonkeyPatch):
    def unfit(settings: Settings, names: Iterable[str]) -> None:
        raise TopicUnfit(", ".join(names))

    monkeypatch.setattr("streams.ingest.worker.require_topics", lambda kafka, names: None)
    monkeypatch.setattr("streams.ingest.worker.require_settings", unfit)
    with pytest.raises(TopicUnfit, match="watch-events, search-events, signals, items, dead-letters"):
        run_ingest(Settings(ingest=Ingest(topics=(PLAYS,))), threading.Event())


def test_a_stop_ends_beside_brokers_that_say_nothing(cluster: Cluster, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("streams.ingest.worker.LEAVE_S", 0.2)
    said = threading.Event()
    with running(cluster) as loop:
        real, loop._consumer = loop._consumer, SimpleNamespace(close=lambda: said.wait(30))
        start_s = time.monotonic()
        loop.close()
        assert time.monotonic() - start_s < 20
        said.set()
        loop._consumer = real


def test_what_is_sent_is_committed_when_its_partition_is_given_up_and_nobody_stands_still_for_it(cluster: Cluster):
    cluster.play("v")
    with running(cluster) as loop:
        turn_until(loop, lambda: loop.handled == 1 and not loop._is_committing)
        loop._consumer = watched = Watched(loop._consumer)
        loop._is_committing = True  # the answer to the last one does not come
        cluster.play("w")
        turn_until(loop, lambda: loop.handled == 2)
        before = metrics.REBALANCES._value.get()
        told = {"on_assign": loop._assigned, "on_revoke": loop._revoked, "on_lost": loop._lost}
        loop._consumer.subscribe(["plays"], **told)  # joins again
        turn_until(loop, lambda: metrics.REBALANCES._value.get() > before)
        assert cluster.committed() == 2 and watched.waited == 0
        loop._is_committing = False
        cluster.play("x")
        turn_until(loop, lambda: loop.handled >= 3)
        assert loop.handled == 3, "nothing is read again"
