"""The records that a batch of events has caused, sent together: ready-made record batches, acknowledged before anything
goes on.

Faust sends message by message, which costs more than all our work on an event (see README, "Measured"), so batches are
built here and handed to Faust's own client, aiokafka. `flush` returns when the brokers have acknowledged everything; a
broker that is away is waited for in place, so order is kept and nothing is dropped. Before each try it is asked whether
we still may (see streams.write_permit).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, OutOfOrderSequenceNumber

from infra.platform import metrics
from infra.platform.kafka_clients import aiokafka_options
from infra.platform.retrying import retry
from infra.platform.settings import Kafka
from streams.kafka.aiokafka.patches import number_anew

log = structlog.get_logger(__name__)

Record = tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]
MaySend = Callable[[], Awaitable[None]]
BATCH_BYTES = 512_000


class Placed(NamedTuple):
    """Records that stand in one partition, one after the other. `offset` of the first; -1 when the broker does not
    tell."""

    partition: int
    offset: int
    records: int


class Outbox:
    """Records waiting for the next flush, by topic and partition. Topic names are without the prefix."""

    def __init__(self, producer: AIOKafkaProducer, topic_prefix: str, may_send: MaySend | None = None) -> None:
        self._producer = producer
        self._may_send = may_send
        self._prefix = topic_prefix
        self._waiting: dict[tuple[str, int], list[Record]] = defaultdict(list)

    def add(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> None:
        self._waiting[topic, partition].append((key, value, list(headers)))

    async def flush(self) -> dict[str, list[Placed]]:
        """Send what is waiting and return when all of it is acknowledged: where it stands, by topic. Raises what
        `may_send` raises: then nothing more is sent."""
        waiting, self._waiting = self._waiting, defaultdict(list)
        delivered = await asyncio.gather(*(self._deliver(*place, records) for place, records in waiting.items()))
        placed: dict[str, list[Placed]] = defaultdict(list)
        for (topic, _), places in zip(waiting, delivered, strict=True):
            placed[topic] += places
            metrics.SENT.labels(topic).inc(sum(place.records for place in places))
        return placed

    async def _deliver(self, topic: str, partition: int, records: list[Record]) -> list[Placed]:
        async def send() -> list[Placed]:
            if self._may_send is not None:
                await self._may_send()
            return await self._send(self._prefix + topic, partition, records)

        def report(error: Exception, wait_s: float) -> None:
            metrics.SEND_RETRIES.labels(topic).inc()
            log.warning("broker unavailable, trying again", topic=topic, error=str(error), wait_s=wait_s)
            if isinstance(error, OutOfOrderSequenceNumber):  # what stood before it was given up
                number_anew(self._producer)

        return await retry(send, is_absence=_is_absence, report=report)

    async def _send(self, topic: str, partition: int, records: list[Record]) -> list[Placed]:
        acknowledged, counts = [], []
        batch: Any = self._producer.create_batch()
        for key, value, headers in records:
            if batch.append(timestamp=None, key=key, value=value, headers=headers) is None:
                counts.append(batch.record_count())
                acknowledged.append(await self._producer.send_batch(batch, topic, partition=partition))
                batch = self._producer.create_batch()
                batch.append(timestamp=None, key=key, value=value, headers=headers)
        counts.append(batch.record_count())
        acknowledged.append(await self._producer.send_batch(batch, topic, partition=partition))
        places = await asyncio.gather(*acknowledged)
        return [Placed(partition, place.offset, count) for place, count in zip(places, counts, strict=True)]


def _is_absence(error: Exception) -> bool:
    return isinstance(error, KafkaError) and not isinstance(error, MessageSizeTooLargeError)  # waiting does not mend it


def create_producer(kafka: Kafka, client_id: str) -> AIOKafkaProducer:
    """An idempotent producer that waits for all in-sync replicas. Must be made inside a running event loop."""
    return AIOKafkaProducer(
        **aiokafka_options(kafka),
        client_id=client_id,
        acks="all",
        enable_idempotence=True,
        max_batch_size=BATCH_BYTES,
        max_request_size=8 * kafka.max_message_bytes,
    )
