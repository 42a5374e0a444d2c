"""`nextwatch serve` with its consumer and producer on confluent-kafka (librdkafka): what `serving_clients` measures.

Everything else is the worker as it is, feeds of views included. Static membership and cooperative-sticky, manual
commits, delivery callbacks. It has no bound on what a compressed batch unpacks to (see the note of the table).

    python -m tests.benchmarks.serving.on_confluent
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from confluent_kafka import Consumer, KafkaException, Message, Producer
from confluent_kafka import TopicPartition as Place
from kafka import TopicPartition
from kafka.errors import KafkaError, KafkaTimeoutError

import infra.cli.main
import serving.worker.worker
from infra.platform.settings import Kafka
from serving.state.feed import Feed
from serving.state.views import Views
from serving.worker.offset_tracker import CLIENT, OffsetTracker
from serving.worker.partitions import FETCH_MS, POLL_MS, Partitions
from serving.worker.reply_cache_warmup import ReplyCacheWarmup

CLOSE_S = 5.0
ASK_S = 10.0


class Record(NamedTuple):
    """A message as the worker wants it."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]


def options(kafka: Kafka) -> dict[str, Any]:
    return {"bootstrap.servers": kafka.bootstrap, "reconnect.backoff.max.ms": 2000}


class GroupConsumer:
    """The methods of kafka-python's consumer that the worker calls, on librdkafka's."""

    def __init__(self, kafka: Kafka, group: str) -> None:
        self.ours = Consumer(
            options(kafka)
            | {
                "client.id": "nextwatch-serving",
                "group.id": kafka.topic_prefix + group,
                "group.instance.id": f"{socket.gethostname()}-benchmark",
                "partition.assignment.strategy": "cooperative-sticky",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": FETCH_MS,
                "fetch.queue.backoff.ms": 2,
                "fetch.message.max.bytes": max(1 << 20, 4 * kafka.max_message_bytes),
                "session.timeout.ms": int(kafka.session_timeout_s * 1000),
                "heartbeat.interval.ms": int(kafka.session_timeout_s * 1000 / 4),
            }
        )

    def commit(self, offsets: Mapping[TopicPartition, Any], timeout_ms: int = 0) -> None:
        self.ours.commit(offsets=[Place(*tp, each.offset) for tp, each in offsets.items()], asynchronous=False)

    def commit_async(self, offsets: Mapping[TopicPartition, Any]) -> None:
        self.ours.commit(offsets=[Place(*tp, each.offset) for tp, each in offsets.items()], asynchronous=True)

    def seek(self, place: TopicPartition, offset: int) -> None:
        self.ours.seek(Place(*place, offset))

    def resume(self, *places: TopicPartition) -> None:
        self.ours.resume([Place(*place) for place in places])

    def assignment(self) -> set[TopicPartition]:
        return {TopicPartition(each.topic, each.partition) for each in self.ours.assignment()}

    def position(self, place: TopicPartition, timeout_ms: int = 0) -> int:
        return max(0, int(self.ours.position([Place(*place)])[0].offset))

    def highwater(self, place: TopicPartition) -> int | None:
        end = int(self.ours.get_watermark_offsets(Place(*place), cached=True)[1])
        return end if end > 0 else None

    def topics(self) -> set[str]:
        return set(self.ours.list_topics(timeout=ASK_S).topics)

    def partitions_for_topic(self, topic: str) -> set[int]:
        return set(self.ours.list_topics(topic, timeout=ASK_S).topics[topic].partitions)

    def close(self, **_: Any) -> None:
        self.ours.close()


