"""What is sent until it is written; the producer's book-keeping of topics, in kafka-python's own classes."""

import gc
from contextlib import closing
from types import SimpleNamespace
from typing import Any
from weakref import WeakValueDictionary

import pytest
from kafka import TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.cluster import ClusterMetadata
from kafka.errors import InvalidTimestampError, KafkaTimeoutError
from kafka.future import Future
from kafka.producer.record_accumulator import RecordAccumulator

from infra.local.broker import Broker
from infra.platform import metrics
from infra.platform.settings import Kafka, Settings
from serving.worker import outbox as outbox_module
from serving.worker.offset_tracker import CLIENT_S, Sent
from serving.worker.outbox import MEET_MS, OURS, Outbox
from streams import topics
from streams.topics import open_admin
from tests.conftest import on_both_brokers
from tests.harness.needs import require_kafka
from tests.harness.system import wait_until

MAX_BLOCK_MS = 60_000.0


class Producer:
    """Sends as KafkaProducer does, to brokers that have the topics of `there`; adds up how long callers stand still."""

    def __init__(self, **_: Any) -> None:
        self.there = {f"x-{topic}" for topic in OURS}
        self.sent: list[str] = []
        self.futures: list[Future] = []
        self.waited_ms = 0.0
        self._metadata, self._accumulator = ClusterMetadata(), RecordAccumulator()
        self._sender = SimpleNamespace(add_topic=lambda topic: None, wakeup=lambda: None)

    def refresh(self) -> None:
        self._metadata._partitions = {topic: {0: None} for topic in self._metadata._topics & self.there}

    def partitions_for(self, topic: str) -> set[int]:
        return self._wait_on_metadata(topic, MAX_BLOCK_MS)

    def send(self, topic: str, value: bytes | None, **how: Any) -> Future:
        self._wait_on_metadata(topic, MAX_BLOCK_MS)
        self._accumulator._batches[TopicPartition(topic, 0)].append(value)
        self.sent.append(topic)
        self.futures.append(Future())
        return self.futures[-1]

    def _wait_on_metadata(self, topic: str, most_ms: float) -> set[int]:
        if topic not in self._metadata.topics():
            self._metadata._topics = self._metadata._topics | {topic}
            self.refresh()
        if topic not in self._metadata.topics():
            self.waited_ms += most_ms
            raise KafkaTimeoutError
        return {0}


@pytest.fixture
def producer(monkeypatch: pytest.MonkeyPatch) -> Producer:
    producer = Producer()
    monkeypatch.setattr(outbox_module, "KafkaProducer", lambda **_: producer)
    return producer


@pytest.fixture
def outbox(producer: Producer) -> Outbox:
    return Outbox(Kafka(topic_prefix="x-"))


def undelivered() -> float:
    return float(metrics.REQUESTS.labels("undeliverable")._value.get())


def test_what_we_send_to_is_known_from_the_start(outbox: Outbox, producer: Producer) -> None:
    assert producer._metadata.topics() == {f"x-{topic}" for topic in OURS}


def test_a_reply_topic_that_was_deleted_is_waited_for_once_and_then_asked_for_no_more(
    outbox: Outbox, producer: Producer
) -> None:
    producer.there.add("theirs")
    outbox.send_outside("theirs", b"a", of=0)
    assert producer.sent == ["theirs"]
    assert outbox.drop_gone_topics() == set()
    producer.there.discard("theirs")
    producer.refresh()
    before = undelivered()
    for _ in range(3):
        outbox.send_outside("theirs", b"b", of=0)
    assert undelivered() == before + 3
    assert producer.sent == ["theirs"]
    assert producer.waited_ms == MEET_MS
    assert outbox.drop_gone_topics() == set(), "a reply waits"
    producer._accumulator._batches[TopicPartition("theirs", 0)].clear()  # after two minutes
    assert outbox.drop_gone_topics() == {"theirs"}
    assert "theirs" not in producer._metadata._topics
    assert outbox.drop_gone_topics() == set()


def test_a_reply_to_a_clients_topic_is_on_its_way_until_the_producer_is_done_with_it(
    outbox: Outbox, producer: Producer
) -> None:
    """For longer than offsets wait for it: copies that come then make no further reply."""
    now_s = [0.0]
    outbox.offsets._clock = lambda: now_s[0]
    producer.there.add("theirs")
    known: WeakValueDictionary[str, Sent] = WeakValueDictionary()
    sent = outbox.send_outside("theirs", b"a", of=0)
    assert sent is not None
    known["reply"] = sent
    del sent
    outbox.seal({TopicPartition("x-recommend-requests", 0): 1})
    now_s[0] = CLIENT_S + 1
    assert outbox.offsets.acknowledged() and not len(outbox.offsets)
    gc.collect()
    assert known["reply"].is_on_its_way
    producer.futures.pop().success(None)
    gc.collect()
    assert "reply" not in known


def test_a_reply_topic_that_one_answer_of_the_brokers_left_out_is_sent_to(outbox: Outbox, producer: Producer) -> None:
    producer.there.add("theirs")
    for value in (b"a", b"b"):
        outbox.send_outside("theirs", value, of=0)
        producer._metadata._partitions = {}  # until it is asked for again
        assert outbox.drop_gone_topics() == set()
    assert producer.sent == ["theirs", "theirs"]


