"""The standstill in which partitions are raised: nobody is in a group whose members know users by their partitions, and
who was has ended with what was in hand.

A worker that was killed may have counted what its group has not committed, or have closed windows in the statistics and
not in its states. Who takes its partition over knows that; the owner of another partition does not, and would count it
twice. Histories know what they hold by its ids.

Nor may one worker have read further than another of the same topic. One of them forwards what it finds on a partition
of before: history a watch, join an impression. What only that one has read the others would never see, and what only
the others have read would count twice for them. What nobody has read is forwarded and counts once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from itertools import islice

import msgspec
from kafka import TopicPartition
from kafka.consumer.fetcher import ConsumerRecord

from infra.platform.settings import Kafka, Settings
from streams import topics
from streams.history.rebuild_histories import RebuildRefused, group_of
from streams.join.attribution import Rules
from streams.join.rules import due_ms
from streams.kafka.follow import TopicFollower, read_to_end
from streams.kafka.topic_ids import SOURCES
from streams.messages import JoinState, Refused, StatisticsRow, TrainingExample, Trending, decode
from streams.topics import partition_of

WORKERS = ("history", "join", "trending")
SERVERS = "serving"  # their group
SHARED = {
    name: readers
    for name in SOURCES["history"]
    if len(readers := [worker for worker in WORKERS if name in SOURCES[worker]]) > 1
}  # topics that several workers read

Offsets = Mapping[tuple[str, int], int]  # by topic and partition


class Marks(msgspec.Struct):
    """How far the statistics of a partition have counted: closed windows, and the newest impression that pushed another
    one out."""

    closed_ms: int = 0
    pushed_by: int = -1


def refuse_beside_processes(kafka: Kafka) -> None:
    """Raises RebuildRefused while somebody is in a group whose members know users by their partitions."""
    groups = {group_of(kafka, worker): worker for worker in WORKERS} | {kafka.topic_prefix + SERVERS: SERVERS}
    with topics.open_admin(kafka) as admin:
        found = admin.describe_groups(list(groups))
    running = []
    for group, name in groups.items():
        if found[group]["error"] and found[group]["group_state"] != "Dead":  # dead: nobody has ever been in it
            raise RebuildRefused(f"whether {name} runs (group {group}) cannot be told: {found[group]['error']}")
        if members := found[group]["members"]:
            running.append(f"{len(members)} {name}")
    if running:
        raise RebuildRefused(
            f"running: {', '.join(running)}; states are moved while nobody knows where they were: stop history, join, "
            "trending and serving first (one that was killed is out after kafka.session_timeout_s, "
            f"{kafka.session_timeout_s:g} s)"
        )


def refuse_unsettled(settings: Settings, before: int) -> None:
    """Raises RebuildRefused where a worker was killed with something in hand, or has read further than another, as the
    module says."""
    kafka = settings.kafka
    read = {worker: read_offsets(kafka, worker, before) for worker in WORKERS}
    refuse_apart(read, _firsts(kafka, before))
    _refuse_ahead(settings, read["history"], before)
    committed = {number: read["trending"][topics.WATCH_EVENTS, number] for number in range(before)}
    for record in read_to_end(kafka, topics.TRENDING):
        with suppress(Refused):
            counts = decode(Trending, record.value, max_bytes=4 * kafka.max_message_bytes)
            if counts.offset >= committed.get(counts.partition, counts.offset + 1):
                raise _unsettled("trending")
    marks = read_marks(kafka)
    for number in range(before):
        if marks[number].pushed_by >= read["join"][topics.IMPRESSIONS, number]:
            raise _unsettled("join")
        _refuse_unsettled_states(settings, before, number, read["join"], marks[number].closed_ms)


def read_offsets(kafka: Kafka, worker: str, before: int) -> Offsets:
    """The next offset that a worker's group will read of each partition of its topics; 0 where it has read nothing."""
    group = group_of(kafka, worker)
    places = {
        (n, number): TopicPartition(kafka.topic_prefix + n, number) for n in SOURCES[worker] for number in range(before)
    }
    with topics.open_admin(kafka) as admin:
        found = admin.list_group_offsets({group: list(places.values())})[group]
    return {each: max(0, found[place].offset) if place in found else 0 for each, place in places.items()}


