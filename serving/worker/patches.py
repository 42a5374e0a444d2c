"""Private parts of kafka-python that a serving worker uses, beside those of
infra/platform/third_parties/kafka_python/patches.py.

tests/unit/serving/worker/test_patches.py tells of each when it is no longer needed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Set
from typing import Any

from kafka.net.selector import KernelEvent

from infra.platform.third_parties.patching import require_version

require_version("kafka-python", "3.0", "3.1")


def known_topics(producer: Any) -> set[str]:
    """The topics that a producer holds metadata of.

    Why: `send` to any other waits for metadata, up to `max_block_ms`, and stops the thread that answers requests.
    Upstream: dpkp/kafka-python#1467, #1325; kafka/producer/kafka.py, `send`.
    """
    topics: set[str] = producer._metadata.topics(exclude_internal_topics=False)
    return topics


def wait_for_topic(producer: Any, topic: str, timeout_ms: int) -> None:
    """Ask for the metadata of a topic, and wait so long. Raises KafkaError.

    Why: `partitions_for` waits for `max_block_ms`, which our own topics need for an outage, a client's topic not.
    Upstream: dpkp/kafka-python#1467; kafka/producer/kafka.py, `partitions_for`.
    """
    producer._wait_on_metadata(topic, timeout_ms)


def ask_for_topic(producer: Any, topic: str) -> None:
    """Have a producer ask for the metadata of a topic soon; nobody waits.

    Why: a topic that one answer of the brokers left out is asked for again with the next refresh only, minutes later.
    Upstream: kafka/producer/kafka.py, `_wait_on_metadata`, which asks like this and waits.
    """
    producer._sender.add_topic(topic)
    producer._metadata.request_update()
    producer._sender.wakeup()


def topics_waiting(producer: Any) -> set[str]:
    """The topics with messages that have not been sent.

    Why: only the accumulator knows; a topic with messages must not be forgotten.
    Upstream: kafka/producer/record_accumulator.py, `has_undrained`, which tells it of all topics together.
    """
    return {place.topic for place, batches in list(producer._accumulator._batches.items()) if batches}


def forget_topics(producer: Any, gone: Set[str], known: Set[str]) -> None:
    """Have a producer ask for the topics `gone` no longer, and drop empty queues to topics that are not `known`.

    Why: it asks for a topic that was deleted every 100 ms, for ever, and so for the leader of every queue, also of an
    empty one. Java's producer forgets what was not used for `metadata.max.idle.ms`.
    Upstream: KIP-526; kafka/cluster.py, `topics`; kafka/producer/record_accumulator.py, `ready`.
    """
    metadata, accumulator = producer._metadata, producer._accumulator
    if gone:
        metadata._topics = metadata._topics - gone  # a new set: another thread may be walking through the old one
    for place in [place for place in list(accumulator._batches) if place.topic not in known]:
        with accumulator._tp_lock(place):
            if not accumulator._batches[place]:
                del accumulator._batches[place]


def join_group(consumer: Any, timeout_ms: int) -> None:
    """Take part in a rebalance, and return when it is over.

    Why: `poll` would go on waiting for records afterwards, and there are none while what was assigned is paused.
    Upstream: dpkp/kafka-python#2528 (the coordinator's poll with a time-out); kafka/consumer/group.py, `_poll_once`.
    """
    consumer._coordinator.poll(timeout_ms=timeout_ms)


def pause(seconds: float) -> Awaitable[None]:
    """Wait within a rebalance listener, while the consumer's heartbeats go on.

    Why: listeners may be coroutines, but nothing public is there to wait for: the loop is the consumer's own.
    Upstream: kafka/net/selector.py, `sleep`; kafka/consumer/subscription_state.py, AsyncConsumerRebalanceListener.
    """
    event: Awaitable[None] = KernelEvent("_sleep", seconds)
    return event
