"""Histories made again from what `watch-events`, `search-events`, `signals`, `impressions` and `loaded-histories` still
hold, by the history worker's own functions; of what is older than these topics the present histories tell.

The rule, user by user. Kept of the present history: the watches, searches and signals whose source offset lies before
the beginning of their topic's partition, the lists that are in no impression that is still there, what is remembered as
watched, the context. On that, every event is applied in the order of its offset, up to what the history workers' group
has committed. So

- nothing that only the present history knows is lost, and nothing that a topic still holds is taken from it: what was
  damaged comes from the events;
- nothing is doubled: an entry comes from one of the two, told apart by its offset or its request id, and what is
  remembered as watched holds each item once;
- what the group has not committed is left for the worker to read, whose examples would else not be made.

From scratch nothing is kept, and a user of whom the topics hold nothing has no history afterwards.

Histories that were restored from a copy of `user-histories` hold offsets of another cluster: an event at a lower one
would pass for handled, and be lost. `adopt_histories` takes these offsets out. What the worker then reads for the first
time is known by its event or request id where a history holds it, or is too old for it, so nothing is doubled.

It must have the table for itself: while a history worker is in its group, nothing is done. An event that is stamped
ahead is judged by the time at which it was sent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from heapq import merge
from itertools import takewhile
from typing import Any

import msgspec
from kafka import KafkaProducer
from msgspec.structs import replace

from infra.platform.kafka_clients import kafka_python_options
from infra.platform.settings import Kafka, Settings
from streams import topics
from streams.erased_users import ErasedUsers
from streams.erasure.erase_users import read_erased_users
from streams.history.app import KINDS, LOADED, SHOWN, TIMES, apply_event
from streams.kafka.follow import TopicFollower, read_to_end
from streams.kafka.intake import Raw, raw_of, read
from streams.kafka.partition_counts import read_raise, require_partitions
from streams.kafka.topic_ids import require_same_topics
from streams.messages import Refused, UserHistory, decode, encode

EVENTS = (topics.WATCH_EVENTS, topics.SEARCH_EVENTS, topics.SIGNALS, topics.IMPRESSIONS)
SOURCES = (*EVENTS, topics.LOADED_HISTORIES)
ALL = KINDS | SHOWN | LOADED
AHEAD = 1000  # records sent and not yet acknowledged
SEND_S = 30.0

Progress = Callable[[str, int, int], None]
Histories = dict[str, bytes]  # by user, as they are encoded


class RebuildRefused(RuntimeError):
    """It cannot be done now; the text says why, and the way out."""


class Rebuilt(msgspec.Struct):
    """Counts of what was found: histories, those that differ from what the events say (`missing`: of them, there were
    none), events that were read, and histories written and deleted."""

    users: int = 0
    differ: int = 0
    missing: int = 0
    events: int = 0
    written: int = 0
    deleted: int = 0


class Reach(msgspec.Struct):
    """The reach of one partition, by topic: the first offset that is still there, and the next one that the group will
    read."""

    first: dict[str, int]
    committed: dict[str, int]


def rebuild_histories(
    settings: Settings,
    *,
    from_scratch: bool = False,
    dry_run: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> Rebuilt:
    """Make all histories again. Raises RebuildRefused, TopicReplaced, TopicMissing, TopicUnfit, KafkaError and
    ForgetSecretWrong."""
    refuse_beside_workers(settings.kafka)
    require_same_topics(settings.kafka, "history")  # by an old offset a topic would seem to hold what it does not
    if from_scratch:
        refuse_after_raise(settings.kafka)
    erased, rebuilt = read_erased_users(settings), Rebuilt()

    def make(number: int, before: Histories) -> dict[str, UserHistory]:
        return replay(settings, number, {} if from_scratch else before, erased, rebuilt, progress)

    return _rewrite(settings, make, rebuilt, dry_run=dry_run, progress=progress)


def refuse_after_raise(kafka: Kafka) -> None:
    """Raises RebuildRefused while topics hold events from before the partitions were raised: those of the users who
    were moved lie where nobody reads them."""
    raised = read_raise(kafka)
    if raised is None:
        return
    with TopicFollower(kafka, *SOURCES) as follower:
        held = [
            name
            for name, ends in raised.event_ends.items()
            if any(follower.firsts_of(number)[name] < end for number, end in enumerate(ends))
        ]
    if held:
        raise RebuildRefused(
            f"{', '.join(held)} hold events from before the partitions were raised: from scratch, users who were moved "
            "would lose what the topics hold of them from then; do it without, or when kafka.retention_h is over"
        )


def adopt_histories(
    settings: Settings, progress: Progress = lambda stage, done, total: None, *, dry_run: bool = False
) -> Rebuilt:
    """Take the offsets of another cluster out of all histories. Raises as `rebuild_histories`; RebuildRefused too when
    the workers' group has read here, and offsets are this cluster's own."""
    kafka = settings.kafka
    refuse_beside_workers(kafka)
    if any(any(read_reach(kafka, number).committed.values()) for number in range(kafka.partitions)):
        raise RebuildRefused(
            f"the history workers (group {group_of(kafka)}) have read here already: restored histories are made ready "
            "before the first of them runs; delete the group and restore user-histories again"
        )
    return take_out_offsets(settings, EVENTS, progress, dry_run=dry_run)


def take_out_offsets(
    settings: Settings,
    of: Collection[str],
    progress: Progress = lambda stage, done, total: None,
    *,
    dry_run: bool = False,
) -> Rebuilt:
    """Take the offsets of these topics out of all histories. Raises as `rebuild_histories`."""
    refuse_beside_workers(settings.kafka)
    erased = read_erased_users(settings)

    def make(_: int, before: Histories) -> dict[str, UserHistory]:
        found = [history for value in before.values() if (history := _readable(value)) is not None]
        return {each.user_id: without_offsets(each, of) for each in map(erased.begin, found) if not _is_empty(each)}

    return _rewrite(settings, make, Rebuilt(), dry_run=dry_run, progress=progress)


def _rewrite(
    settings: Settings,
    make: Callable[[int, Histories], dict[str, UserHistory]],
    rebuilt: Rebuilt,
    *,
    dry_run: bool,
    progress: Progress,
) -> Rebuilt:
    """Write what `make` makes of each partition's histories, where it differs."""
    kafka = settings.kafka
    require_partitions(kafka)
    producer = create_producer(kafka)
    try:
        for number in range(kafka.partitions):
            progress("partitions", number, kafka.partitions)
            before = read_histories(kafka, number)
            changes = changes_of(before, make(number, before), rebuilt, compact=settings.history.compact)
            if changes and not dry_run:
                refuse_beside_workers(kafka)
                _write(producer, kafka, number, changes)
        progress("partitions", kafka.partitions, kafka.partitions)
    finally:
        producer.close(timeout=SEND_S)
    if dry_run:
        rebuilt.written = rebuilt.deleted = 0
    return rebuilt


