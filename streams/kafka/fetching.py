"""Consumers that read what streams/kafka/unpacking.py has unpacked: within bounds, whatever the codec, whatever the
names of headers are.

kafka-python's consumers are told one by one: a process that uses our client beside its own Kafka clients is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from infra.platform.settings import Kafka
from infra.platform.third_parties.kafka_python import patches as kafka_python
from streams.kafka.aiokafka import patches as aiokafka
from streams.kafka.unpacking import TIMES, readable, unpacked


@dataclass(frozen=True)
class BoundedBatches:
    """Fetched batches, none of which unpacks to more than `most_bytes`."""

    most_bytes: int

    def unpacked(self, records: Any) -> Any:
        return unpacked(records, self.most_bytes)

    def readable(self, records: Any) -> bytes:
        return readable(records)


def unpack_for(consumer: Any, kafka: Kafka) -> Any:
    """Return the same kafka-python consumer, reading what was unpacked."""
    return kafka_python.read_batches(consumer, BoundedBatches(TIMES * kafka.max_message_bytes))


def unpack_for_faust(kafka: Kafka) -> None:
    """Let every aiokafka consumer of this process read what was unpacked."""
    aiokafka.read_batches(BoundedBatches(TIMES * kafka.max_message_bytes))
