"""The standstill in which partitions are raised: nobody is in a group whose members know users by their partitions, and
who was has ended with what was in hand.

A worker that was killed may have counted what its group has not committed, or have closed windows in the statistics and
not in its states. Who takes its partition over knows that; the owner of another partition does not, and would count it
twice. Histories know what they hold by its ids.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress

import msgspec
from kafka.consumer.fetcher import ConsumerRecord

from infra.platform.settings import Kafka, Settings
from streams import topics
from streams.history.rebuild_histories import RebuildRefused, group_of
from streams.join.attribution import Rules
from streams.join.rules import due_ms
from streams.kafka.follow import read_to_end
from streams.messages import JoinState, Refused, StatisticsRow, Trending, decode
from streams.topics import partition_of

WORKERS = ("history", "join", "trending")
SERVERS = "serving"  # their group


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
    """Raises RebuildRefused where a worker was killed with something in hand, as the module says."""
    kafka = settings.kafka
    watched, shown = topics.WATCH_EVENTS, topics.IMPRESSIONS
    group = group_of(kafka, "trending")
    committed = {n: topics.committed_offsets(kafka, group, [watched], n)[watched] for n in range(before)}
    for record in read_to_end(kafka, topics.TRENDING):
        with suppress(Refused):
            counts = decode(Trending, record.value, max_bytes=4 * kafka.max_message_bytes)
            if counts.offset >= committed.get(counts.partition, counts.offset + 1):
                raise _unsettled("trending")
    group, marks = group_of(kafka, "join"), read_marks(kafka)
    for number in range(before):
        read = topics.committed_offsets(kafka, group, [watched, shown], number)
        if marks[number].pushed_by >= read[shown]:
            raise _unsettled("join")
        _refuse_unsettled_states(settings, before, number, read, marks[number].closed_ms)


def read_marks(kafka: Kafka) -> defaultdict[int, Marks]:
    """How far statistics have counted, by partition."""
    marks: defaultdict[int, Marks] = defaultdict(Marks)
    for record in read_to_end(kafka, topics.ITEM_STATISTICS):
        with suppress(Refused):
            row = decode(StatisticsRow, record.value)
            mark = marks[row.partition]
            mark.closed_ms, mark.pushed_by = max(mark.closed_ms, row.mark[0]), max(mark.pushed_by, row.mark[1])
    return marks


def _refuse_unsettled_states(
    settings: Settings, before: int, number: int, read: Mapping[str, int], closed_ms: int
) -> None:
    rules, overdue = Rules.of(settings), set[bytes]()
    for record in read_to_end(settings.kafka, topics.JOIN_STATE, partitions=[number]):
        overdue.discard(record.key or b"")  # the newest state of a user counts
        state = _state_of(record)
        if state is None or partition_of(state.user_id, before) != number:
            continue
        if state.watch_offset >= read[topics.WATCH_EVENTS] or state.impression_offset >= read[topics.IMPRESSIONS]:
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
