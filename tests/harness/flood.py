"""Floods of messages that cannot be used into a running system, and the account of what became of each.

Used by a test in the suite and by a benchmark. A bad message must be a dead letter, under its own place (the same one
twice where its reader was given the partition anew before it had committed, see streams.dead_letters.box);
a request may instead be answered by an error. In topics that our own processes write for each other, and that
views are made of, it is passed over: the views have read it, and nothing has changed.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from typing import Any

from aiokafka import AIOKafkaProducer
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType

from infra.platform.kafka_clients import aiokafka_options, kafka_python_options
from infra.platform.settings import Kafka
from streams import topics
from streams.kafka.follow import TopicFollower
from streams.messages import DeadLetter, RecommendReply, RecommendRequest, decode, encode
from streams.topics import TOPICS, partitions_of
from tests.harness.fuzz import LARGE_EVERY, Bad, bad_records
from tests.harness.raw_batches import GZIP, LZ4, NAMED, SNAPPY, ZSTD, Ready, batch, with_bad_name

SET_ASIDE = (
    topics.WATCH_EVENTS,
    topics.SEARCH_EVENTS,
    topics.SIGNALS,
    topics.IMPRESSIONS,
    topics.LOADED_HISTORIES,
    topics.ITEMS,
    topics.ITEM_VECTORS,
    topics.RELEASES,
    topics.TRAINING_EXAMPLES,
    topics.RECOMMEND_REQUESTS,
)
PASSED_OVER = (
    topics.USER_HISTORIES,
    topics.TRENDING,
    topics.ITEM_STATISTICS,
    topics.JOIN_STATE,
    topics.RIVAL_VECTORS,
    topics.RECOMMEND_REPLIES,
)
# year 1, just before 1970, none, 1970, the end of the year 9999
ODD_TIMES_MS = (-62_135_596_800_000, -2, -1, 0, 253_402_300_799_999)
BOMB_BYTES = 40_000_000  # more than a batch may become (streams/kafka/unpacking.py)
IN_FLIGHT = 500
STILL_S = 60.0  # nothing has come for so long: nothing will

Place = tuple[str, int, int]  # topic, partition, offset


def allow_any_time(kafka: Kafka) -> None:
    """Have the brokers take records of any time, as those before version 4 do."""
    admin = KafkaAdminClient(**kafka_python_options(kafka))
    config = {"message.timestamp.after.max.ms": str(2**63 - 1)}
    names = [kafka.topic_prefix + name for name in (*SET_ASIDE, *PASSED_OVER)]
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, configs=config) for name in names])
    admin.close()


def pour(kafka: Kafka, topic: str, count: int, seed: int, large_every: int = LARGE_EVERY) -> list[Place]:
    """Write `count` bad records and some that no client would send into a topic; where they lie."""
    return asyncio.run(_pour(kafka, topic, count, seed, large_every))


def pour_refused_requests(kafka: Kafka, count: int) -> list[str]:
    """Requests that are well formed and ask for what nobody does; their ids."""
    requests = [
        RecommendRequest(f"refused-{number}", f"asker-{number}", filter="(" * (number % 3000) + "duration_s <")
        for number in range(count)
    ]
    records = [Bad(encode(request), request.user_id.encode()) for request in requests]
    homes = [topics.partition_of(request.user_id, kafka.partitions) for request in requests]
    asyncio.run(_send(kafka, topics.RECOMMEND_REQUESTS, zip(homes, records, strict=True)))
    return [request.request_id for request in requests]


async def _pour(kafka: Kafka, topic: str, count: int, seed: int, large_every: int) -> list[Place]:
    width = partitions_of(next(each for each in TOPICS if each.name == topic), kafka)
    records = bad_records(topic, count, seed, odd_times_ms=ODD_TIMES_MS, large_every=large_every)
    places = await _send(kafka, topic, ((number % width, each) for number, each in enumerate(records)))
    return places + await _send_batches(kafka, topic, width)


async def _send(kafka: Kafka, topic: str, records: Iterable[tuple[int, Bad]]) -> list[Place]:
    places: list[Place] = []
    async with _producer(kafka) as producer:
        records = iter(records)
        while some := list(islice(records, IN_FLIGHT)):
            sent = [await _send_one(producer, kafka.topic_prefix + topic, *each) for each in some]
            places += [(topic, found.partition, found.offset) for found in await asyncio.gather(*sent)]
    return places


async def _send_one(producer: Any, name: str, partition: int, bad: Bad) -> Any:
    how: dict[str, Any] = {"key": bad.key, "headers": list(bad.headers), "timestamp_ms": bad.timestamp_ms}
    return await producer.send(name, bad.value, partition=partition, **how)


@cache  # seconds to make
def _batches() -> list[bytes]:
    now_ms = time.time_ns() // 1_000_000
    bombs = [batch([b"\0" * BOMB_BYTES], codec, at_ms=now_ms) for codec in (GZIP, SNAPPY, LZ4, ZSTD)]
    return [*bombs, with_bad_name(batch([b"{"], headers=NAMED, at_ms=now_ms))]


async def _send_batches(kafka: Kafka, topic: str, width: int) -> list[Place]:
    """A bomb of each codec, and a batch with headers whose names are no text."""
    places = []
    async with _producer(kafka) as producer:
        for number, data in enumerate(_batches()):
            sent = await producer.send_batch(Ready(data), kafka.topic_prefix + topic, partition=number % width)
            found = await sent
            places.append((topic, found.partition, found.offset))
    return places


def _producer(kafka: Kafka) -> AIOKafkaProducer:
    return AIOKafkaProducer(
        **aiokafka_options(kafka), acks="all", max_request_size=8 * kafka.max_message_bytes, linger_ms=5
    )


@dataclass
class Account:
    """Dead letters by the place of their message, and error replies by request id, as far as they were read."""

    kafka: Kafka
    letters: Counter[Place] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._follower = TopicFollower(self.kafka, topics.DEAD_LETTERS, topics.RECOMMEND_REPLIES)

    def read(self) -> int:
        """Look at what is new; how many records."""
        records = self._follower.poll(0.1)
        for record in records:
            if record.topic.endswith(topics.DEAD_LETTERS):
                letter = decode(DeadLetter, record.value, max_bytes=8 * self.kafka.max_message_bytes)
                self.letters[letter.topic, letter.partition, letter.offset] += 1
            elif (reply := _reply_in(record.value)) is not None and reply.error is not None:
                self.errors[reply.request_id] += 1
        return len(records)

    def wait_for(self, places: Sequence[Place], requests: Sequence[str] = ()) -> None:
        """Read until all of these are there, or nothing has come for STILL_S."""
        missing, unanswered, came_s = set(places), set(requests), time.monotonic()
        while (missing or unanswered) and time.monotonic() - came_s < STILL_S:
            if self.read():
                came_s = time.monotonic()
                missing -= self.letters.keys()
                unanswered -= self.errors.keys()

    def unaccounted(self, places: Sequence[Place]) -> list[Place]:
        """Those that have no letter."""
        return [place for place in places if not self.letters[place]]

    def repeated(self, places: Sequence[Place]) -> int:
        """How many letters are there once more."""
        return sum(max(0, self.letters[place] - 1) for place in places)

    def foreign(self, places: Iterable[Place]) -> list[Place]:
        """Letters of what was not bad."""
        return list(self.letters.keys() - set(places))

    def close(self) -> None:
        self._follower.close()


def _reply_in(value: bytes | None) -> RecommendReply | None:
    try:
        return decode(RecommendReply, value, max_bytes=8_000_000)
    except ValueError:  # what the flood has put there
        return None
