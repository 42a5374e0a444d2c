"""The indexer process: releases, catalogue and touched rows from Kafka into Milvus, one collection per version.

One loop does everything, so everything has an order. A round: hear releases and catalogue, read rows, write what is
due, carry out what the rollout needs next (indexer/rollout.py). Order of effects of what was read: rows deleted and
upserted, dead letters sent, all of it acknowledged, then offsets committed; so a crash writes a few rows again and
skips none.

A new collection catches up by reading `item-vectors` from the beginning. The same happens at every start, where rows
below the committed offsets only matter for items that are unavailable.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import structlog
from kafka import KafkaProducer
from kafka.consumer.fetcher import ConsumerRecord
from kafka.errors import KafkaError, MessageSizeTooLargeError

from indexer import rollout
from indexer.build import BuildFailed
from indexer.collection import Index
from indexer.errors import IndexMissing
from indexer.intake import Intake
from indexer.item_attributes import AttributeTable
from indexer.lease import IndexerLease
from indexer.offset_tracker import OffsetTracker
from indexer.pending_writes import PendingWrites
from indexer.rebuilding import Rebuilding
from indexer.retry import Retry, Stopped
from indexer.rollout import Announce, Effect, Releases, Stage, Step
from indexer.rollout_executor import Collections
from indexer.upserts import Upserts
from infra.platform import metrics
from infra.platform.fault_points import reached
from infra.platform.health import Health, serve_health
from infra.platform.kafka_clients import kafka_python_options
from infra.platform.settings import Kafka, Settings
from streams import topics
from streams.epochs import Epochs
from streams.kafka.dead_letters import dead_letter
from streams.kafka.follow import TopicFollower, TopicMissing
from streams.kafka.replication import watching_copies
from streams.kafka.requirements import require_settings
from streams.messages import BundlePublished, IndexReady, ItemVector, RebuildAsked, Refused, Release, decode, encode
from streams.write_permit import Fenced

log = structlog.get_logger(__name__)

POLL_S = 0.05
DECIDE_S = 1.0  # how often the rollout is looked at when nothing has happened
REPORT_S = 5.0
RETRY_S = 2.0  # Kafka away or topics missing
SEND_S = 30.0
SERVER = "server"  # its messages have keys that begin so
_RELEASE: Any = Release  # a union; mypy wants a class


def run_indexer(settings: Settings, stop: threading.Event) -> None:
    """Keep the index until `stop` is set. Waits for topics, for Kafka, for Milvus, and for another indexer to leave.
    Raises ServiceError when the metrics port is taken, IndexRefused when Milvus does not let us in, TopicUnfit,
    MessageSizeTooLargeError when a topic takes less than we have to send."""
    health = Health("indexer")
    index = Index(settings.milvus)
    with serve_health(health, settings, started_ms=_now_ms()):
        while not stop.is_set():
            health.ready = health.standby = False
            try:
                _keep_index(settings, stop, health, index)
            except Stopped:
                break
            except MessageSizeTooLargeError:
                raise  # starting again would send it again
            except (Fenced, TopicMissing, KafkaError) as error:
                log.warning("starting again", reason=str(error))
                health.waiting_for = f"Kafka: {error}"
                stop.wait(RETRY_S)
    index.close()


def _keep_index(settings: Settings, stop: threading.Event, health: Health, index: Index) -> None:
    """From joining the group until `stop`, or until another indexer has taken over."""
    health.waiting_for = "Kafka"
    require_settings(settings, (topics.RELEASES, topics.ITEMS, topics.ITEM_VECTORS, topics.DEAD_LETTERS))
    with ExitStack() as stack:
        control = stack.enter_context(TopicFollower(settings.kafka, topics.RELEASES, topics.ITEMS))
        vectors = stack.enter_context(TopicFollower(settings.kafka, topics.ITEM_VECTORS))
        offsets = OffsetTracker(settings.kafka)
        stack.callback(offsets.close)
        lease = IndexerLease(settings.kafka, settings.run_dir)
        stack.callback(lease.close)
        producer = create_producer(settings.kafka)
        stack.callback(producer.close, timeout=5)
        health.waiting_for = "another indexer to leave"
        while not lease.acquire(POLL_S):
            health.standby = lease.is_anothers
            health.detail["role"] = "standby" if health.standby else "waiting"
            if stop.is_set():
                return
        health.standby, health.detail["role"] = False, "active"
        retry = Retry(stop, health, lambda: lease.check(stop))
        loop = IndexerLoop(settings, health, index, control, vectors, offsets, producer, retry)
        stack.callback(loop.lags.show, {})
        stack.enter_context(watching_copies(settings.kafka))
        loop.open()
        while not stop.is_set():
            loop.turn()
        loop.write()


class IndexerLoop:
    """The loop's state while it holds the lease; `turn` is one round."""

    def __init__(
        self,
        settings: Settings,
        health: Health,
        index: Index,
        control: TopicFollower,
        vectors: TopicFollower,
        offsets: OffsetTracker,
        producer: KafkaProducer,
        retry: Retry,
    ) -> None:
        self.lags = metrics.Lags()
        self._settings, self._health = settings, health
        self._index, self._retry = index, retry
        self._control, self._vectors, self._offsets, self._producer = control, vectors, offsets, producer
        self._releases = Releases()
        self._rows = PendingWrites()
        attributes = AttributeTable()
        self._epochs = Epochs()
        self._intake = Intake(self._rows, attributes, settings.kafka.max_message_bytes)
        self._upserts = Upserts(index, self._rows, attributes, batch=settings.indexer.batch, retry=retry)
        self._collections = Collections(index, self._rows, attributes, settings, retry)
        self._rebuilding = Rebuilding(index, self._rows, attributes, settings, retry)
        self._letters: list[tuple[bytes | None, bytes]] = []
        self._decide_s = self._report_s = 0.0  # when to do so next, by the monotonic clock

    def open(self) -> None:
        """Learn what there is: offsets, collections, all releases and the whole catalogue, rows of unavailable
        items."""
        self._health.waiting_for = "the catalogue to be read"
        self._intake.is_opening = True
        self._offsets.open(self._control.ends() | self._vectors.ends())
        self._collections.open()
        while not self._control.caught_up:
            self._retry.check()
            self._hear(POLL_S)
        self._collections.hold_unavailable()
        self._health.ready, self._health.waiting_for = True, ""

    def turn(self) -> None:
        """One round."""
        self._retry.meanwhile()
        self._hear(0.0)
        is_filling = self._collections.stage in {Stage.FILLING, Stage.FILLED}
        for record in self._vectors.poll(0.0 if is_filling else POLL_S):
            self._handle(record)
        if self._intake.is_opening and self._vectors.caught_up:
            self._intake.opened(_now_ms())
        try:
            self._do_what_is_due()
        except IndexMissing as error:
            log.error("collection is gone", error=str(error))
            self._look_again()

    def write(self) -> None:
        """Write all that was read, then commit it."""
        if self._upserts.write_all(self._collections.marks):
            self._look_again()
        if self._letters:
            self._send(topics.DEAD_LETTERS, self._letters)
            self._letters.clear()
        self._offsets.commit(but={topics.ITEMS} if self._intake.is_opening else ())  # with what they bring back

    # --- reading -----------------------------------------------------------------------------------------------------

    def _hear(self, wait_s: float) -> None:
        for record in self._control.poll(wait_s):
            self._handle(record)

    def _handle(self, record: ConsumerRecord) -> None:
        topic = record.topic.removeprefix(self._settings.kafka.topic_prefix)
        metrics.RECEIVED.labels(topic).inc()
        place = topic, record.partition
        known = self._offsets.is_written(place, record.offset)
        try:
            self._apply(topic, record, known)
        except Refused as refused:
            self._refuse(topic, record, refused, known)
        self._offsets.note_read(place, record.offset)

    def _apply(self, topic: str, record: ConsumerRecord, known: bool) -> None:
        key, value, now_ms = record.key, record.value, _now_ms()
        if topic == topics.ITEMS:
            self._intake.hear_item(key, value, is_written=known, now_ms=now_ms)
        elif topic == topics.RELEASES:
            self._hear_release(key, value)
        elif not self._epochs.take(record):  # of a trainer that had been replaced, or a claim: a good one all the same
            if value is not None:
                decode(ItemVector, value, max_bytes=self._settings.kafka.max_message_bytes)
        elif gone := self._intake.hear_vector(
            key,
            value,
            self._collections.targets,
            is_written=known,
            now_ms=now_ms,
            published_ms=max(0, record.timestamp),
        ):
            self._collections.let_go(gone)

    def _hear_release(self, key: bytes | None, value: bytes | None) -> None:
        kind, _, server_id = (key or b"").decode(errors="replace").partition("/")
        if value is not None:
            message = decode(_RELEASE, value, max_bytes=self._settings.kafka.max_message_bytes)
            heard_ms = time.monotonic_ns() // 1_000_000  # the wall clock may jump, and then nobody has fallen silent
            self._releases = rollout.hear(self._releases, message, heard_ms)
            if isinstance(message, BundlePublished | IndexReady):
                self._collections.try_again(message.version)
                self._decide_s = 0.0
        elif kind == SERVER:
            self._releases = rollout.forget_server(self._releases, server_id)
        else:
            raise Refused("empty", "message has no value, and its key is no server's")

    def _refuse(self, topic: str, record: ConsumerRecord, refused: Refused, known: bool) -> None:
        metrics.REJECTED.labels(topic, refused.code).inc()
        log.warning("message refused", topic=topic, code=refused.code, reason=str(refused))
        if known:
            return  # it was reported when it was first read
        place, content = (topic, record.partition, record.offset), (record.key, record.value, record.headers)
        limit = self._settings.kafka.max_message_bytes
        letter = dead_letter(*place, *content, refused=refused, now_ms=_now_ms(), max_bytes=limit)
        self._letters.append((letter.key, encode(letter)))

    # --- the rest of a round -----------------------------------------------------------------------------------------

    def _do_what_is_due(self) -> None:
        now_ms, now_s = _now_ms(), time.monotonic()
        metrics.INDEX_WAITING.set(len(self._rows))
        is_late = self._rows.is_due(now_ms, self._settings.indexer.window_s * 1000, self._settings.indexer.batch)
        if is_late or self._letters:
            self.write()
        self._go_on_building(now_ms)
        if self._releases.rebuild is not None and self._control.caught_up and self._collections.stage is None:
            self._rebuild(self._releases.rebuild)
        if now_s >= self._decide_s and self._control.caught_up and not any(self._control.lags().values()):
            self._decide_s = now_s + DECIDE_S
            self._forget_long_dead()
            for decision in self._collections.decide(self._releases, now_ms):
                log.info("rollout", action=type(decision).__name__.lower(), version=decision.version)
                self._carry_out(decision, now_ms)
        if now_s >= self._report_s:
            self._report_s = now_s + REPORT_S
            self.write()
            self._report(now_ms)

    def _go_on_building(self, now_ms: int) -> None:
        """Do a small part of the work on a new collection."""
        stage = self._collections.stage
        if stage is None:
            return
        try:
            for step in rollout.go_on(stage, caught_up=self._vectors.caught_up):
                self._carry_out(step, now_ms)
                if step is Step.FINISH:
                    self._decide_s = 0.0
        except (BuildFailed, IndexMissing) as error:
            self._collections.give_up(error, now_ms)

    def _carry_out(self, effect: Effect, now_ms: int) -> None:
        match effect:
            case Step.WRITE:
                self.write()
            case Step.REREAD:
                self._retry(self._vectors.rewind, of="kafka")
            case Announce(version):
                ready = self._collections.ready(version, now_ms)
                self._send(topics.RELEASES, [(b"index", encode(ready))])
                reached("indexer: announced")
                self._collections.mark(version, rollout.announced(now_ms))
                reached("indexer: marked announced")
                log.info("index ready", version=version, items=ready.items)
            case _:
                self._collections.carry_out(effect, now_ms)

    def _forget_long_dead(self) -> None:
        """Take servers off `releases` that have died without a word; one that was only silent says so again."""
        for server_id in rollout.long_dead(self._releases, int(self._settings.indexer.server_timeout_s * 1000)):
            self._send(topics.RELEASES, [(f"{SERVER}/{server_id}".encode(), None)])
            self._releases = rollout.forget_server(self._releases, server_id)
            log.info("forgot a server that is silent for long", server_id=server_id)

    def _rebuild(self, asked: RebuildAsked) -> None:
        """Make the live collection anew; nothing is read meanwhile."""
        self.write()
        self._health.detail["rebuilding"] = asked.version
        done = self._rebuilding.answer(asked, self._releases.live)
        self._send(topics.RELEASES, [(b"rebuilt", encode(done))])
        self._releases = rollout.hear(self._releases, done, 0)
        self._health.detail.pop("rebuilding")

    def _send(self, topic: str, records: Iterable[tuple[bytes | None, bytes | None]]) -> None:
        """Returns when all are acknowledged, however long that takes."""
        name, records = self._settings.kafka.topic_prefix + topic, list(records)

        def send() -> None:
            for future in [self._producer.send(name, key=key, value=value) for key, value in records]:
                future.get(timeout=SEND_S)

        self._retry(send, of="kafka")
        metrics.SENT.labels(topic).inc(len(records))

    def _look_again(self) -> None:
        self._collections.look_again()
        self._decide_s = 0.0

    def _report(self, now_ms: int) -> None:
        self.lags.show(self._control.lags() | self._vectors.lags())
        self._collections.keep_marks()
        live = self._releases.live
        detail = {"index_version": live, "rows_waiting": len(self._rows)}
        self._health.detail |= detail | {"release_refused": self._collections.refusal}
        if live not in self._collections.marks:
            return
        metrics.INDEX_ROWS.set(self._retry(lambda: self._index.count(live)))
        metrics.MODEL_INFO.clear()
        metrics.MODEL_INFO.labels(live).set(1)
        bundle = self._releases.bundle
        if bundle is not None and bundle.version == live:
            metrics.MODEL_CREATED.set(bundle.created_ms / 1000)
            metrics.MODEL_AGE.set((now_ms - bundle.created_ms) / 1000)


def create_producer(kafka: Kafka) -> KafkaProducer:
    """A producer that waits for all in-sync replicas and sends one request after the other, so in order.

    Not idempotent: kafka-python's idempotent producer never sends again after a message has expired in an outage."""
    return KafkaProducer(
        **kafka_python_options(kafka),
        client_id="nextwatch-indexer",
        acks="all",
        enable_idempotence=False,
        max_in_flight_requests_per_connection=1,
        max_request_size=8 * kafka.max_message_bytes,
        allow_auto_create_topics=False,
        reconnect_backoff_max_ms=2000,
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
