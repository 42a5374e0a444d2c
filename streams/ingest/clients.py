"""The consumer and the producer of `ingest`, librdkafka's both: what is mapped costs little, and so must what carries
it. The producer is idempotent, keeps the order of a key, and never gives up a message while the brokers are away."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import structlog
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

from infra.platform.kafka_clients import confluent_options
from infra.platform.settings import Kafka, Settings
from streams.kafka.intake import LATEST_MS, Raw

log = structlog.get_logger(__name__)

Committed = Callable[[KafkaError | None, list[TopicPartition]], None]

GROUP = "nextwatch-ingest"
LINGER_MS = 5
METADATA_MS = 10_000  # a topic that is made later is found within this
ANSWER_MS = 10_000  # a stop, or what was sent, waits so long for a broker that is there and says nothing
TIMES = 4  # a record of theirs may be so much larger than one of ours, to be refused with its reason


def create_consumer(settings: Settings, committed: Committed) -> Any:
    """A member of the group; nothing is committed but by who uses it. `committed` is told what became of it."""
    kafka = settings.kafka
    return Consumer(
        reading_options(kafka)
        | {
            "group.id": kafka.topic_prefix + GROUP,
            "on_commit": committed,
            "auto.offset.reset": "earliest",  # `latest` is settled once, when a partition is first ours
            "session.timeout.ms": int(kafka.session_timeout_s * 1000),
            "heartbeat.interval.ms": int(kafka.session_timeout_s * 1000 / 4),
            "max.poll.interval.ms": int(max(kafka.max_poll_s, kafka.session_timeout_s) * 1000),
        }
    )


def reading_options(kafka: Kafka) -> dict[str, Any]:
    return _options(kafka) | {
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "allow.auto.create.topics": False,
        "fetch.message.max.bytes": max(1 << 20, TIMES * kafka.max_message_bytes),
        "topic.metadata.refresh.interval.ms": METADATA_MS,
    }


def create_producer(kafka: Kafka) -> Any:
    return Producer(
        _options(kafka)
        | {
            "enable.idempotence": True,
            "partitioner": "murmur2",  # as Kafka's Java client, and our readers
            "linger.ms": LINGER_MS,
            "message.timeout.ms": 0,  # never: what was read is written
            "message.max.bytes": 8 * kafka.max_message_bytes,
            "delivery.report.only.error": True,
            "allow.auto.create.topics": False,
        }
    )


def _options(kafka: Kafka) -> dict[str, Any]:
    """What both ends have; what librdkafka has to say is said by us."""
    own = {"client.id": "nextwatch-ingest", "log_level": 0, "error_cb": _tell, "socket.timeout.ms": ANSWER_MS}
    return confluent_options(kafka) | own


def _tell(error: KafkaError) -> None:
    """All brokers down is told once, each try to reach one of them is not."""
    if error.name() not in ("_TRANSPORT", "_RESOLVE"):
        log.warning("Kafka", error=error.str())


def raw_of(message: Message) -> Raw:
    """A record as librdkafka gives it; a producer that says no time gets that of now."""
    kind, at_ms = message.timestamp()
    produced_ms = min(max(0, at_ms), LATEST_MS) if kind else time.time_ns() // 1_000_000
    headers = tuple((name, None if content is None else bytes(content)) for name, content in message.headers() or ())
    place = message.topic(), message.partition(), message.offset()
    return Raw(*place, produced_ms, message.key(), message.value(), headers)