def create_producer(kafka: Kafka) -> KafkaProducer:
    """It takes what the workers' outbox does: a history may be larger than kafka-python's 1 MB."""
    limits = {"max_request_size": 8 * kafka.max_message_bytes}
    return KafkaProducer(**kafka_python_options(kafka), **limits, client_id="nextwatch-rebuild", acks="all")


def without_offsets(history: UserHistory, of: Collection[str] = EVENTS) -> UserHistory:
    """A history that remembers no offset of these topics."""
    if topics.WATCH_EVENTS in of:
        watches = tuple(replace(watch, offset=-1) for watch in history.watches)
        history = replace(history, watches=watches, watch_offset=-1)
    if topics.SEARCH_EVENTS in of:
        searches = tuple(replace(search, offset=-1) for search in history.searches)
        history = replace(history, searches=searches, search_offset=-1)
    if topics.SIGNALS in of:
        signals = tuple(replace(signal, offset=-1) for signal in history.signals)
        history = replace(history, signals=signals, signal_offset=-1)
    return replace(history, impression_offset=-1) if topics.IMPRESSIONS in of else history


def _is_empty(history: UserHistory) -> bool:
    return replace(history, since_ms=0) == UserHistory(history.user_id)


def refuse_beside_workers(kafka: Kafka, worker: str = "history") -> None:
    """Raises RebuildRefused while somebody is in the workers' group."""
    group = group_of(kafka, worker)
    with topics.open_admin(kafka) as admin:
        found = admin.describe_groups([group])[group]
    if found["error"] and found["group_state"] != "Dead":  # dead: nobody has ever been in it
        raise RebuildRefused(f"whether a {worker} worker runs (group {group}) cannot be told: {found['error']}")
    if members := found["members"]:
        raise RebuildRefused(
            f"{len(members)} {worker} workers run (group {group}), and two must not write their state: stop them first "
            f"(one that was killed is out after kafka.session_timeout_s, {kafka.session_timeout_s:g} s)"
        )


def read_histories(kafka: Kafka, number: int) -> dict[str, bytes]:
    """The present histories of a partition, as they are encoded."""
    histories: dict[str, bytes] = {}
    for record in read_to_end(kafka, topics.USER_HISTORIES, partitions=[number]):
        user_id = (record.key or b"").decode(errors="replace")
        if record.value is None:
            histories.pop(user_id, None)
        else:
            histories[user_id] = record.value
    return histories


def replay(
    settings: Settings, number: int, present: Histories, erased: ErasedUsers, rebuilt: Rebuilt, progress: Progress
) -> dict[str, UserHistory]:
    """The histories of a partition after all its events. Anew, when retention has taken some of them meanwhile: of
    these the present histories are to tell."""
    begun = rebuilt.events
    while True:
        reach = read_reach(settings.kafka, number)
        histories = _replay_from(reach, settings, number, present, erased, rebuilt, progress)
        if read_reach(settings.kafka, number).first == reach.first:
            return histories
        rebuilt.events = begun


