"""The history worker: watch and search events, signals and impressions in, user histories and training examples out;
and what a log tells of users (`nextwatch load`), which makes no examples, since a release has learnt it.

What is wrong with an impression is the join worker's to report and to forward (see streams.join.app); here it is
passed over.

The order of effects of one batch, each step acknowledged by the brokers before the next:

1. dead letters, forwarded messages and training examples;
2. the changed histories (the table's changelog, `user-histories`);
3. the offsets (Faust, when the agent asks for the next batch).

So a crash after 1 makes the same examples again, byte for byte, from the histories of before (the trainer knows them by
partition and offset), and a crash after 2 finds the batch's offsets in the histories and passes over it: nothing is
lost, and nothing counts twice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from itertools import chain
from typing import Any

import faust

from infra.platform import metrics
from infra.platform.fault_points import reached
from infra.platform.health import Health
from infra.platform.settings import Settings
from infra.platform.tracing import HEADER, Attributes, Stage, Tracer, traceparent_in, tracer_of
from streams import topics
from streams.erased_users import NOBODY, ErasedUsers
from streams.erasure.erasure_worker import EVERY_S, ErasureWorker
from streams.history.loaded import apply_loaded
from streams.history.rules import Applied, Outcome, apply_impression, apply_search, apply_watch
from streams.history.signals import apply_signal, weighed
from streams.kafka.consumer_progress import ConsumerProgress
from streams.kafka.faust_app import create_app, declare_agent, do_every, follow_readiness, give_up_with, now_ms, wall_ms
from streams.kafka.intake import Raw, read, reject
from streams.kafka.outbox import Outbox
from streams.kafka.tables import EncodedTable, create_table, load, put
from streams.messages import (
    ImpressionOutline,
    LoadedHistory,
    Refused,
    SearchEvent,
    SignalEvent,
    UserHistory,
    WatchEvent,
    encode,
)

KINDS = {topics.WATCH_EVENTS: WatchEvent, topics.SEARCH_EVENTS: SearchEvent, topics.SIGNALS: SignalEvent}
SHOWN = {topics.IMPRESSIONS: ImpressionOutline}
LOADED = {topics.LOADED_HISTORIES: LoadedHistory}
TIMES = 4  # so much larger than an event may what is loaded of a user be: it is many events

Event = WatchEvent | SearchEvent | SignalEvent | ImpressionOutline | LoadedHistory


def create_history_app(settings: Settings, health: Health) -> faust.App:
    app = create_app(settings, "history", Table=EncodedTable)
    histories = create_table(app, settings, "histories", topics.USER_HISTORIES)
    progress = ConsumerProgress(app, settings.kafka.topic_prefix)

    def drop(user_id: str, outbox: Outbox) -> None:
        _put(histories, user_id, None, outbox, settings)

    erasure = ErasureWorker(settings, "history", histories, UserHistory, drop)
    lock = asyncio.Lock()  # who is erased is so between two batches
    follow_readiness(app, health, recovered=lambda: app.tables.actives_ready)

    async def handle_in_turn(batch: Sequence[Raw], outbox: Outbox) -> BaseException | None:
        async with lock:
            await erasure.take_over({raw.partition for raw in batch}, outbox)
            return await handle(batch, histories, outbox, settings, erasure.users, tracer)

    async def erase(outbox: Outbox) -> None:
        await erasure.look(lock)
        async with lock:
            await erasure.advance(progress.assigned(), outbox)

    async def give_up(revoked: set[int]) -> None:
        async with lock:
            erasure.give_up(revoked)

    tracer = tracer_of(settings.tracing, "history")
    batch, wait_s = settings.history.batch, settings.history.wait_s
    declare_agent(app, settings, "history", (*KINDS, *SHOWN, *LOADED), handle_in_turn, max_=batch, within=wait_s)
    do_every(app, settings, "nextwatch-history-erasure", EVERY_S, erase)
    give_up_with(app, give_up)
    return app


async def handle(
    batch: Sequence[Raw],
    histories: Any,
    outbox: Outbox,
    settings: Settings,
    erased: ErasedUsers = NOBODY,
    tracer: Tracer | None = None,
) -> BaseException | None:
    """One batch's way, in the order that the module promises. Returns the first bug that an event has shown."""
    began_s = time.perf_counter()
    changed, sent_ms, bug = apply(batch, histories, outbox, settings, now_ms=now_ms(), erased=erased)
    await outbox.flush()
    reached("history: examples sent")
    for user_id, newer in changed.items():
        _put(histories, user_id, newer, outbox, settings)
    await outbox.flush()
    reached("history: histories sent")
    acknowledged_ms = wall_ms()
    for produced_ms in sent_ms:
        metrics.EVENT_TO_HISTORY.observe(max(0, acknowledged_ms - produced_ms) / 1000)
    if tracer is not None:
        _trace(tracer, batch, Stage("batch", began_s, time.perf_counter()))
    return bug


