"""The app of every Faust worker of ours, built and run in one way: with the settings that the guarantees rest on.

At-least-once with effects acknowledged before offsets are committed. A batch's offsets are acknowledged when it is done
and not before, so an agent of ours neither raises in between nor leaves (`handle_batches`): a bug is reported with the
event that showed it, the rest of the batch is finished, and then the process stops loudly.
A worker that the group has gone on without leaves, too, and forgets what it had in hand (streams.write_permit).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any, NoReturn, cast

import faust
import structlog
from faust.types import TP
from kafka.errors import KafkaError

from infra.platform import metrics
from infra.platform.fault_points import reached
from infra.platform.health import Health
from infra.platform.kafka_clients import kafka_python_options
from infra.platform.logs import json_formatter
from infra.platform.settings import Kafka, Settings
from streams.clock import Clock
from streams.kafka.aiokafka.patches import leave_lost_brokers, note_confirmations, pace_fetches
from streams.kafka.batches import FETCHES, Batches
from streams.kafka.faust.patches import (
    Batch,
    FetchingConsumer,
    committed_offset,
    fetch_from_flowing_only,
    hand_on_fetches,
    read_offset,
)
from streams.kafka.intake import Raw, raw_of
from streams.kafka.membership import Membership
from streams.kafka.outbox import Outbox, create_producer
from streams.kafka.partition_counts import PartitionsWatch
from streams.kafka.recovery import OrderedTables, finished
from streams.kafka.requirements import TopicUnfit
from streams.kafka.topic_ids import TopicReplaced, topic_ids
from streams.kafka.unpacking import unpack_for_faust
from streams.write_permit import Fenced

log = structlog.get_logger(__name__)

Handler = Callable[[list[Raw]], Coroutine[Any, Any, BaseException | None]]
EXIT_BUG, EXIT_AGAIN = 70, 75  # EX_SOFTWARE, EX_TEMPFAIL of sysexits.h
REBALANCE_SESSIONS = 2  # so long a rebalance waits for the batch in hand
LAG_EVERY_S = 2.0
IDS_EVERY_S = 15.0
FETCH_EVERY_S = 0.05  # at most; what comes meanwhile is one batch


def create_app(
    settings: Settings, name: str, *, has_standby: bool = False, fetch_every_s: float = FETCH_EVERY_S, **options: Any
) -> faust.App:
    """Return a Faust app in consumer group `<prefix>nextwatch-<name>`, without a web server of its own.

    Partitions are given up only when the batch in hand is done, so no batch may take as long as a rebalance may. Not so
    with `has_standby`, for an app that has one partition and whose batches may take minutes: who has it keeps it when
    another one joins, and that it is another's now is found out otherwise.
    """
    kafka = settings.kafka
    pace_fetches(fetch_every_s)  # Faust and aiokafka have no settings for these: the two patches.py say why
    note_confirmations()
    leave_lost_brokers()
    fetch_from_flowing_only()
    unpack_for_faust(kafka)
    datadir = settings.data_dir / "faust" / name  # nothing is kept in it (tables live in memory), but Faust makes it
    datadir.parent.mkdir(parents=True, exist_ok=True)
    app = faust.App(
        f"{kafka.topic_prefix}nextwatch-{name}",
        **_connection(kafka),
        autodiscover=False,
        origin="streams",
        store="memory://",
        datadir=datadir,
        topic_partitions=kafka.partitions,
        topic_replication_factor=kafka.replication or 1,  # it makes none
        topic_allow_declare=False,  # `nextwatch topics --create` makes them, with the policies that we rely on
        topic_disable_leader=True,
        consumer_auto_offset_reset="earliest",
        broker_session_timeout=kafka.session_timeout_s,
        broker_heartbeat_interval=kafka.session_timeout_s / 5,
        broker_rebalance_timeout=REBALANCE_SESSIONS * kafka.session_timeout_s,
        broker_commit_interval=1.0,
        broker_max_poll_interval=kafka.max_poll_s,
        stream_wait_empty=not has_standby,
        stream_buffer_maxsize=FETCHES,
        # Without tables and replicas of them Faust has aiokafka deal the partitions anew each time somebody joins.
        table_standby_replicas=int(has_standby),
        TableManager=OrderedTables,
        web_enabled=False,
        worker_redirect_stdouts=False,
        **options,
    )
    hand_on_fetches(app)

    @app.on_partitions_assigned.connect  # type: ignore[untyped-decorator]
    async def count(*_: Any, **__: Any) -> None:
        metrics.REBALANCES.inc()

    return app


def _connection(kafka: Kafka) -> dict[str, Any]:
    """Return the keyword arguments of faust.App that say where the brokers are."""
    credentials: Any = None
    context = kafka_python_options(kafka).get("ssl_context")
    if kafka.security_protocol.startswith("SASL"):
        credentials = faust.SASLCredentials(
            username=kafka.username,
            password=kafka.password.get_secret_value(),
            ssl_context=context,
            mechanism=kafka.sasl_mechanism,
        )
    elif context is not None:
        credentials = faust.SSLCredentials(context)
    return {"broker": [f"kafka://{host}" for host in kafka.bootstrap.split(",")], "broker_credentials": credentials}


def raw_topic(app: faust.App, settings: Settings, *names: str, **options: Any) -> Any:
    """Topics of undecoded bytes; we decode ourselves, strictly (faust.Record accepts wrong types)."""
    prefixed = [settings.kafka.topic_prefix + name for name in names]
    raw: Any = {"key_type": bytes, "value_type": bytes, "key_serializer": "raw", "value_serializer": "raw"}
    return app.topic(*prefixed, **raw, **options)


def owned(app: faust.App, batch: Batch, topic_prefix: str) -> list[Raw]:
    """The records of a batch whose partitions are still ours; the others' new owner reads them again."""
    assigned = app.consumer.assignment()
    return [
        raw_of(record, topic_prefix, record.timestamp)
        for record in batch.records
        if TP(record.topic, record.partition) in assigned
    ]


