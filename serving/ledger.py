"""Which requests are done: an offset is due for commit only when everything that its batch, and all earlier ones, have
sent is acknowledged. So a crash answers some requests twice, with the same request id, and forgets none."""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog
from kafka import TopicPartition
from kafka.errors import KafkaError

from infra import metrics

log = structlog.get_logger(__name__)

Offsets = dict[TopicPartition, int]  # next ones to read

CLIENT = "client"  # stands for every topic that a client has named: a label must be bounded


@dataclass
class Batch:
    """Topics and kafka-python futures of what was sent, and the offsets that it was sent for."""

    sent: list[tuple[str, Any]] = field(default_factory=list)
    offsets: Offsets = field(default_factory=dict)


class Ledger:
    """Batches in the order in which they were answered."""

    def __init__(self) -> None:
        self._open = Batch()
        self._sealed: deque[Batch] = deque()

    def __len__(self) -> int:
        return len(self._sealed)

    def add(self, topic: str, future: Any) -> None:
        """One more message of the batch that is being answered."""
        self._open.sent.append((topic, future))

    def seal(self, offsets: Mapping[TopicPartition, int]) -> None:
        """All that these offsets have caused is sent."""
        self._open.offsets = dict(offsets)
        self._sealed.append(self._open)
        self._open = Batch()

    def acknowledged(self) -> Offsets:
        """Offsets that have become due since the last call.

        Raises the KafkaError of a message to one of our own topics that was lost; a client's topic is its own loss.
        """
        due: Offsets = {}
        while self._sealed and all(future.is_done for _, future in self._sealed[0].sent):
            batch = self._sealed.popleft()
            _count(batch)
            due.update(batch.offsets)
        return due

    def wait_for_oldest(self, timeout_s: float) -> None:
        """Until the oldest batch has been acknowledged or has failed, which `acknowledged` then tells."""
        for _, future in self._sealed[0].sent:
            with contextlib.suppress(KafkaError):
                future.get(timeout_s)

    def forget(self, kept: Iterable[int]) -> None:
        """Offsets of partitions other than these are somebody else's now."""
        numbers = set(kept)
        for batch in self._sealed:
            batch.offsets = {tp: offset for tp, offset in batch.offsets.items() if tp.partition in numbers}


def undelivered(error: BaseException) -> None:
    """A reply did not reach the topic that its client has named."""
    metrics.REQUESTS.labels("undeliverable").inc()
    log.warning("a reply could not be delivered to its client's topic", error=str(error))


def _count(batch: Batch) -> None:
    arrived = Counter(topic for topic, future in batch.sent if future.succeeded())
    for topic, count in arrived.items():
        metrics.SENT.labels(topic).inc(count)
    for topic, future in batch.sent:
        if future.failed():
            if topic != CLIENT:
                raise future.exception
            undelivered(future.exception)
