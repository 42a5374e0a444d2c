"""What is on its way to the brokers, and which requests are thereby done.

Replies and impressions are sent without waiting for their acknowledgement, so that no batch pays for the round trip of
the one before; an offset is due for commit only when everything that its batch and all earlier ones have sent is
acknowledged. So a crash answers some requests twice, with the same request id, and forgets none.
"""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog
from kafka import KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from infra import metrics
from infra.kafka_clients import kafka_python_options
from infra.settings import Kafka

log = structlog.get_logger(__name__)

MOST_BATCHES = 200  # unacknowledged; beyond, the oldest is waited for
ACKNOWLEDGE_S = 130.0  # the producer itself gives up a message after 120 s


@dataclass
class Batch:
    """Messages sent since the last `seal`, each with its topic and whether its loss can be borne."""

    sent: list[tuple[str, bool, Any]] = field(default_factory=list)
    offsets: Mapping[TopicPartition, int] = field(default_factory=dict)  # next ones to read


class Outbox:
    """Topics are given without the prefix, except for a client's own reply topic (`send_outside`)."""

    def __init__(self, kafka: Kafka) -> None:
        self._prefix = kafka.topic_prefix
        # Not idempotent: a client's topic that refuses a message must not stall what follows, and readers know
        # duplicates by the request id.
        self._producer = KafkaProducer(
            **kafka_python_options(kafka),
            client_id="nextwatch-serving",
            acks="all",
            enable_idempotence=False,
            linger_ms=0,
            allow_auto_create_topics=False,
            max_request_size=4 * kafka.max_message_bytes,
            reconnect_backoff_max_ms=2000,
        )
        self._open = Batch()
        self._batches: deque[Batch] = deque()

    def send(self, topic: str, value: bytes | None, **how: Any) -> None:
        """Send to one of our own topics; `how`: key, headers, partition, timestamp_ms."""
        self._open.sent.append((topic, False, self._producer.send(self._prefix + topic, value, **how)))

    def send_outside(self, topic: str, value: bytes, **how: Any) -> None:
        """Send to a topic that a client has named; a failure is its own loss, logged and counted."""
        try:
            self._open.sent.append(("client", True, self._producer.send(topic, value, **how)))
        except (KafkaError, ValueError) as error:
            _lost(error)

    def seal(self, offsets: Mapping[TopicPartition, int]) -> None:
        """All that these offsets have caused is sent."""
        self._open.offsets = offsets
        self._batches.append(self._open)
        self._open = Batch()
        if len(self._batches) > MOST_BATCHES:
            _wait(self._batches[0], ACKNOWLEDGE_S)

    def acknowledged(self) -> dict[TopicPartition, int]:
        """Offsets that have become due since the last call.

        Raises KafkaError when a message to one of our own topics was lost.
        """
        due: dict[TopicPartition, int] = {}
        while self._batches and all(future.is_done for _, _, future in self._batches[0].sent):
            batch = self._batches.popleft()
            _check(batch)
            due.update(batch.offsets)
        return due

    def forget(self, kept: Iterable[int]) -> None:
        """Offsets of partitions other than these are somebody else's now."""
        numbers = set(kept)
        for batch in self._batches:
            batch.offsets = {tp: offset for tp, offset in batch.offsets.items() if tp.partition in numbers}

    def flush(self, timeout_s: float) -> None:
        """Wait until everything is acknowledged. Raises KafkaError when that takes longer."""
        self._producer.flush(timeout_s)

    def close(self) -> None:
        self._producer.close(timeout=5)


def _wait(batch: Batch, timeout_s: float) -> None:
    for _, _, future in batch.sent:
        with contextlib.suppress(KafkaError):  # the next `acknowledged` tells
            future.get(timeout_s)


def _check(batch: Batch) -> None:
    """Count what has arrived. Raises for a loss that cannot be borne."""
    arrived = Counter[str]()
    for topic, may_fail, future in batch.sent:
        if future.succeeded():
            arrived[topic] += 1
        elif may_fail:
            _lost(future.exception)
        else:
            raise future.exception
    for topic, count in arrived.items():
        metrics.SENT.labels(topic).inc(count)


def _lost(error: BaseException) -> None:
    metrics.REQUESTS.labels("undeliverable").inc()
    log.warning("a reply could not be delivered to its client's topic", error=str(error))
