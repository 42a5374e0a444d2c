"""Replies, impressions, dead letters and forwarded requests on their way to the brokers.

They are sent without waiting for their acknowledgement, so that no batch pays for the round trip of the one before; the
ledger says when their requests are done.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from kafka import KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from infra.kafka_clients import kafka_python_options
from infra.settings import Kafka
from serving.ledger import CLIENT, Ledger, undelivered

MOST_BATCHES = 1000  # unacknowledged; beyond, the oldest is waited for
ACKNOWLEDGE_S = 130.0  # the producer itself gives up a message after 120 s
OUTSIDE_S = 5.0  # and one to a client's own topic after this: others wait for it as long
OUTSIDE_BLOCK_S = 2.0


class Outbox:
    """Topics are given without the prefix, except for a client's own reply topic (`send_outside`)."""

    def __init__(self, kafka: Kafka) -> None:
        self.ledger = Ledger()
        self._prefix = kafka.topic_prefix
        self._producer = create_producer(kafka, "nextwatch-serving")
        # A client's topic that takes nothing must not stall the others: not their room and, for long, not their offsets
        self._outside = create_producer(
            kafka,
            "nextwatch-serving-outside",
            delivery_timeout_ms=int(1000 * OUTSIDE_S),
            request_timeout_ms=int(1000 * OUTSIDE_S) - 1000,
            max_block_ms=int(1000 * OUTSIDE_BLOCK_S),
        )

    def send(self, topic: str, value: bytes | None, **how: Any) -> None:
        """Send to one of our own topics; `how`: key, headers, partition, timestamp_ms."""
        self.ledger.add(topic, self._producer.send(self._prefix + topic, value, **how))

    def send_outside(self, topic: str, value: bytes, **how: Any) -> None:
        """Send to a topic that a client has named; a failure is its own loss, logged and counted."""
        try:
            self.ledger.add(CLIENT, self._outside.send(topic, value, **how))
        except (KafkaError, ValueError) as error:
            undelivered(error)

    def seal(self, offsets: Mapping[TopicPartition, int]) -> None:
        """All that these offsets have caused is sent."""
        self.ledger.seal(offsets)
        if len(self.ledger) > MOST_BATCHES:
            self.ledger.wait_for_oldest(ACKNOWLEDGE_S)

    def flush(self, timeout_s: float) -> None:
        """Wait until everything is acknowledged. Raises KafkaError when that takes longer; what a client's topic does
        not take by then is its own loss."""
        with contextlib.suppress(KafkaError):
            self._outside.flush(min(timeout_s, OUTSIDE_S))
        self._producer.flush(timeout_s)

    def close(self) -> None:
        with contextlib.suppress(KafkaError):
            self._outside.close(timeout=1)
        self._producer.close(timeout=5)


def create_producer(kafka: Kafka, client_id: str, **how: Any) -> KafkaProducer:
    """Not idempotent: a message that is refused or expires must not stall what follows, and readers know duplicates by
    the request id."""
    return KafkaProducer(
        **kafka_python_options(kafka),
        client_id=client_id,
        acks="all",
        enable_idempotence=False,
        linger_ms=0,
        allow_auto_create_topics=False,
        max_request_size=4 * kafka.max_message_bytes,
        reconnect_backoff_max_ms=2000,
        metrics_enabled=False,
        **how,
    )
