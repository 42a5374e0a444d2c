"""The users' topics get more partitions, and each user's state goes to the partition that the user's messages come to
from then on.

The order, each step acknowledged by the brokers before the next:

1. `releases` is told that the partitions are being raised: from now on no process starts (see
   streams.kafka.partition_counts). Who runs is looked for before and after.
2. It is told where the states end, and where the events do, for `rebuild histories --from-scratch`. A tombstone behind
   the former is one that a broken run has written: it takes out what was moved already, and is no news of the user.
3. The topics get their partitions.
4. Of each partition of before: the states of the users who go elsewhere are written there in their order, then
   tombstones are written in their place.
5. `releases` is told that it is done.

What breaks off is done again, from 4 on: a state that was moved already is written once more as it was, since nobody
has changed it in between. Records go by as they are read, so memory does not grow with the users. A record counts in
its user's partition of before only: what an earlier raise has left in others is no state.

What is in the topics of events and not read yet stays where it is, and the workers forward it
(streams/kafka/forwarding.py). What is in somebody's hand must not be (standstill.py).

Counts by partition, item statistics and trending, stay where they are: readers add them up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import msgspec
from kafka.consumer.fetcher import ConsumerRecord
from kafka.errors import KafkaTimeoutError
from msgspec.structs import replace

from infra.platform.settings import Kafka, Settings
from streams import topics
from streams.erased_users import ErasedUsers
from streams.erasure.erase_users import read_erased_users
from streams.history.rebuild_histories import SOURCES, RebuildRefused
from streams.join.attribution import Rules
from streams.kafka.follow import TopicFollower, read_to_end, require_topics
from streams.kafka.partition_counts import STATES, read_raise
from streams.kafka.releases import announce
from streams.messages import JoinState, PartitionsRaised, Refused, UserHistory, decode, encode
from streams.partitions.moved_states import moved_history, moved_state
from streams.partitions.standstill import read_marks, refuse_beside_processes, refuse_unsettled
from streams.replaced.take_out_offsets import write_records
from streams.topics import partition_of

MADE_S = 30.0  # for all brokers to know the partitions that one has made
LOOK_S = 0.2
TELL_EVERY = 1000  # records

Progress = Callable[[str, int, int], None]


class RaisedTopic(msgspec.Struct):
    """`moved`: records of states that were written to another partition."""

    topic: str
    before: int
    after: int
    moved: int = 0


class Raised(msgspec.Struct):
    """What was done; `was_begun` by a run that had broken off."""

    before: int
    after: int
    was_begun: bool
    topics: list[RaisedTopic]


def raise_partitions(settings: Settings, progress: Progress = lambda stage, done, total: None) -> Raised:
    """Raise the partitions to `kafka.partitions`. Raises RebuildRefused, TopicMissing, KafkaError and
    ForgetSecretWrong."""
    kafka = settings.kafka
    names = [topic.name for topic in topics.TOPICS if topic.is_raised]
    require_topics(kafka, [topic.name for topic in topics.TOPICS])
    refuse_beside_processes(kafka)
    erased, begun = read_erased_users(settings), read_raise(kafka)
    counts = topics.partition_counts(kafka, names)
    refuse_fewer(kafka, counts)
    if begun is not None and not begun.is_done and begun.ends:
        plan, was_begun = _resumed(begun, kafka), True
    else:
        plan, was_begun = _begin(settings, counts, begun), False
    _make(kafka, [name for name in names if counts[name] < plan.after], plan.after)
    done = Raised(plan.before, plan.after, was_begun, [])
    moved = {topic: _move(settings, topic, plan, erased, progress) for topic in STATES if plan.before < plan.after}
    if not plan.is_done:
        announce(kafka, replace(plan, is_done=True))
    done.topics = [
        RaisedTopic(name, counts[name], plan.after, moved.get(name, 0))
        for name in names
        if counts[name] < plan.after or moved.get(name)
    ]
    return done


def refuse_fewer(kafka: Kafka, counts: Mapping[str, int]) -> None:
    """Raises RebuildRefused where a topic has more partitions than it is to have."""
    if more := {name: has for name, has in counts.items() if has > kafka.partitions}:
        told = ", ".join(f"{name} has {has}" for name, has in more.items())
        raise RebuildRefused(
            f"{told}, and kafka.partitions is {kafka.partitions}: Kafka takes no partitions away, set it to "
            f"{max(more.values())} or more"
        )


def _resumed(begun: PartitionsRaised, kafka: Kafka) -> PartitionsRaised:
    if begun.after != kafka.partitions:
        raise RebuildRefused(
            f"the partitions are being raised from {begun.before} to {begun.after}, and that is to be ended first: set "
            f"kafka.partitions to {begun.after}"
        )
    return begun


def _begin(settings: Settings, counts: Mapping[str, int], last: PartitionsRaised | None) -> PartitionsRaised:
    """Tell `releases`, and see that nobody has come in between: else it is withdrawn. What the last run has told, and
    moved nothing, is withdrawn where nothing is to be raised any more."""
    kafka, before = settings.kafka, counts[topics.USER_HISTORIES]
    if counts[topics.JOIN_STATE] != before:
        raise RebuildRefused(
            f"{topics.USER_HISTORIES} has {before} partitions and {topics.JOIN_STATE} {counts[topics.JOIN_STATE]}: "
            "somebody else has changed them, and where states lie cannot be told"
        )
    begun = PartitionsRaised(
        before, kafka.partitions, time.time_ns() // 1_000_000, event_ends={} if last is None else last.event_ends
    )
    nothing = replace(begun, after=before, is_done=True)
    withdrawn = nothing if last is None or not last.is_done else last
    if before == kafka.partitions:
        if last is not None and not last.is_done:
            announce(kafka, withdrawn)
        return nothing
    announce(kafka, begun)
    try:
        refuse_beside_processes(kafka)
        refuse_unsettled(settings, before)
    except RebuildRefused:
        announce(kafka, withdrawn)
        raise
    plan = replace(begun, ends=_ends(kafka, STATES, before), event_ends=_ends(kafka, SOURCES, before))
    announce(kafka, plan)
    return plan


def _ends(kafka: Kafka, names: Sequence[str], before: int) -> dict[str, tuple[int, ...]]:
    """By topic, the offset after the last record of each partition of before."""
    with TopicFollower(kafka, *names, partitions=()) as follower:
        ends = follower.ends()
    return {name: tuple(ends[name, number] for number in range(before)) for name in names}


def _make(kafka: Kafka, names: Iterable[str], after: int) -> None:
    """Give these topics so many partitions; returns when the brokers know. Raises KafkaError; where they
    do not know within `MADE_S`, KafkaTimeoutError, and the next run goes on."""
    names = list(names)
    if not names:
        return
    with topics.open_admin(kafka) as admin:
        admin.create_partitions({kafka.topic_prefix + name: after for name in names})
    give_up_s = time.monotonic() + MADE_S
    while lacking := set(names) - {n for n, has in topics.partition_counts(kafka, names).items() if has == after}:
        if time.monotonic() > give_up_s:
            raise KafkaTimeoutError(
                f"after {MADE_S:g} s not all brokers know that these have {after} partitions: "
                f"{', '.join(sorted(lacking))}; run it again"
            )
        time.sleep(LOOK_S)


def _move(settings: Settings, topic: str, plan: PartitionsRaised, erased: ErasedUsers, progress: Progress) -> int:
    """Move the states of one topic, a partition after the other; how many records."""
    marks, moved, read = read_marks(settings.kafka), 0, _Read(topic, 2 * sum(plan.ends[topic]), progress)
    for number in range(plan.before):
        refuse_beside_processes(settings.kafka)  # one that was just starting has not seen what `releases` tells
        copies = (
            (home, record.key, _moved(settings, record, number, marks[home].closed_ms, erased))
            for home, record in _leaving(settings.kafka, topic, number, plan, read)
        )
        moved += write_records(settings, topic, copies)
        gone = (
            (number, record.key, None)
            for _, record in _leaving(settings.kafka, topic, number, plan, read)
            if record.value is not None
        )
        write_records(settings, topic, gone)
    read.end()
    return moved


class _Read:
    """How many records were read, told now and then. Compaction leaves fewer than offsets tell."""

    def __init__(self, stage: str, total: int, progress: Progress) -> None:
        self._stage, self._total, self._progress, self._read = stage, total, progress, 0

    def count(self) -> None:
        self._read += 1
        if self._read % TELL_EVERY == 0:
            self._progress(self._stage, self._read, max(self._read, self._total))

    def end(self) -> None:
        self._progress(self._stage, self._read, self._read)


def _leaving(
    kafka: Kafka, topic: str, number: int, plan: PartitionsRaised, read: _Read
) -> Iterator[tuple[int, ConsumerRecord]]:
    """Yield the records of a partition's users who go elsewhere, in their order, each with its new partition."""
    end = plan.ends[topic][number]
    for record in read_to_end(kafka, topic, partitions=[number]):
        read.count()
        if record.key is None or (record.value is None and record.offset >= end):  # the latter is a tombstone of ours
            continue
        user_id = record.key.decode(errors="replace")
        home = partition_of(user_id, plan.after)
        if home != number and partition_of(user_id, plan.before) == number:
            yield home, record


def _moved(
    settings: Settings, record: ConsumerRecord, number: int, closed_ms: int, erased: ErasedUsers
) -> bytes | None:
    """A state as it is written to another partition. What cannot be read stays as it is, for its worker to report."""
    if record.value is None:
        return None
    try:
        if record.topic.endswith(topics.USER_HISTORIES):
            history = moved_history(erased.begin(decode(UserHistory, record.value, max_bytes=len(record.value))))
            return None if history is None else encode(history, compact=settings.history.compact)
        before = erased.begin(decode(JoinState, record.value, max_bytes=len(record.value)))
        state = moved_state(before, number, closed_ms, Rules.of(settings))
        return None if state is None else encode(state, compact=settings.join.compact)
    except Refused:
        value: bytes = record.value
        return value