def declare_agent(
    app: faust.App,
    settings: Settings,
    stage: str,
    names: Iterable[str],
    handle: Callable[[list[Raw], Outbox], Coroutine[Any, Any, BaseException | None]],
    *,
    max_: int,
    within: float,
) -> None:
    """The agent of a worker: it reads the topics `names` together and gives their batches to `handle`, with an outbox
    of its own; beside it the worker reports its lag, and leaves when a topic was made anew. Before the first batch of
    each assignment it looks where users' states lie: it may have been out of the group while partitions were raised."""
    look_beside(app, settings, names)
    watch = PartitionsWatch(settings.kafka)

    @app.on_partitions_assigned.connect  # type: ignore[untyped-decorator]
    async def look_again(*_: Any, **__: Any) -> None:
        watch.look_again()

    @app.agent(raw_topic(app, settings, *names), name=stage)  # type: ignore[untyped-decorator]
    async def agent(stream: Any) -> None:
        async with open_outbox(app, settings, f"nextwatch-{stage}") as outbox:

            async def handle_seeing(batch: list[Raw]) -> BaseException | None:
                await see_partitions(watch)
                return await handle(batch, outbox)

            await handle_batches(
                app,
                stream,
                handle_seeing,
                settings=settings,
                stage=stage,
                max_=max_,
                within=within,
            )


async def see_partitions(watch: PartitionsWatch) -> None:
    """Return when users' states lie where we look for them, once the brokers tell; else leave."""
    while watch.is_due:
        try:
            await asyncio.get_running_loop().run_in_executor(None, watch.look)
        except KafkaError as error:
            log.warning("broker unavailable, trying again", error=str(error))
            await asyncio.sleep(1.0)
        except TopicUnfit as error:
            _leave("stopping because users' states are not where they were", error, EXIT_AGAIN)


