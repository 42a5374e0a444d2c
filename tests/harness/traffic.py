"""What viewers do in a whole-system test, and what of it can be read back from the topics."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import polars as pl
from kafka import KafkaProducer

from infra.platform.kafka_clients import kafka_python_options
from infra.platform.settings import Kafka
from models.retrieval.incremental import STATE_COLUMNS
from streams.kafka.follow import TopicFollower
from streams.messages import Item, ItemVector, UserHistory, WatchEvent, decode, encode
from streams.topics import ITEMS, USER_HISTORIES, WATCH_EVENTS, partition_of
from tests.harness.beside import beside

T = TypeVar("T")

CHANNELS, PER_CHANNEL = 8, 30
DURATION_S = 60.0
WAIT_S = 30.0


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def item_id(channel: int, number: int) -> str:
    return f"c{channel}-v{number}"


def past(seed: int, until_ms: int, users: int = 150, watches: int = 3000) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A log and a catalogue: every viewer keeps to a channel nine times in ten, and some videos are liked more."""
    rng = np.random.default_rng(seed)
    who = rng.integers(0, users, watches)
    channel = np.where(rng.random(watches) < 0.9, who % CHANNELS, rng.integers(0, CHANNELS, watches))
    number = np.minimum(rng.geometric(0.12, watches) - 1, PER_CHANNEL - 1)
    log = pl.DataFrame(
        {
            "user_id": [f"past-{user}" for user in who],
            "item_id": [item_id(*pair) for pair in zip(channel, number, strict=True)],
            "event_ms": until_ms - 1000 * np.arange(watches)[::-1],
            "watch_s": rng.uniform(5, DURATION_S, watches),
            "duration_s": np.full(watches, DURATION_S),
        }
    )
    ids = [(channel, number) for channel in range(CHANNELS) for number in range(PER_CHANNEL)]
    items = pl.DataFrame(
        {
            "item_id": [item_id(*pair) for pair in ids],
            "title": [f"video {number} of channel {channel}" for channel, number in ids],
            "channel": [f"c{channel}" for channel, _ in ids],
            "duration_s": DURATION_S,
            "published_ms": until_ms - 1000 * watches,
        }
    )
    return log, items


def users_by_crc(at_home: int, astray: int, partitions: int) -> list[str]:
    """Users whom librdkafka's default partitioner (CRC32) puts on their own partition, and users whom it does not."""
    found: dict[bool, list[str]] = {True: [], False: []}
    while len(found[True]) < at_home or len(found[False]) < astray:
        user = f"crc-{uuid.uuid4().hex[:8]}"
        found[zlib.crc32(user.encode()) % partitions == partition_of(user, partitions)].append(user)
    return found[True][:at_home] + found[False][:astray]


def total_of(row: ItemVector) -> float:
    """All watches that a row of the trainer has ever counted."""
    return float(np.frombuffer(row.state, STATE_COLUMNS)["total"][0])


def vector_of(row: ItemVector) -> np.ndarray:
    return np.frombuffer(row.vector, "<f4")


class Traffic:
    """Sends what players and editors send, each message acknowledged before the next."""

    def __init__(self, kafka: Kafka) -> None:
        self._prefix = kafka.topic_prefix
        self._producer = KafkaProducer(**kafka_python_options(kafka), max_request_size=8 * kafka.max_message_bytes)

    def send(self, topic: str, key: str | None, value: bytes | None, **how: Any) -> Any:
        """The place where the message was written."""
        encoded = None if key is None else key.encode()
        return self._producer.send(self._prefix + topic, value, key=encoded, **how).get(timeout=WAIT_S)

    def send_later(self, topic: str, key: str, value: bytes) -> None:
        """The same without waiting; `flush` waits."""
        self._producer.send(self._prefix + topic, value, key=key.encode())

    def flush(self) -> None:
        self._producer.flush(timeout=WAIT_S)

    def watch(self, user_id: str, item: str, event_ms: int | None = None, **change: Any) -> WatchEvent:
        """One watch, a minute of a minute's video unless `change` says otherwise."""
        facts: dict[str, Any] = {"event_id": uuid.uuid4().hex, "watch_s": DURATION_S, "duration_s": DURATION_S}
        event = WatchEvent(
            user_id=user_id, item_id=item, event_ms=now_ms() if event_ms is None else event_ms, **(facts | change)
        )
        self.send(WATCH_EVENTS, user_id, encode(event))
        return event

    def publish(self, item: Item) -> None:
        self.send(ITEMS, item.item_id, encode(item))

    def take_down(self, item: str) -> None:
        self.send(ITEMS, item, None)

    def close(self) -> None:
        self._producer.close()


class Reader:
    """All that a topic holds, read on whenever a test asks."""

    def __init__(self, kafka: Kafka, topic: str) -> None:
        self._topic = topic
        self._follower = TopicFollower(kafka, topic)
        self.records: list[Any] = []

    def until(self, found: Callable[[list[Any]], T], what: str, timeout_s: float = WAIT_S) -> T:
        """What `found` makes of all records, as soon as it is true. Raises TimeoutError that names `what`."""
        deadline = time.monotonic() + timeout_s
        while not (answer := found(self.records)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self._topic}: {what}: not after {timeout_s:g} s, {len(self.records)} records")
            self.records += self._follower.poll(0.1)
        return answer

    def to_the_end(self) -> list[Any]:
        """All records that are there now."""
        total = sum(self._follower.ends().values())
        return self.until(lambda records: records if len(records) >= total else [], "read to the end") if total else []

    def newest(self) -> dict[bytes, Any]:
        """The newest record by key, as far as it was read."""
        return {record.key: record for record in self.records}

    def close(self) -> None:
        self._follower.close()


class Histories(Reader):
    """The topic of user histories."""

    def __init__(self, kafka: Kafka) -> None:
        super().__init__(kafka, USER_HISTORIES)

    def of(self, user_id: str, found: Callable[[UserHistory], Any], what: str = "history") -> UserHistory:
        """The user's newest history, once `found` is true of it."""

        def look(_: list[Any]) -> UserHistory | None:
            record = self.newest().get(user_id.encode())
            history = None if record is None else decode(UserHistory, record.value, max_bytes=len(record.value))
            return history if history is not None and found(history) else None

        history = self.until(look, f"{what} of {user_id}")
        assert history is not None
        return history


class Load(ABC):
    """Messages of some users, in an order that a seed decides."""

    def __init__(self, traffic: Traffic, seed: int, users: int = 40) -> None:
        self._traffic, self._rng, self._number = traffic, np.random.default_rng(seed), 0
        self._users = [f"load-{seed}-{number}" for number in range(users)]
        self._start_ms = now_ms() - 1_000_000

    def send(self, count: int, per_s: float = 1000.0) -> None:
        for number in range(count):
            self.send_one()
            if number % 20 == 0:
                time.sleep(20 / per_s)
        self._traffic.flush()

    def flowing(self, per_s: float) -> contextlib.AbstractContextManager[None]:
        """So many a second beside a block, until its end: however long that takes on a busy machine."""

        def send(stop: threading.Event) -> None:
            while not stop.is_set():
                self.send(20, per_s)

        return beside(send, "load")

    @abstractmethod
    def send_one(self) -> None:
        """Whatever comes next, without waiting for its acknowledgement."""

    def _user(self) -> str:
        return self._users[int(self._rng.integers(0, len(self._users)))]
