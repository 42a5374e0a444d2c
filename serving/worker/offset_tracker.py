"""Tracks the offsets of requests: one is due for commit when all that it and the earlier ones of its partition have
caused is acknowledged.

So a crash answers some requests twice, with the same request id, and forgets none. What the brokers have given back is
sent again until they take it, and meanwhile the other partitions go on: an impression that cannot be written holds up
the offsets of its own users only. A topic that a client has named is waited for only as long as others can be made to
wait; what was sent to it is still tried after that.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog
from kafka import TopicPartition
from kafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError

from infra.platform import metrics

log = structlog.get_logger(__name__)

Offsets = dict[TopicPartition, int]  # next ones to read

CLIENT = "client"  # stands for every topic that a client has named: a label must be bounded
CLIENT_S = 5.0  # so long offsets wait for it
ROUNDING_S = 0.01  # a future may be back a millisecond before its time
NOBODY = -1  # the partition of what no request has caused
AGAIN_S = 0.5
MOST_WAITING_BYTES = 32 << 20  # beyond, no request is read of partitions whose messages have waited for
STUCK_S = 5.0
ACKNOWLEDGE_S = 0.1  # so long replies wait for the impressions of their batch


@dataclass(slots=True, weakref_slot=True)
class Sent:
    """A message on its way, and kafka-python's future of it. `again` sends it once more, and is told why it came back;
    None: its loss is borne."""

    topic: str
    future: Any
    size: int = 0
    again: Callable[[BaseException], Any] | None = None

    @property
    def is_on_its_way(self) -> bool:
        """True until it is written, or its loss is borne."""
        return not self.future.succeeded() and (self.again is not None or not self.future.is_done)


@dataclass
class SentBatch:
    """What the requests of one partition have caused, and the offset behind them."""

    sent: list[Sent] = field(default_factory=list)
    offsets: Offsets = field(default_factory=dict)
    sealed_s: float = 0.0


class OffsetTracker:
    """Batches of each partition in the order in which they were answered."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.waiting_bytes = 0  # of what is not acknowledged, or stands behind it
        self._clock = clock
        self._open: dict[int, list[Sent]] = defaultdict(list)
        self._sealed: dict[int, deque[SentBatch]] = defaultdict(deque)
        self._again_s = 0.0
        self._is_full = False

    def __len__(self) -> int:
        return sum(map(len, self._sealed.values()))

    def add(self, sent: Sent, of: int = NOBODY) -> None:
        """One more message that requests of partition `of` have caused."""
        self._open[of].append(sent)
        self.waiting_bytes += sent.size

    def seal(self, offsets: Mapping[TopicPartition, int]) -> None:
        """All that these offsets have caused is sent."""
        opened, self._open = self._open, defaultdict(list)
        own: dict[int, Offsets] = {place.partition: {place: offset} for place, offset in offsets.items()}
        for number in opened.keys() | own.keys():
            batch = SentBatch(opened.get(number, []), own.get(number, {}), self._clock())
            self._sealed[number].append(batch)

    def acknowledged(self) -> Offsets:
        """Offsets that have become due since the last call; what the brokers have given back is sent again.

        Raises MessageSizeTooLargeError: no broker will ever take that. A client's topic is its own loss.
        """
        due: Offsets = {}
        for waiting in self._sealed.values():
            while waiting and self._is_done(waiting[0]):
                batch = waiting.popleft()
                self.waiting_bytes -= sum(sent.size for sent in batch.sent)
                _count(batch)
                due.update(batch.offsets)
        if self._clock() >= self._again_s:
            self._again_s = self._clock() + AGAIN_S
            self._send_again()
        return due

    def wait_for_open(self) -> None:
        """Until what was sent since the last seal is acknowledged, for ACKNOWLEDGE_S at most; not for partitions that
        are behind: nobody's reply shall wait while an impression cannot be written."""
        until_s = self._clock() + ACKNOWLEDGE_S
        for number, opened in self._open.items():
            if not self._is_behind(number):
                for sent in opened:
                    if sent.again is None or sent.future.is_done:  # a client's own topic is not waited for
                        continue
                    with contextlib.suppress(KafkaError):
                        sent.future.get(max(0.0, until_s - self._clock()))

    def _is_behind(self, number: int) -> bool:
        """True if something of a partition was sent long ago and is not written."""
        oldest = next(iter(self._sealed[number]), None)
        if oldest is None or self._clock() - oldest.sealed_s < ACKNOWLEDGE_S:
            return False
        return any(sent.again is not None and not sent.future.succeeded() for sent in oldest.sent)

    def stuck(self) -> frozenset[int]:
        """The partitions of which nothing more is to be answered now: too much waits in all, and theirs for long."""
        self._is_full = self.waiting_bytes > (MOST_WAITING_BYTES // 2 if self._is_full else MOST_WAITING_BYTES)
        late_s = self._clock() - STUCK_S
        return frozenset(
            number
            for number, waiting in (self._sealed.items() if self._is_full else ())
            if waiting and waiting[0].sealed_s <= late_s
        )

    def wait(self, timeout_s: float) -> None:
        """Until all batches are acknowledged: then all their offsets are due. Raises KafkaTimeoutError when our own
        topics take longer, or have given something back."""
        until_s = self._clock() + timeout_s
        for batch in list(self._batches()):
            self._wait(batch, until_s)
        if not all(map(self._is_done, self._batches())):
            raise KafkaTimeoutError(f"not acknowledged within {timeout_s:g} s")

    def _wait(self, batch: SentBatch, until_s: float) -> None:
        for sent in batch.sent:
            if sent.future.is_done:  # one that was given back at once has nothing to wait for
                continue
            last_s = until_s if sent.topic != CLIENT else batch.sealed_s + CLIENT_S + ROUNDING_S
            with contextlib.suppress(KafkaError):
                sent.future.get(max(0.0, last_s - self._clock()))

    def _is_done(self, batch: SentBatch) -> bool:
        is_late = self._clock() - batch.sealed_s >= CLIENT_S
        return all(
            sent.future.succeeded()
            or (sent.again is None and (sent.future.is_done or (is_late and sent.topic == CLIENT)))
            for sent in batch.sent
        )

    def _send_again(self) -> None:
        given_back = Counter[str]()
        for batch in self._batches():
            for sent in batch.sent:
                if sent.again is None or not sent.future.failed():
                    continue
                error = sent.future.exception
                if isinstance(error, MessageSizeTooLargeError):
                    raise error
                given_back[f"{sent.topic}: {error}"] += 1
                sent.future = sent.again(error)
        for what, count in given_back.items():
            log.warning("not written, sent again", what=what, messages=count)

    def keep(self, partitions: Iterable[int]) -> None:
        """Drop the offsets of all partitions but these: they are somebody else's now."""
        numbers = set(partitions)
        for batch in self._batches():
            batch.offsets = {tp: offset for tp, offset in batch.offsets.items() if tp.partition in numbers}

    def _batches(self) -> Iterator[SentBatch]:
        for waiting in self._sealed.values():
            yield from waiting


def undelivered(error: BaseException) -> None:
    """A reply did not reach the topic that its client has named."""
    metrics.REQUESTS.labels("undeliverable").inc()
    log.warning("a reply could not be delivered to its client's topic", error=str(error))


def _count(batch: SentBatch) -> None:
    arrived = Counter(sent.topic for sent in batch.sent if sent.future.succeeded())
    for topic, count in arrived.items():
        metrics.SENT.labels(topic).inc(count)
    for sent in batch.sent:
        if not sent.future.is_done:
            sent.future.add_errback(undelivered)
        elif sent.future.failed() and sent.topic == CLIENT:
            undelivered(sent.future.exception)
        elif sent.future.failed():
            log.warning("not written", topic=sent.topic, error=str(sent.future.exception))
