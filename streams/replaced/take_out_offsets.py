"""What remembers offsets of a topic that was deleted and made again is made to remember none of it, and goes on.

Histories, the join's states, item statistics and counts stay as they are, less these offsets. The workers then read the
topic from its beginning, also where one of them, running on, had committed more of it: a history knows what it holds by
event and request ids, a join's state likewise. Counts of what is trending know no ids, so what a worker had counted of
the new topic counts twice in them.

The order: states, then the groups' offsets, then the new ids, which let the workers start. What breaks off is done
again from the start, with the same result. The workers must be stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress

import msgspec
from kafka import TopicPartition
from kafka.errors import NoError
from kafka.structs import OffsetAndMetadata
from msgspec.structs import replace

from infra.platform.settings import Settings
from streams import topics
from streams.history.rebuild_histories import create_producer, group_of, refuse_beside_workers, take_out_offsets
from streams.kafka.follow import read_to_end
from streams.kafka.partition_counts import require_partitions
from streams.kafka.topic_ids import BY_HAND, changes_of, remember_ids
from streams.messages import JoinState, Refused, StatisticsRow, Trending, decode, encode

AHEAD = 1000  # records sent and not yet acknowledged
SEND_S = 30.0

Progress = Callable[[str, int, int], None]
Record = tuple[int, bytes, bytes | None]  # partition, key, value


class TakenOut(msgspec.Struct):
    """The topics that were made anew, and how many records were written without their offsets."""

    topics: list[str]
    written: int = 0


def take_out_replaced(settings: Settings, progress: Progress = lambda stage, done, total: None) -> TakenOut:
    """Take out the offsets of all topics that were made anew. Raises RebuildRefused, TopicMissing, KafkaError,
    ForgetSecretWrong."""
    require_partitions(settings.kafka)
    for worker in BY_HAND:
        refuse_beside_workers(settings.kafka, worker)
    changed = {worker: set(changes_of(settings.kafka, worker)) for worker in BY_HAND}
    done = TakenOut(sorted(set().union(*changed.values())))
    if changed["history"]:
        done.written += take_out_offsets(settings, changed["history"], progress).written
    if changed["join"]:
        done.written += write_records(settings, topics.JOIN_STATE, _states(settings, changed["join"]))
    if topics.IMPRESSIONS in changed["join"]:
        done.written += write_records(settings, topics.ITEM_STATISTICS, _rows(settings))
    if changed["trending"]:
        done.written += write_records(settings, topics.TRENDING, _counts(settings))
    for worker, names in changed.items():
        if names:
            _begin_anew(settings, worker, names)
            remember_ids(settings.kafka, worker)
    return done


def without_offsets(state: JoinState, of: Collection[str]) -> JoinState:
    """A join's state that remembers no offset of these topics; its revisions go on from where they were."""
    watches, shown = (
        (getattr(state, name) if topic in of else -1) + 1
        for topic, name in ((topics.WATCH_EVENTS, "watch_offset"), (topics.IMPRESSIONS, "impression_offset"))
    )
    return replace(
        state,
        watch_offset=-1 if topics.WATCH_EVENTS in of else state.watch_offset,
        impression_offset=-1 if topics.IMPRESSIONS in of else state.impression_offset,
        read_before=state.read_before + watches + shown,
    )


def _states(settings: Settings, of: Collection[str]) -> Iterator[Record]:
    for number, key, value in _newest(settings, topics.JOIN_STATE):
        with suppress(Refused):
            state = without_offsets(decode(JoinState, value, max_bytes=len(value)), of)
            yield number, key, encode(state, compact=settings.join.compact)


def _rows(settings: Settings) -> Iterator[Record]:
    """The statistics, which remember the impression that last pushed another one out."""
    for number, key, value in _newest(settings, topics.ITEM_STATISTICS):
        with suppress(Refused):
            row = decode(StatisticsRow, value)
            yield number, key, encode(replace(row, mark=(row.mark[0], -1)))


def _counts(settings: Settings) -> Iterator[Record]:
    for number, key, value in _newest(settings, topics.TRENDING):
        with suppress(Refused):
            yield number, key, encode(replace(decode(Trending, value, max_bytes=len(value)), offset=-1))


def _newest(settings: Settings, topic: str) -> Iterator[tuple[int, bytes, bytes]]:
    """The newest record of every key of a compacted topic, a partition after the other: one is held at a time."""
    [about] = [each for each in topics.TOPICS if each.name == topic]
    for number in range(topics.partitions_of(about, settings.kafka)):
        read = read_to_end(settings.kafka, topic, partitions=[number])
        newest = {record.key or b"": record.value for record in read}
        yield from ((number, key, value) for key, value in newest.items() if value is not None)


def write_records(settings: Settings, topic: str, records: Iterable[Record]) -> int:
    """Write records in their order; how many, acknowledged."""
    name, written = settings.kafka.topic_prefix + topic, 0
    producer = create_producer(settings.kafka)
    try:
        waiting = []
        for number, key, value in records:
            written += 1
            waiting.append(producer.send(name, value, key=key, partition=number))
            if len(waiting) >= AHEAD:
                waiting.pop(0).get(timeout=SEND_S)
        for future in waiting:
            future.get(timeout=SEND_S)
    finally:
        producer.close(timeout=SEND_S)
    return written


def _begin_anew(settings: Settings, worker: str, names: Iterable[str]) -> None:
    """Let the worker's group read these topics from their beginnings. Raises KafkaError."""
    kafka = settings.kafka
    places = [TopicPartition(kafka.topic_prefix + name, number) for name in names for number in range(kafka.partitions)]
    with topics.open_admin(kafka) as admin:
        answers = admin.alter_group_offsets(
            group_of(kafka, worker), {tp: OffsetAndMetadata(0, "", -1) for tp in places}
        )
    for error in answers.values():
        if error is not NoError:
            raise error(f"offsets of {group_of(kafka, worker)} cannot be set")
