"""The history worker: watch and search events in, user histories and training examples out.

The order of effects of one batch, each step acknowledged by the brokers before the next:

1. dead letters, forwarded messages and training examples;
2. the changed histories (the table's changelog, `user-histories`);
3. the offsets (Faust, when the agent asks for the next batch).

So a crash after 1 makes the same examples again, byte for byte, from the histories of before (the trainer knows them by
partition and offset), and a crash after 2 finds the batch's offsets in the histories and passes over it: nothing is
lost, and nothing counts twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import faust
import structlog

from infra import metrics
from infra.health import Health
from infra.settings import Settings
from streams import topics
from streams.faust_app import create_app, follow_readiness, handle_batches, now_ms, raw_topic, report_lag
from streams.history import Applied, Outcome, apply_search, apply_watch
from streams.intake import Raw, read, reject
from streams.messages import Refused, SearchEvent, UserHistory, WatchEvent, decode, encode
from streams.outbox import Outbox, create_producer

log = structlog.get_logger(__name__)

KINDS = {topics.WATCH_EVENTS: WatchEvent, topics.SEARCH_EVENTS: SearchEvent}


class HistoryTable(faust.Table):
    """A Faust table whose changelog the agent writes itself, in batches.

    Faust would send one message for each key that is set, which is the larger part of an event's cost. Recovery and
    rebalancing are Faust's own. The table holds what travels: str keys and encoded histories.
    """

    def on_key_set(self, key: Any, value: Any) -> None:
        """Nothing to send: see `handle`."""

    def on_key_del(self, key: Any) -> None:
        """Nothing to send: see `handle`."""


def create_history_app(settings: Settings, health: Health) -> faust.App:
    app = create_app(settings, "history", Table=HistoryTable)
    prefix = settings.kafka.topic_prefix
    histories = app.Table(
        "histories",
        partitions=settings.kafka.partitions,
        use_partitioner=True,
        changelog_topic=app.topic(
            prefix + topics.USER_HISTORIES,
            key_type=str,
            value_type=bytes,
            key_serializer="raw",
            value_serializer="raw",
            compacting=True,
            partitions=settings.kafka.partitions,
            internal=True,
            allow_empty=True,
        ),
    )
    follow_readiness(app, health, recovered=lambda: app.tables.actives_ready)

    @app.task  # type: ignore[untyped-decorator]
    async def lag() -> None:
        await report_lag(app, prefix)

    @app.agent(raw_topic(app, settings, *KINDS), name="history")  # type: ignore[untyped-decorator]
    async def history(stream: Any) -> None:
        producer = create_producer(settings.kafka, "nextwatch-history")
        await producer.start()
        outbox = Outbox(producer, prefix)
        try:
            await handle_batches(
                app,
                stream,
                lambda batch: handle(batch, histories, outbox, settings),
                settings=settings,
                stage="history",
                max_=settings.history.batch,
                within=settings.history.wait_s,
            )
        finally:
            await producer.stop()

    return app


async def handle(batch: Sequence[Raw], histories: Any, outbox: Outbox, settings: Settings) -> BaseException | None:
    """One batch's way, in the order that the module promises. Returns the first bug that an event has shown."""
    changed, sent_ms, bug = apply(batch, histories, outbox, settings, now_ms=now_ms())
    await outbox.flush()
    for user_id, newer in changed.items():
        histories[user_id] = encoded = encode(newer)
        place = topics.partition_of(user_id, settings.kafka.partitions)
        outbox.add(topics.USER_HISTORIES, place, user_id.encode(), encoded)
    await outbox.flush()
    acknowledged_ms = now_ms()
    for produced_ms in sent_ms:
        metrics.EVENT_TO_HISTORY.observe(max(0, acknowledged_ms - produced_ms) / 1000)
    return bug


def apply(
    batch: Sequence[Raw], histories: Any, outbox: Outbox, settings: Settings, *, now_ms: int
) -> tuple[dict[str, UserHistory], list[int], BaseException | None]:
    """Apply a batch to the histories of its users: those that changed, the watches' send times, and the first bug.

    Examples, dead letters and forwarded messages are put into `outbox`; `histories` is only read.
    """
    changed: dict[str, UserHistory] = {}
    sent_ms: list[int] = []
    bug: BaseException | None = None
    outcomes = dict.fromkeys(Outcome, 0)
    for raw, event in read(batch, KINDS, settings, outbox, now_ms=now_ms):
        try:
            before = changed.get(event.user_id) or _load(histories, event.user_id)
            applied = _apply(before, event, raw, settings)
        except Exception as error:  # a bug of ours: this event is set aside, the others are not harmed
            bug = bug or error
            reject(raw, Refused("bug", repr(error)), settings, outbox, now_ms=now_ms)
            continue
        if applied.history is not before:
            changed[event.user_id] = applied.history
        if applied.example is not None:
            outbox.add(topics.TRAINING_EXAMPLES, 0, event.user_id.encode(), encode(applied.example))
        if isinstance(event, WatchEvent):
            outcomes[applied.outcome] += 1
            sent_ms.append(raw.produced_ms)
        if applied.outcome in (Outcome.DUPLICATE, Outcome.REPLAYED):
            metrics.DUPLICATES.labels(raw.topic).inc()
    for outcome, count in outcomes.items():
        metrics.WATCHES.labels(outcome).inc(count)
    return changed, sent_ms, bug


def _apply(before: UserHistory, event: WatchEvent | SearchEvent, raw: Raw, settings: Settings) -> Applied:
    if isinstance(event, WatchEvent):
        keep, completed_s = settings.history.watches, settings.history.completed_s
        return apply_watch(before, event, raw.source, keep=keep, completed_s=completed_s)
    return apply_search(before, event, raw.source, keep=settings.history.searches)


def _load(histories: Any, user_id: str) -> UserHistory:
    encoded = histories.get(user_id)
    if encoded is None:
        return UserHistory(user_id)
    try:
        return decode(UserHistory, encoded, max_bytes=len(encoded))
    except Refused as refused:
        # Somebody else wrote to the changelog. The user starts anew, which the next watch makes true on the topic too.
        log.error("unreadable history in user-histories, starting it anew", reason=str(refused))
        return UserHistory(user_id)