def _replay_from(
    reach: Reach,
    settings: Settings,
    number: int,
    present: Histories,
    erased: ErasedUsers,
    rebuilt: Rebuilt,
    progress: Progress,
) -> dict[str, UserHistory]:
    shown = _request_ids(settings, number, reach)
    histories = {
        user_id: kept(erased.begin(history), reach, shown[user_id])
        for user_id, value in present.items()
        if (history := _readable(value)) is not None
    }
    contexts = {user_id: history.context for user_id, history in histories.items()}
    total = sum(max(0, reach.committed[topic] - reach.first[topic]) for topic in SOURCES)
    for raw in _records(settings.kafka, number, SOURCES, reach):
        rebuilt.events += 1
        for _, event in read([raw], ALL, settings, None, now_ms=raw.produced_ms, erased=erased, times=TIMES):
            before = histories.get(event.user_id) or erased.begin(UserHistory(event.user_id))
            histories[event.user_id] = apply_event(before, event, raw, settings).history
        if rebuilt.events % 1000 == 0:
            progress(f"events of partition {number}", rebuilt.events, max(rebuilt.events, total))
    return {
        user_id: replace(history, context=contexts.get(user_id) or history.context)
        for user_id, history in histories.items()
        if not _is_empty(history)
    }


def kept(history: UserHistory, reach: Reach, shown: set[str]) -> UserHistory:
    """Return what only a history knows: all that the topics no longer hold. `shown`: the user's requests whose
    impressions are still there."""
    watches, searches, signals, lists = (reach.first[topic] for topic in EVENTS)
    return replace(
        history,
        watches=tuple(watch for watch in history.watches if watch.offset < watches),
        searches=tuple(search for search in history.searches if search.offset < searches),
        signals=tuple(signal for signal in history.signals if signal.offset < signals),
        impressions=tuple(each for each in history.impressions if each.request_id not in shown),
        watch_offset=min(history.watch_offset, watches - 1),
        search_offset=min(history.search_offset, searches - 1),
        signal_offset=min(history.signal_offset, signals - 1),
        impression_offset=min(history.impression_offset, lists - 1),
    )


def changes_of(
    before: dict[str, bytes], after: dict[str, UserHistory], rebuilt: Rebuilt, *, compact: bool = True
) -> dict[str, bytes | None]:
    """Return what is to be written, a tombstone for what is to go; counted. Who reads the compact form reads JSON too,
    so the same history in JSON is no change."""
    changes: dict[str, bytes | None] = {
        user_id: encode(history, compact=compact)
        for user_id, history in after.items()
        if before.get(user_id) not in (encode(history, compact=compact), encode(history, compact=False))
    }
    gone = before.keys() - after.keys()
    rebuilt.users += len(after)
    rebuilt.missing += len(changes.keys() - before.keys())
    rebuilt.differ += len(changes) + len(gone)
    rebuilt.written += len(changes)
    rebuilt.deleted += len(gone)
    return changes | dict.fromkeys(gone)


def read_reach(kafka: Kafka, number: int) -> Reach:
    committed = topics.committed_offsets(kafka, group_of(kafka), SOURCES, number)
    with TopicFollower(kafka, *SOURCES, partitions=[number]) as follower:
        return Reach(follower.firsts_of(number), committed)


def _records(kafka: Kafka, number: int, names: tuple[str, ...], reach: Reach) -> Iterator[Raw]:
    """The committed records of a partition of these topics, by the time at which they were sent and within a topic in
    their order."""
    with ExitStack() as stack:
        followers = [stack.enter_context(TopicFollower(kafka, name, partitions=[number])) for name in names]
        streams = [_committed(each, kafka, reach) for each in followers]
        yield from merge(*streams, key=lambda raw: raw.produced_ms)


def _committed(follower: TopicFollower, kafka: Kafka, reach: Reach) -> Iterator[Raw]:
    raws = (raw_of(record, kafka.topic_prefix, record.timestamp) for record in follower.to_end())
    return takewhile(lambda raw: raw.offset < reach.committed[raw.topic], raws)


def _request_ids(settings: Settings, number: int, reach: Reach) -> dict[str, set[str]]:
    """By user, the requests of the impressions that are still there and committed."""
    found: dict[str, set[str]] = defaultdict(set)
    for raw in _records(settings.kafka, number, (topics.IMPRESSIONS,), reach):
        for _, event in read([raw], SHOWN, settings, None, now_ms=raw.produced_ms):
            found[event.user_id].add(event.request_id)
    return found


def _readable(value: bytes) -> UserHistory | None:
    """A history; None for what cannot be read, which is made again from the events alone."""
    try:
        return decode(UserHistory, value, max_bytes=len(value))
    except Refused:
        return None


def _write(producer: Any, kafka: Kafka, number: int, changes: dict[str, bytes | None]) -> None:
    name, futures = kafka.topic_prefix + topics.USER_HISTORIES, []
    for user_id, value in changes.items():
        futures.append(producer.send(name, value, key=user_id.encode(), partition=number))
        if len(futures) >= AHEAD:
            futures.pop(0).get(timeout=SEND_S)
    for future in futures:
        future.get(timeout=SEND_S)


def group_of(kafka: Kafka, worker: str = "history") -> str:
    return f"{kafka.topic_prefix}nextwatch-{worker}"
