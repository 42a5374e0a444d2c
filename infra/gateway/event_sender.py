"""Sends events and catalogue entries, and tells of each whether the brokers have acknowledged it.

acks=all. Not idempotent: kafka-python's idempotent producer never sends again after a message has expired in an
outage, and readers pass over an event id that they know. Instead one request at a time is in flight to a broker, so
that what is tried again does not change places with what was sent after it: an item that is put and then deleted stays
deleted.

What is not acknowledged within the deadline may still arrive, for as long again: whoever was told so sends it again,
under the same id.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import structlog
from kafka import KafkaProducer
from kafka.errors import KafkaError

from infra.platform import metrics
from infra.platform.kafka_clients import close_producer, kafka_python_options
from infra.platform.settings import Kafka
from streams import topics
from streams.messages import Item, SearchEvent, SignalEvent, WatchEvent, encode

log = structlog.get_logger(__name__)

AT_ONCE = 50  # more records than that are handed to the producer in a thread: it takes its time
CLOSE_S = 5.0
CONNECT_S = 15.0
TOPICS = {WatchEvent: topics.WATCH_EVENTS, SearchEvent: topics.SEARCH_EVENTS, SignalEvent: topics.SIGNALS}
OURS = (*TOPICS.values(), topics.ITEMS)


class Record(NamedTuple):
    topic: str
    key: bytes
    value: bytes | None
    partition: int | None = None  # None: that of the key, as Kafka's Java client chooses it


class EventSender:
    """Use it in one event loop. Raises KafkaError when no broker answers at the start."""

    def __init__(self, kafka: Kafka, deadline_s: float) -> None:
        self.is_failing = False  # the newest records were not acknowledged
        self._prefix, self._deadline_s = kafka.topic_prefix, deadline_s
        wait_ms = round(deadline_s * 1000)
        self._producer = KafkaProducer(
            **kafka_python_options(kafka),
            client_id="nextwatch-gateway",
            acks="all",
            enable_idempotence=False,
            max_in_flight_requests_per_connection=1,
            request_timeout_ms=wait_ms,
            delivery_timeout_ms=wait_ms,
            max_block_ms=round(CONNECT_S * 1000),
            max_request_size=4 * kafka.max_message_bytes,
            allow_auto_create_topics=False,
            reconnect_backoff_max_ms=1000,
            metrics_enabled=False,
        )
        try:
            for topic in OURS:  # `send` waits for nothing else
                self._producer.partitions_for(self._prefix + topic)
        except BaseException:
            self._producer.close(timeout=0)
            raise

    async def send(self, records: Sequence[Record]) -> list[str]:
        """Send and wait; of each record why it is not acknowledged, empty when it is."""
        if not records:
            return []
        waiting = Acknowledgements(len(records), asyncio.get_running_loop())
        submit = partial(self._submit, records, waiting)
        if len(records) > AT_ONCE:
            await asyncio.to_thread(submit)
        else:
            submit()
        try:
            await asyncio.wait_for(waiting.done.wait(), self._deadline_s)
        except TimeoutError:
            late = f"not acknowledged within {self._deadline_s:g} s"
            waiting.give_up(late)
        self._note(records, waiting.problems)
        return waiting.problems

    def close(self) -> None:
        try:
            close_producer(self._producer, CLOSE_S)
        except KafkaError as error:
            log.warning("left with events that the brokers have not taken: their senders were told", error=str(error))

    def _submit(self, records: Sequence[Record], waiting: Acknowledgements) -> None:
        for place, record in enumerate(records):
            try:
                name = self._prefix + record.topic
                sent = self._producer.send(name, record.value, key=record.key, partition=record.partition)
            except KafkaError as error:
                waiting.settle(place, error)
            else:
                sent.add_callback(partial(waiting.settle, place, None))
                sent.add_errback(partial(waiting.settle, place))

    def _note(self, records: Sequence[Record], problems: Sequence[str]) -> None:
        sent = Counter(record.topic for record, problem in zip(records, problems, strict=True) if not problem)
        for topic, count in sent.items():
            metrics.SENT.labels(topic).inc(count)
        self.is_failing = any(problems)


class Acknowledgements:
    """Of records that were sent together, which are not acknowledged and why; the producer's thread tells it."""

    def __init__(self, count: int, loop: asyncio.AbstractEventLoop) -> None:
        self.done = asyncio.Event()
        self._problems: list[str | None] = [None] * count  # None: not known yet
        self._left, self._lock = count, threading.Lock()
        self._finish: Callable[[], Any] = partial(loop.call_soon_threadsafe, self.done.set)

    def settle(self, place: int, error: BaseException | None, *_: Any) -> None:
        with self._lock:
            if self._problems[place] is not None:
                return
            self._problems[place] = "" if error is None else f"not acknowledged: {type(error).__name__}"
            self._left -= 1
            if self._left:
                return
        try:
            self._finish()
        except RuntimeError:  # the loop has ended: nobody waits any more
            return

    def give_up(self, why: str) -> None:
        with self._lock:
            self._problems = [why if problem is None else problem for problem in self._problems]

    @property
    def problems(self) -> list[str]:
        return [problem or "" for problem in self._problems]


def record_of(message: WatchEvent | SearchEvent | SignalEvent | Item, kafka: Kafka) -> Record:
    """A message under its key, on the partition that its readers expect it on."""
    if isinstance(message, Item):
        return Record(topics.ITEMS, message.item_id.encode(), encode(message))
    place = topics.partition_of(message.user_id, kafka.partitions)
    return Record(TOPICS[type(message)], message.user_id.encode(), encode(message), place)


def tombstone_of(item_id: str) -> Record:
    """What takes an item down everywhere."""
    return Record(topics.ITEMS, item_id.encode(), None)