@contextlib.asynccontextmanager
async def open_outbox(app: faust.App, settings: Settings, client_id: str) -> AsyncIterator[Outbox]:
    """An outbox with a producer of its own, that sends while the group counts the app's worker in."""
    session_s = settings.kafka.session_timeout_s
    membership = Membership(app, session_s, REBALANCE_SESSIONS * session_s)
    producer = create_producer(settings.kafka, client_id)
    await producer.start()
    try:
        yield Outbox(producer, settings.kafka.topic_prefix, membership.check)
    finally:
        await producer.stop()


async def handle_batches(
    app: faust.App, stream: Any, handle: Handler, *, settings: Settings, stage: str, max_: int, within: float
) -> None:
    """The loop of every agent: give `handle` what has arrived, batch by batch, at most `max_` events, every `within`
    seconds unless there are more.

    `handle` returns the bug that an event has shown (the event is in dead-letters), or None.
    """
    batches, consumer = Batches(app, stream.channel, most=max_, within_s=within), cast(FetchingConsumer, app.consumer)
    while True:
        batch = await batches.next()
        records = owned(app, batch, settings.kafka.topic_prefix)
        metrics.BATCH_SIZE.labels(stage).observe(len(records))
        try:
            with metrics.BATCH_TIME.labels(stage).time():
                bug = await to_the_end(handle(records))
        except asyncio.CancelledError:  # it is done all the same
            consumer.acknowledge(batch)
            raise
        reached(f"{stage}: batch done")
        consumer.acknowledge(batch)
        if bug is not None:
            await _stop_after(app, bug)


def give_up_with(app: faust.App, give_up: Callable[[set[int]], Coroutine[Any, Any, None]]) -> None:
    """Tell the worker which partitions are no longer ours, before they are another's."""

    @app.on_partitions_revoked.connect  # type: ignore[untyped-decorator]
    async def tell(_: Any, revoked: Iterable[TP], **__: Any) -> None:
        await give_up({tp.partition for tp in revoked})


def do_every(
    app: faust.App,
    settings: Settings,
    client_id: str,
    every_s: float,
    work: Callable[[Outbox], Coroutine[Any, Any, BaseException | None]],
) -> None:
    """Beside the agent, also when no event comes: `work`, each time to its end, with an outbox of its own."""

    @app.task  # type: ignore[untyped-decorator]
    async def repeat() -> None:
        async with open_outbox(app, settings, client_id) as outbox:
            while not app.should_stop:
                await asyncio.sleep(every_s)
                await to_the_end(work(outbox))


async def to_the_end(work: Coroutine[Any, Any, BaseException | None]) -> BaseException | None:
    """Finish a batch, or another piece of work that has effects, also when we are cancelled, and leave the process at
    once when it fails.

    In both cases Faust would acknowledge the batch's events as if they had been handled.
    """
    try:
        return await finished(work)
    except Fenced as error:
        _leave("stopping because the partitions may be another's; the batch will be read again", error, EXIT_AGAIN)
    except Exception as error:  # whatever it is, the offsets of this batch must not be committed
        _leave("stopping because a batch failed; it will be read again", error)


async def _stop_after(app: faust.App, bug: BaseException) -> None:
    """Commit what is done, then leave; the supervisor starts us again, behind the event that showed the bug."""
    await app.consumer.commit()
    _leave("stopping because of a bug; the event is in dead-letters", bug)


def _leave(why: str, error: BaseException, code: int = EXIT_BUG) -> NoReturn:
    log.critical(why, error=repr(error), exc_info=error if code == EXIT_BUG else None)
    sys.stderr.flush()
    os._exit(code)


async def report_lag(app: faust.App, topic_prefix: str) -> None:
    """Forever: how many messages of the assigned partitions are not handled yet, what Faust has read ahead included;
    nothing of those that are another's by now."""
    gauge, told = metrics.Lags(), dict[tuple[str, int], int]()
    while not app.should_stop:
        lags = {place: told.get(place) if lag is None else lag for place, lag in _lags(app, topic_prefix)}
        told = {place: lag for place, lag in lags.items() if lag is not None}
        gauge.show(told)
        await asyncio.sleep(LAG_EVERY_S)


