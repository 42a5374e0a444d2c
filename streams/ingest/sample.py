"""What the newest records of mapped topics would become: looked at before anything is started. Nothing is written, no
group is joined, nothing is committed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

from confluent_kafka import Consumer, KafkaException, TopicPartition
from msgspec import to_builtins

from infra.platform.settings import Kafka, Settings
from streams.ingest.batch import Reader, outcomes_of, readers_of
from streams.ingest.clients import raw_of, reading_options
from streams.ingest.mapping import Mapped
from streams.ingest.registry import Waiting
from streams.kafka.follow import TopicMissing
from streams.kafka.intake import Raw
from streams.messages import Refused

ANSWER_S = 10.0  # for the brokers to say what there is
READ_S = 30.0  # for the records to be read
AT_ONCE = 500


class Sampled(NamedTuple):
    """A record of theirs, and what one mapping makes of it: `outcome` is sent, taken down, passed over, refused, or
    waits."""

    topic: str
    partition: int
    offset: int
    outcome: str
    becomes: str = ""
    message: dict[str, Any] | None = None  # as it would be written
    reason: str = ""


def sample(settings: Settings, count: int, *, now_ms: int) -> list[Sampled]:
    """What the `count` newest records of each mapped topic would become. Raises SettingsError and TopicMissing."""
    readers = readers_of(settings)
    return [
        row
        for topic, reader in readers.items()
        for raw in newest_records(settings.kafka, topic, count)
        for row in rows_of(raw, reader, settings, now_ms=now_ms)
    ]


def rows_of(raw: Raw, reader: Reader, settings: Settings, *, now_ms: int) -> Iterator[Sampled]:
    place = raw.topic, raw.partition, raw.offset
    try:
        for outcome in outcomes_of(raw, reader, settings, now_ms=now_ms):
            yield _row(place, outcome)
    except Waiting as waiting:
        yield Sampled(*place, "waits", reason=f"for {waiting}")


def _row(place: tuple[str, int, int], outcome: Mapped | Refused | None) -> Sampled:
    if outcome is None:
        return Sampled(*place, "passed over")
    if isinstance(outcome, Refused):
        return Sampled(*place, "refused", reason=str(outcome))
    if outcome.message is None:
        return Sampled(*place, "taken down", outcome.topic, {"item_id": outcome.key})
    return Sampled(*place, "sent", outcome.topic, to_builtins(outcome.message))


def newest_records(kafka: Kafka, topic: str, count: int) -> list[Raw]:
    """The newest records of a topic (its whole name), oldest first. Raises TopicMissing, also where the brokers do not
    let us read it."""
    options = reading_options(kafka) | {"group.id": "nextwatch-sample", "enable.partition.eof": True}
    with closing(Consumer(options)) as consumer:
        try:
            places = _places(consumer, topic, count)
            consumer.assign(places)
            found = list(_read(consumer, len(places)))
        except KafkaException as error:
            raise TopicMissing(f"topic {topic} cannot be read: {error.args[0].str()}") from None
    return sorted(found, key=lambda raw: (raw.produced_ms, raw.partition, raw.offset))[-count:]


def _places(consumer: Any, topic: str, count: int) -> Sequence[TopicPartition]:
    """Where to begin in each partition that holds something."""
    about = consumer.list_topics(topic, ANSWER_S).topics[topic]
    if about.error is not None:
        raise KafkaException(about.error)
    places = []
    for partition in about.partitions:
        first, end = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=ANSWER_S)
        if first < end:
            places.append(TopicPartition(topic, partition, max(first, end - count)))
    return places


def _read(consumer: Any, partitions: int) -> Iterator[Raw]:
    """Yield what there is, until the end of each partition has been seen."""
    give_up_s = time.monotonic() + READ_S
    ended: set[int] = set()
    while len(ended) < partitions and time.monotonic() < give_up_s:
        for message in consumer.consume(AT_ONCE, 0.2):
            error = message.error()
            if error is None:
                yield raw_of(message)
            elif error.name() == "_PARTITION_EOF":
                ended.add(message.partition())
            else:
                raise KafkaException(error)
