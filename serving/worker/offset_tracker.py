"""Tracks the offsets of requests: one is due for commit when all that its batch and earlier ones sent is acknowledged.

So a crash answers some requests twice, with the same request id, and forgets none. A topic that a client has named is
waited for only as long as others can be made to wait; what was sent to it is still tried after that.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog
from kafka import TopicPartition
from kafka.errors import KafkaError, KafkaTimeoutError

from infra.platform import metrics

log = structlog.get_logger(__name__)

Offsets = dict[TopicPartition, int]  # next ones to read

CLIENT = "client"  # stands for every topic that a client has named: a label must be bounded
CLIENT_S = 5.0  # so long offsets wait for it
ROUNDING_S = 0.01  # a future may be back a millisecond before its time


@dataclass
class SentBatch:
    """Topics and kafka-python futures of what was sent, and the offsets that it was sent for."""

    sent: list[tuple[str, Any]] = field(default_factory=list)
    offsets: Offsets = field(default_factory=dict)
    sealed_s: float = 0.0


class OffsetTracker:
    """Batches in the order in which they were answered."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open = SentBatch()
        self._sealed: deque[SentBatch] = deque()

    def __len__(self) -> int:
        return len(self._sealed)

    def add(self, topic: str, future: Any) -> None:
        """One more message of the batch that is being answered."""
        self._open.sent.append((topic, future))

    def seal(self, offsets: Mapping[TopicPartition, int]) -> None:
        """All that these offsets have caused is sent."""
        self._open.offsets, self._open.sealed_s = dict(offsets), self._clock()
        self._sealed.append(self._open)
        self._open = SentBatch()

    def acknowledged(self) -> Offsets:
        """Offsets that have become due since the last call.

        Raises the KafkaError of a message to one of our own topics that was lost; a client's topic is its own loss.
        """
        due: Offsets = {}
        while self._sealed and self._is_done(self._sealed[0]):
            batch = self._sealed.popleft()
            _count(batch)
            due.update(batch.offsets)
        return due

    def wait_for_oldest(self, timeout_s: float) -> None:
        """Until the oldest batch has been acknowledged or has failed, which `acknowledged` then tells."""
        self._wait(self._sealed[0], self._clock() + timeout_s)

    def wait(self, timeout_s: float) -> None:
        """Until all batches have: then all their offsets are due. Raises KafkaTimeoutError when our own topics take
        longer."""
        until_s = self._clock() + timeout_s
        for batch in list(self._sealed):
            self._wait(batch, until_s)
        if not all(map(self._is_done, self._sealed)):
            raise KafkaTimeoutError(f"not acknowledged within {timeout_s:g} s")

    def _wait(self, batch: SentBatch, until_s: float) -> None:
        for topic, future in batch.sent:
            last_s = until_s if topic != CLIENT else batch.sealed_s + CLIENT_S + ROUNDING_S
            with contextlib.suppress(KafkaError):
                future.get(max(0.0, last_s - self._clock()))

    def _is_done(self, batch: SentBatch) -> bool:
        is_late = self._clock() - batch.sealed_s >= CLIENT_S
        return all(future.is_done or (is_late and topic == CLIENT) for topic, future in batch.sent)

    def keep(self, partitions: Iterable[int]) -> None:
        """Drop the offsets of all partitions but these: they are somebody else's now."""
        numbers = set(partitions)
        for batch in self._sealed:
            batch.offsets = {tp: offset for tp, offset in batch.offsets.items() if tp.partition in numbers}


def undelivered(error: BaseException) -> None:
    """A reply did not reach the topic that its client has named."""
    metrics.REQUESTS.labels("undeliverable").inc()
    log.warning("a reply could not be delivered to its client's topic", error=str(error))


def _count(batch: SentBatch) -> None:
    arrived = Counter(topic for topic, future in batch.sent if future.succeeded())
    for topic, count in arrived.items():
        metrics.SENT.labels(topic).inc(count)
    for topic, future in batch.sent:
        if not future.is_done:
            future.add_errback(undelivered)
        elif future.failed():
            if topic != CLIENT:
                raise future.exception
            undelivered(future.exception)