def _firsts(kafka: Kafka, before: int) -> Offsets:
    """The first offset that is still there of each partition that several workers read."""
    with TopicFollower(kafka, *SHARED) as follower:
        return {(name, n): first for n in range(before) for name, first in follower.firsts_of(n).items()}


def refuse_apart(read: Mapping[str, Offsets], firsts: Offsets) -> None:
    """Raises RebuildRefused where workers have not read the same of a partition. `firsts`: what is before is gone, and
    nobody will read it."""
    for (name, number), first in firsts.items():
        offsets = {worker: max(first, read[worker][name, number]) for worker in SHARED[name]}
        furthest = max(offsets.values())
        if behind := [worker for worker, offset in offsets.items() if offset < furthest]:
            told = ", ".join(f"{worker} {offset}" for worker, offset in offsets.items())
            raise RebuildRefused(
                f"not all have read the same of {name} (partition {number}: {told}), and what is between would be lost "
                f"or count twice: {' and '.join(behind)} must read it. Start the workers, stop the servers and whoever "
                "sends events, wait until the workers have no lag, stop them, and do this again"
            )


def _refuse_ahead(settings: Settings, read: Offsets, before: int) -> None:
    """Raises RebuildRefused where an example was made of a watch that the history workers have not committed: it would
    be made again of the watch that is forwarded, and learnt twice."""
    since_ms = _first_unread_ms(settings.kafka, read, before)
    if since_ms is None:
        return
    with TopicFollower(settings.kafka, topics.TRAINING_EXAMPLES) as follower:
        follower.go_to(max(0, since_ms - int(settings.history.future_s * 1000)))  # clocks differ
        for record in follower.to_end():
            with suppress(Refused):
                example = decode(TrainingExample, record.value, max_bytes=len(record.value or b""))
                if example.offset >= read.get((topics.WATCH_EVENTS, example.partition), example.offset + 1):
                    raise _unsettled("history")


def _first_unread_ms(kafka: Kafka, read: Offsets, before: int) -> int | None:
    """When the first watch was sent that is not committed; None where all are."""
    sent_ms = []
    for number in range(before):
        with TopicFollower(kafka, topics.WATCH_EVENTS, partitions=[number]) as follower:
            follower.seek(number, read[topics.WATCH_EVENTS, number])
            sent_ms += [record.timestamp for record in islice(follower.to_end(), 1)]
    return min(sent_ms, default=None)


def read_marks(kafka: Kafka) -> defaultdict[int, Marks]:
    """How far statistics have counted, by partition."""
    marks: defaultdict[int, Marks] = defaultdict(Marks)
    for record in read_to_end(kafka, topics.ITEM_STATISTICS):
        with suppress(Refused):
            row = decode(StatisticsRow, record.value)
            mark = marks[row.partition]
            mark.closed_ms, mark.pushed_by = max(mark.closed_ms, row.mark[0]), max(mark.pushed_by, row.mark[1])
    return marks


def _refuse_unsettled_states(settings: Settings, before: int, number: int, read: Offsets, closed_ms: int) -> None:
    rules, overdue = Rules.of(settings), set[bytes]()
    for record in read_to_end(settings.kafka, topics.JOIN_STATE, partitions=[number]):
        overdue.discard(record.key or b"")  # the newest state of a user counts
        state = _state_of(record)
        if state is None or partition_of(state.user_id, before) != number:
            continue
        if state.watch_offset >= read[topics.WATCH_EVENTS, number]:
            raise _unsettled("join")
        if state.impression_offset >= read[topics.IMPRESSIONS, number]:
            raise _unsettled("join")
        due = due_ms(state, rules)
        if due is not None and due <= closed_ms:
            overdue.add(record.key)
    if overdue:
        raise _unsettled("join")


def _unsettled(worker: str) -> RebuildRefused:
    return RebuildRefused(
        f"the {worker} workers have not ended their last batch, as if they were killed: start them, stop them when "
        "they are ready, and do this again"
    )


def _state_of(record: ConsumerRecord) -> JoinState | None:
    """A join's state; None for a tombstone and for what cannot be read."""
    with suppress(Refused):
        return decode(JoinState, record.value, max_bytes=len(record.value or b""))
    return None