def test_a_queue_to_a_topic_that_was_deleted_is_kept_as_long_as_there_is_a_reply_in_it(
    outbox: Outbox, producer: Producer
) -> None:
    """The producer asks for the leader of every queue that it has, also of an empty one."""
    theirs = TopicPartition("theirs", 0)
    producer.there.add("theirs")
    outbox.send_outside("theirs", b"a", of=0)
    outbox.send("impressions", b"i", of=0, key=b"ann")
    producer.there.clear()
    producer.refresh()
    batches = producer._accumulator._batches
    batches[TopicPartition("x-impressions", 0)].clear()
    outbox.drop_gone_topics()
    assert list(batches[theirs]) == [b"a"]
    batches[theirs].clear()  # after two minutes
    outbox.drop_gone_topics()
    assert list(batches) == [TopicPartition("x-impressions", 0)], "our own are none of its business"


def test_a_reply_topic_that_does_not_come_is_waited_for_once_and_for_a_second(
    outbox: Outbox, producer: Producer
) -> None:
    before = undelivered()
    for _ in range(5):
        outbox.send_outside("theirs", b"a", of=0)
    assert undelivered() == before + 5
    assert producer.waited_ms == MEET_MS
    assert outbox.drop_gone_topics() == {"theirs"}
    producer.there.add("theirs")
    outbox.send_outside("theirs", b"b", of=0)
    assert producer.sent == ["theirs"]


def test_an_impression_is_sent_until_the_brokers_take_it_and_nobody_stands_still_meanwhile(
    outbox: Outbox, producer: Producer
) -> None:
    impressions = TopicPartition("x-impressions", 0)
    producer.there.discard("x-impressions")
    producer.refresh()
    outbox.send("impressions", b"i", of=0, key=b"ann")
    outbox.seal({})
    assert outbox.offsets.acknowledged() == {} and len(outbox.offsets) == 1
    assert producer._metadata.need_update, "the brokers are asked for it"
    producer.there.add("x-impressions")
    producer.refresh()
    outbox.offsets._again_s = 0.0
    outbox.offsets.acknowledged()
    assert (producer.waited_ms, list(producer._accumulator._batches[impressions])) == (0.0, [b"i"])


def test_a_topic_that_is_gone_when_it_is_first_needed_ends_nothing(outbox: Outbox, producer: Producer) -> None:
    producer.there.discard("x-impressions")
    producer.refresh()
    outbox.send("impressions", b"i", of=0, key=b"ann")
    outbox.offsets.wait_for_open()
    outbox.seal({})
    with pytest.raises(KafkaTimeoutError):
        outbox.offsets.wait(0.0)


def test_a_topic_that_was_made_again_with_fewer_partitions_ends_nothing(
    outbox: Outbox, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send(*_: Any, **__: Any) -> None:
        raise ValueError("Unrecognized partition")

    monkeypatch.setattr(producer, "send", send)
    outbox.send("impressions", b"i", of=3, partition=3)
    outbox.seal({})
    assert outbox.offsets.acknowledged() == {} and len(outbox.offsets) == 1


def test_a_heartbeat_that_is_lost_is_borne(outbox: Outbox, producer: Producer) -> None:
    producer.there.discard("x-releases")
    producer.refresh()
    outbox.tell("releases", b"alive")
    outbox.seal({})
    outbox.offsets.acknowledged()
    assert (producer.waited_ms, len(outbox.offsets)) == (0.0, 0)


def test_a_time_that_the_topic_does_not_take_is_replaced_by_that_of_the_sending(
    outbox: Outbox, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[tuple[dict[str, Any], Future]] = []

    def send(topic: str, value: bytes | None, **how: Any) -> Future:
        tries.append((how, Future()))
        return tries[-1][1]

    def give_back(error: Exception) -> None:
        tries[-1][1].failure(error)
        outbox.offsets._again_s = 0.0
        outbox.offsets.acknowledged()

    monkeypatch.setattr(producer, "send", send)
    outbox.send("recommend-requests", b"r", of=0, key=b"ann", partition=2, timestamp_ms=5)
    outbox.seal({TopicPartition("recommend-requests", 0): 1})
    give_back(KafkaTimeoutError("an outage: the time stays"))
    give_back(InvalidTimestampError("too old by now"))
    place = {"key": b"ann", "partition": 2}
    assert [how for how, _ in tries] == [place | {"timestamp_ms": 5}, place | {"timestamp_ms": 5}, place]
    tries[-1][1].success(None)
    assert outbox.offsets.acknowledged() == {TopicPartition("recommend-requests", 0): 1}


@on_both_brokers
def test_a_request_that_is_older_than_its_topic_allows_is_written_all_the_same(
    broker: Broker, kafka_settings: Settings
) -> None:
    """It has waited for long on a partition that is not its user's, and is forwarded."""
    require_kafka(broker.kind, "noida takes any time")
    kafka = kafka_settings.kafka
    topics.create_topics(kafka)
    name = kafka.topic_prefix + topics.RECOMMEND_REQUESTS
    with open_admin(kafka) as admin:
        config = {"message.timestamp.before.max.ms": "60000"}
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, configs=config)])
    place, due = TopicPartition(name, 0), {}
    with closing(Outbox(kafka)) as outbox:
        outbox.send(topics.RECOMMEND_REQUESTS, b"{}", of=0, partition=0, timestamp_ms=1_000)
        outbox.seal({place: 1})
        wait_until(lambda: due.update(outbox.offsets.acknowledged()) or due, "it is written", 20.0, every_s=0.05)
    assert due == {place: 1}