def _trace(tracer: Tracer, batch: Sequence[Raw], done: Stage) -> None:
    """Tell of each watch that comes with a trace."""
    for raw in batch:
        if raw.topic != topics.WATCH_EVENTS or not raw.headers:
            continue
        if (traceparent := traceparent_in(raw.headers)) and tracer.wants(traceparent):
            about: Attributes = {
                "messaging.system": "kafka",
                "messaging.destination.partition.id": str(raw.partition),
                "messaging.kafka.offset": raw.offset,
                "nextwatch.batch": len(batch),
            }
            tracer.tell("history", traceparent, [done], about)


def apply(
    batch: Sequence[Raw],
    histories: Any,
    outbox: Outbox,
    settings: Settings,
    *,
    now_ms: int,
    erased: ErasedUsers = NOBODY,
) -> tuple[dict[str, UserHistory], list[int], BaseException | None]:
    """Apply a batch to the histories of its users: those that changed, the watches' send times, and the first bug.

    Examples, dead letters and forwarded messages are put into `outbox`; `histories` is only read.
    """
    changed: dict[str, UserHistory] = {}
    sent_ms: list[int] = []
    bug: BaseException | None = None
    outcomes = dict.fromkeys(Outcome, 0)
    loaded = read(batch, LOADED, settings, outbox, now_ms=now_ms, erased=erased, times=TIMES)
    events = read(batch, KINDS, settings, outbox, now_ms=now_ms, erased=erased)
    shown = read(batch, SHOWN, settings, None, now_ms=now_ms, erased=erased)
    for raw, event in chain(loaded, events, shown):  # the topics are not ordered between each other
        try:
            before = changed.get(event.user_id) or load(histories, UserHistory, event.user_id)
            before = erased.begin(before)
            applied = apply_event(before, event, raw, settings)
        except Exception as error:  # a bug of ours: this event is set aside, the others are not harmed
            bug = bug or error
            reject(raw, Refused("bug", repr(error)), settings, outbox, now_ms=now_ms)
            continue
        if applied.history is not before:
            changed[event.user_id] = applied.history
        if applied.example is not None:
            encoded = encode(applied.example, compact=settings.history.compact)
            trace = traceparent_in(raw.headers) if raw.headers else ""
            headers = [(HEADER, trace.encode())] if trace else ()
            outbox.add(topics.TRAINING_EXAMPLES, 0, event.user_id.encode(), encoded, headers)
        if isinstance(event, WatchEvent):
            outcomes[applied.outcome] += 1
            sent_ms.append(raw.produced_ms)
        if applied.outcome in (Outcome.DUPLICATE, Outcome.REPLAYED):
            metrics.DUPLICATES.labels(raw.topic).inc()
    for outcome, count in outcomes.items():
        metrics.WATCHES.labels(outcome).inc(count)
    return changed, sent_ms, bug


def _put(histories: Any, user_id: str, history: UserHistory | None, outbox: Outbox, settings: Settings) -> None:
    partitions, compact = settings.kafka.partitions, settings.history.compact
    put(histories, topics.USER_HISTORIES, user_id, history, outbox, partitions, compact=compact)


def apply_event(before: UserHistory, event: Event, raw: Raw, settings: Settings) -> Applied:
    """One event's effect on its user's history."""
    history = settings.history
    if isinstance(event, WatchEvent):
        applied = apply_watch(
            before,
            event,
            raw.source,
            keep=history.watches,
            completed_s=history.completed_s,
            watched=history.seen,
            watched_days=history.seen_days,
        )
        return weighed(applied, settings.model.signal_weights)
    if isinstance(event, ImpressionOutline):
        return apply_impression(before, event, raw.source, keep=history.impressions)
    if isinstance(event, SearchEvent):
        return apply_search(before, event, raw.source, keep=history.searches)
    if isinstance(event, SignalEvent):
        return apply_signal(before, event, raw.source, unwanted=history.unwanted, others=history.signals)
    return apply_loaded(
        before,
        event,
        keep=history.watches,
        watched=history.seen,
        watched_days=history.seen_days,
        searches=history.searches,
    )