def look_beside(app: faust.App, settings: Settings, names: Iterable[str]) -> None:
    """Beside an agent that reads the topics `names`: report the lag, and see that the topics stay what they are."""
    names = tuple(names)

    @app.task  # type: ignore[untyped-decorator]
    async def lag() -> None:
        await report_lag(app, settings.kafka.topic_prefix)

    @app.task  # type: ignore[untyped-decorator]
    async def topics_stay() -> None:
        try:
            await see_that_topics_stay(app, settings.kafka, names)
        except TopicReplaced as error:
            _leave("stopping because a topic is not what it was", error, EXIT_AGAIN)


async def see_that_topics_stay(app: faust.App, kafka: Kafka, names: Sequence[str]) -> None:
    """Forever. Raises TopicReplaced once a topic is another than at first: Faust passes over what comes at offsets that
    it has read, and the next start says what is to be done."""
    loop, first = asyncio.get_running_loop(), dict[str, str]()
    while not app.should_stop:
        with contextlib.suppress(KafkaError):  # a broker that is away is the reader's to report
            ids = await loop.run_in_executor(None, topic_ids, kafka, names)
            first = ids | first
            if changed := sorted(name for name, id_ in ids.items() if id_ != first[name]):
                raise TopicReplaced(f"deleted and made again while we read it: {', '.join(changed)}")
        await asyncio.sleep(IDS_EVERY_S)


def _lags(app: faust.App, topic_prefix: str) -> Iterator[tuple[tuple[str, int], int | None]]:
    """The lag by topic and partition; None where it is not known now, as after a rebalance until something is read."""
    consumer = app.consumer
    for tp in consumer.assignment():
        if tp.topic in app.tables.changelog_topics:
            continue
        end, committed, read = consumer.highwater(tp), committed_offset(consumer, tp), read_offset(consumer, tp)
        place = tp.topic.removeprefix(topic_prefix), tp.partition
        if end is None or read is None:
            yield place, None
        else:
            position = read + 1 if committed is None else committed  # the former before the first commit
            yield place, max(0, end - position)


def follow_readiness(app: faust.App, health: Health, recovered: Callable[[], bool] = lambda: True) -> None:
    """Keep `health.ready` true while the app is assigned its partitions and has recovered its state; and say how many
    users' states its tables hold."""

    async def watch() -> None:
        while not app.should_stop:
            health.detail |= {name: len(table) for name, table in app.tables.items()}
            health.ready = bool(app.rebalancing_count) and not app.rebalancing and recovered()
            await asyncio.sleep(0.1)

    app.task(watch)


def run(app: faust.App, settings: Settings) -> None:
    """Run the app's worker until SIGINT or SIGTERM; returns when it has stopped cleanly."""
    worker = faust.Worker(app, loglevel=settings.log_level, logging_config=_logging(settings), daemon=True)
    worker.execute_from_commandline()


def _logging(settings: Settings) -> dict[str, Any]:
    """Third parties' log lines: only what an operator must see."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "text": {"format": "%(asctime)s [%(levelname)-8s] %(name)s: %(message)s"},
            "json": {"()": json_formatter},
        },
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": settings.log_format}},
        "loggers": {"kafka": {"level": "ERROR"}},  # kafka-python warns of every step longer than 0.1 s
        "root": {"level": "WARNING" if settings.log_level != "debug" else "INFO", "handlers": ["stderr"]},
    }


def now_ms() -> int:
    """By this process's clock, which goes on when the machine's is set back: what producers stamp, whose clocks were
    not, would else be refused as of the future."""
    return _clock.look(wall_ms()).latest_ms


def wall_ms() -> int:
    """By the machine's clock, whatever it does: for what is compared with other machines' stamps and only measured."""
    return time.time_ns() // 1_000_000


_clock = Clock(wall_ms())