class ConfluentPartitions(Partitions):
    """Listener methods run within `poll`: heartbeats go on in librdkafka's own thread."""

    def __init__(
        self,
        kafka: Kafka,
        group: str,
        feed: Feed,
        views: Views,
        warmup: ReplyCacheWarmup,
        settle: Callable[[], None],
    ) -> None:
        super().__init__(kafka, group, feed, views, warmup, settle)
        self.consumer.ours.subscribe(
            [self._topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    def _on_assign(self, consumer: Consumer, places: list[Place]) -> None:
        consumer.incremental_assign(places)
        consumer.pause(places)
        before = self._assigned[-1] if self._assigned else self.owned
        self._assigned.append(before | {place.partition for place in places})

    def _on_revoke(self, consumer: Consumer, places: list[Place]) -> None:
        self._settle()
        self._on_lost(consumer, places)

    def _on_lost(self, consumer: Consumer, places: list[Place]) -> None:
        consumer.incremental_unassign(places)
        before = self._assigned[-1] if self._assigned else self.owned
        self._assigned.append(before - {place.partition for place in places})

    def poll(self, most: int, *, wait: bool = True) -> list[Any]:
        consumer = self.consumer.ours
        found = consumer.consume(most, 0.0) or (consumer.consume(1, POLL_MS / 1000) if wait else [])
        return [record_of(message) for message in found if message.error() is None]

    def pace(self) -> None:
        """librdkafka fetches in the background."""


def record_of(message: Message) -> Record:
    return Record(
        message.topic(),
        message.partition(),
        message.offset(),
        message.timestamp()[1],
        message.key(),
        message.value(),
        message.headers() or [],
    )


class Delivery:
    """The methods of kafka-python's future that the offset tracker calls."""

    def __init__(self, producer: Producer) -> None:
        self._producer, self.is_done, self.exception = producer, False, None
        self._errbacks: list[Callable[[BaseException], Any]] = []

    def __call__(self, error: Any, message: Message) -> None:
        self.is_done, self.exception = True, None if error is None else KafkaError(str(error))
        for each in self._errbacks if self.exception else ():
            each(self.exception)

    def succeeded(self) -> bool:
        return self.is_done and self.exception is None

    def failed(self) -> bool:
        return self.is_done and self.exception is not None

    def add_errback(self, each: Callable[[BaseException], Any]) -> None:
        self._errbacks.append(each)

    def get(self, timeout: float) -> None:
        until_s = time.monotonic() + timeout
        while not self.is_done and time.monotonic() < until_s:
            self._producer.poll(0.01)
        if not self.is_done:
            raise KafkaTimeoutError


class PolledTracker(OffsetTracker):
    def __init__(self, producer: Producer) -> None:
        super().__init__()
        self._producer = producer

    def acknowledged(self) -> dict[TopicPartition, int]:
        self._producer.poll(0)
        return super().acknowledged()


class ConfluentOutbox:
    """serving.worker.outbox.Outbox without the book-keeping of topics: `produce` never waits for metadata."""

    def __init__(self, kafka: Kafka) -> None:
        self._prefix = kafka.topic_prefix
        limits = {"message.max.bytes": 4 * kafka.max_message_bytes, "linger.ms": 0, "acks": "all"}
        self._producer = Producer(options(kafka) | limits | {"client.id": "nextwatch-serving"})
        self.offsets = PolledTracker(self._producer)

    def send(self, topic: str, value: bytes | None, **how: Any) -> None:
        self._send(topic, self._prefix + topic, value, **how)

    def send_outside(self, topic: str, value: bytes, **how: Any) -> None:
        self._send(CLIENT, topic, value, **how)

    def _send(
        self,
        label: str,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        headers: Iterable[tuple[str, bytes]] = (),
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> None:
        place = {} if partition is None else {"partition": partition}
        at = {} if timestamp_ms is None else {"timestamp": timestamp_ms}
        delivery = Delivery(self._producer)
        self._producer.produce(topic, value, key, headers=list(headers), on_delivery=delivery, **place, **at)
        self.offsets.add(label, delivery)

    def drop_gone_topics(self) -> set[str]:
        return set()

    def seal(self, offsets: Mapping[TopicPartition, int]) -> None:
        self._producer.poll(0)
        self.offsets.seal(offsets)

    def close(self) -> None:
        try:
            self._producer.flush(CLOSE_S)
        except KafkaException:
            self._producer.purge()


def create_consumer(kafka: Kafka, group: str) -> Any:
    consumer: Any = GroupConsumer(kafka, group)
    consumer.subscribe = lambda *_, **__: None  # `ConfluentPartitions` does
    consumer.end_offsets = lambda places: places
    return consumer


def main() -> None:
    serving.worker.partitions.create_consumer = create_consumer
    serving.worker.worker.Partitions = ConfluentPartitions  # type: ignore[misc]
    serving.worker.worker.Outbox = ConfluentOutbox  # type: ignore[misc,assignment]
    infra.cli.main.main()


if __name__ == "__main__":
    main()
