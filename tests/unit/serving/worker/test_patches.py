"""What kafka-python has no public way for: where a test fails, its patch is no longer needed (or it has changed)."""

import inspect
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.coordinator.consumer import ConsumerCoordinator
from kafka.errors import KafkaTimeoutError
from kafka.net.selector import NetworkSelector
from kafka.producer.record_accumulator import RecordAccumulator

from serving.worker import patches

GONE, OURS = TopicPartition("gone", 0), TopicPartition("ours", 0)


@pytest.fixture
def producer() -> Any:
    """Without a broker."""
    producer = KafkaProducer(bootstrap_servers="127.0.0.1:1", api_version=(2, 8), max_block_ms=300)
    yield producer
    producer._sender.force_close()
    producer._sender.join(5)


def test_sending_to_a_topic_that_is_not_known_stands_still(producer: Any) -> None:
    assert patches.known_topics(producer) == set()
    with pytest.raises(KafkaTimeoutError, match=r"after 0\.3 s"):
        producer.send("gone", b"x")


def test_nobody_may_say_how_long_a_topic_is_waited_for(producer: Any) -> None:
    assert list(inspect.signature(KafkaProducer.partitions_for).parameters) == ["self", "topic"]
    assert "timeout" not in str(inspect.signature(KafkaProducer.send))
    with pytest.raises(KafkaTimeoutError, match=r"after 0\.1 s"):
        patches.wait_for_topic(producer, "gone", 100)


def test_a_topic_that_an_answer_left_out_is_asked_for_when_somebody_wants_it(producer: Any) -> None:
    answer = SimpleNamespace(API_VERSION=1, brokers=[(0, "127.0.0.1", 1, None)], controller_id=0, topics=[])
    producer._metadata.set_topics(["ours"])
    producer._metadata.update_metadata(answer)
    assert not producer._metadata.need_update, "left to the next refresh"
    patches.ask_for_topic(producer, "ours")
    assert producer._metadata.need_update


def test_a_topic_that_was_asked_for_is_asked_for_for_ever(producer: Any) -> None:
    assert not [name for name in KafkaProducer.DEFAULT_CONFIG if "idle" in name and "metadata" in name]
    producer._metadata.set_topics(["gone"])
    assert not hasattr(producer._metadata, "remove_topic")
    patches.forget_topics(producer, {"gone"}, set())
    assert producer._metadata._topics == set()


def test_an_empty_queue_stays_and_has_its_leader_asked_for() -> None:
    accumulator = RecordAccumulator()
    producer = SimpleNamespace(_accumulator=accumulator, _metadata=None)
    accumulator._batches.update({GONE: deque(), OURS: deque()})
    leaderless = SimpleNamespace(leader_for_partition=lambda place: None)
    assert accumulator.ready(leaderless)[2], "a leader is asked for"
    patches.forget_topics(producer, set(), {"ours"})
    assert list(accumulator._batches) == [OURS]


def test_a_queue_with_messages_stays() -> None:
    accumulator = RecordAccumulator()
    accumulator._batches.update({GONE: deque(["a batch"]), OURS: deque()})
    producer = SimpleNamespace(_accumulator=accumulator, _metadata=None)
    assert patches.topics_waiting(producer) == {"gone"}
    patches.forget_topics(producer, set(), set())
    assert list(accumulator._batches) == [GONE]


def test_a_group_is_joined_in_a_poll_for_records_only() -> None:
    assert not [name for name in vars(KafkaConsumer) if "join" in name or "rebalance" in name]
    polled: list[int] = []
    coordinator = SimpleNamespace(poll=lambda *, timeout_ms: polled.append(timeout_ms) or True)
    patches.join_group(SimpleNamespace(_coordinator=coordinator), 7)
    assert polled == [7]
    assert "timeout_ms" in inspect.signature(ConsumerCoordinator.poll).parameters


def test_a_listener_waits_as_the_consumers_own_loop_does() -> None:
    ours, theirs = patches.pause(0.5), NetworkSelector.sleep(None, 0.5)
    assert vars(ours) == vars(theirs)
    assert not hasattr(KafkaConsumer, "sleep")
