"""Replies, impressions, dead letters and forwarded requests on their way to the brokers.

They are sent without waiting for their acknowledgement, so that no batch pays for the round trip of the one before; the
ledger says when their requests are done.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kafka import KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from infra.kafka_clients import kafka_python_options
from infra.settings import Kafka
from serving.ledger import CLIENT, Ledger, undelivered

MOST_BATCHES = 1000  # unacknowledged; beyond, the oldest is waited for
ACKNOWLEDGE_S = 130.0  # the producer itself gives up a message after 120 s


class Outbox:
    """Topics are given without the prefix, except for a client's own reply topic (`send_outside`)."""

    def __init__(self, kafka: Kafka) -> None:
        self.ledger = Ledger()
        self._prefix = kafka.topic_prefix
        # Not idempotent: a client's topic that refuses a message must not stall what follows, and readers know
        # duplicates by the request id. One for all: an impression is never behind its reply.
        self._producer = KafkaProducer(
            **kafka_python_options(kafka),
            client_id="nextwatch-serving",
            acks="all",
            enable_idempotence=False,
            linger_ms=0,
            allow_auto_create_topics=False,
            max_request_size=4 * kafka.max_message_bytes,
            reconnect_backoff_max_ms=2000,
            metrics_enabled=False,
        )

    def send(self, topic: str, value: bytes | None, **how: Any) -> None:
        """Send to one of our own topics; `how`: key, headers, partition, timestamp_ms."""
        self.ledger.add(topic, self._producer.send(self._prefix + topic, value, **how))

    def send_outside(self, topic: str, value: bytes, **how: Any) -> None:
        """Send to a topic that a client has named; a failure is its own loss, logged and counted."""
        try:
            self.ledger.add(CLIENT, self._producer.send(topic, value, **how))
        except (KafkaError, ValueError) as error:
            undelivered(error)

    def seal(self, offsets: Mapping[TopicPartition, int]) -> None:
        """All that these offsets have caused is sent."""
        self.ledger.seal(offsets)
        if len(self.ledger) > MOST_BATCHES:
            self.ledger.wait_for_oldest(ACKNOWLEDGE_S)

    def flush(self, timeout_s: float) -> None:
        """Wait until everything is acknowledged. Raises KafkaError when that takes longer."""
        self._producer.flush(timeout_s)

    def close(self) -> None:
        self._producer.close(timeout=5)
