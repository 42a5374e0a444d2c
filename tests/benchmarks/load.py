"""Load from outside: events through librdkafka, faster than any consumer of ours."""

from __future__ import annotations

from collections.abc import Iterable

from confluent_kafka import Producer

from infra.platform.settings import Kafka

MOST_WAITING = 500_000


def create_load(kafka: Kafka, *, linger_ms: int = 5) -> Producer:
    """A librdkafka producer that partitions as Java's default one does."""
    return Producer(
        {
            "bootstrap.servers": kafka.bootstrap,
            "partitioner": "murmur2_random",
            "linger.ms": linger_ms,
            "acks": "all",
            "queue.buffering.max.messages": 2 * MOST_WAITING,
        }
    )


def send_all(kafka: Kafka, topic: str, messages: Iterable[tuple[bytes, bytes]]) -> None:
    """Send keys and values and wait for the acknowledgements. Raises RuntimeError when one is missing."""
    producer = create_load(kafka)
    failures: list[str] = []

    def acknowledged(error: object, _: object) -> None:
        if error is not None:
            failures.append(str(error))

    for key, value in messages:
        while len(producer) >= MOST_WAITING:
            producer.poll(0.1)
        producer.produce(kafka.topic_prefix + topic, key=key, value=value, on_delivery=acknowledged)
        producer.poll(0)
    left = producer.flush(120)
    if left or failures:
        raise RuntimeError(f"{topic}: {left} not acknowledged, {len(failures)} refused {failures[:1]}")
