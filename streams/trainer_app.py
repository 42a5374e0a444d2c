"""The trainer worker: training examples in, touched item rows out.

`training-examples` has one partition, so whoever owns it is the trainer and every other worker a standby. A trainer
adopts the newest release: it loads the bundle, takes back the rows of that release from `item-vectors`, and, when the
release is new, first learns what came into `training-examples` after the bundle's own data ended.

The order of effects of a batch, each of 2 and 3 acknowledged by the brokers before the next:

1. rank the examples (before learning: prequential recall), one training step, in an executor;
2. the touched rows, to `item-vectors`, while the next batch is learnt;
3. how far these rows have learnt (`Progress`), to `item-vectors`.

`Progress` alone says where to go on: a trainer that starts learns from there, whether or not Faust has committed more
by then. So a crash between 2 and 3 learns at most two batches again; a crash after 3 passes over them; none is skipped.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import faust
import structlog
from kafka import KafkaAdminClient, TopicPartition
from kafka.errors import KafkaError

from infra import metrics
from infra.fault_points import reached
from infra.health import Health
from infra.kafka_clients import kafka_python_options
from infra.settings import Kafka, Settings
from models.bundle import BundleError, read_bundle
from streams import topics
from streams.faust_app import create_app, follow_readiness, handle_batches, now_ms, raw_topic, report_lag
from streams.follow import TopicFollower
from streams.intake import Raw, reject
from streams.learner import Learner, Learnt, batches
from streams.messages import (
    BundlePublished,
    Item,
    ItemVector,
    Refused,
    Release,
    TrainingExample,
    decode,
    encode,
)
from streams.outbox import Outbox, create_producer

log = structlog.get_logger(__name__)

RETRY_S = 5.0
_MOST_BYTES = 8_000_000  # of an example: it holds 150 history entries, each within its own limits


def create_trainer_app(settings: Settings, health: Health) -> faust.App:
    app = create_app(settings, "trainer")
    prefix = settings.kafka.topic_prefix
    known = Known(settings.kafka)
    worker = TrainerWorker(settings, known)
    follow_readiness(app, health, recovered=lambda: worker.is_current or not app.consumer.assignment())

    @app.on_partitions_revoked.connect  # type: ignore[untyped-decorator]
    async def forget(*_: Any, **__: Any) -> None:
        worker.learner = None  # its rows belong to another trainer now

    @app.task  # type: ignore[untyped-decorator]
    async def lag() -> None:
        await report_lag(app, prefix)

    @app.task  # type: ignore[untyped-decorator]
    async def adopt_while_idle() -> None:
        while not app.should_stop:
            await asyncio.sleep(0.5)
            if app.consumer.assignment() and worker.outbox is not None:
                await worker.adopt_newest()

    @app.agent(raw_topic(app, settings, topics.TRAINING_EXAMPLES), name="trainer")  # type: ignore[untyped-decorator]
    async def trainer(stream: Any) -> None:
        known.start()
        producer = create_producer(settings.kafka, "nextwatch-trainer")
        await producer.start()
        worker.outbox = Outbox(producer, prefix)
        try:
            await handle_batches(
                app,
                stream,
                worker.handle,
                settings=settings,
                stage="trainer",
                max_=settings.trainer.batch,
                within=settings.trainer.wait_s,
            )
        finally:
            known.stop()
            await worker.published()
            await producer.stop()

    return app


def committed_examples(kafka: Kafka) -> int:
    """The offset of `training-examples` that the trainers' group has committed, 0 when it has none."""
    group = f"{kafka.topic_prefix}nextwatch-trainer"
    place = TopicPartition(kafka.topic_prefix + topics.TRAINING_EXAMPLES, 0)
    admin = KafkaAdminClient(**kafka_python_options(kafka))
    try:
        found = admin.list_group_offsets({group: [place]})[group].get(place)
    finally:
        admin.close()
    return max(0, found.offset) if found is not None else 0


class Known:
    """What the trainer follows beside its examples: the newest bundle and the catalogue, kept by a thread."""

    def __init__(self, kafka: Kafka) -> None:
        self.newest: BundlePublished | None = None
        self.items: dict[str, Item] = {}
        self.caught_up = threading.Event()
        self._kafka = kafka
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="known", daemon=True)

    def start(self) -> None:
        if not self._thread.is_alive():
            self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def _run(self) -> None:
        with TopicFollower(self._kafka, topics.RELEASES, topics.ITEMS) as follower:
            while not self._stopping.is_set():
                for record in follower.poll(0.2):
                    self._take(record)
                if follower.caught_up:
                    self.caught_up.set()

    def _take(self, record: Any) -> None:
        try:
            if record.topic.endswith(topics.ITEMS):
                self._take_item(record)
            elif record.value is not None:
                release: Release = decode(Release, record.value)  # type: ignore[arg-type]
                if isinstance(release, BundlePublished):
                    self.newest = release
        except Refused:
            pass  # the indexer follows the same topics and reports

    def _take_item(self, record: Any) -> None:
        if record.value is None:
            self.items.pop(record.key.decode(errors="replace"), None)
        else:
            item = decode(Item, record.value)
            self.items[item.item_id] = item


class TrainerWorker:
    """The learner in use and what is done with a batch. One lock: a release is adopted between two batches."""

    def __init__(self, settings: Settings, known: Known) -> None:
        self.learner: Learner | None = None
        self.outbox: Outbox | None = None
        self._settings = settings
        self._known = known
        self._lock = asyncio.Lock()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="learner")
        self._retry_at = 0.0
        self._publishing: asyncio.Task[None] | None = None  # of the batch before

    @property
    def is_current(self) -> bool:
        newest = self._known.newest
        return self._known.caught_up.is_set() and (newest is None or self._version == newest.version)

    @property
    def _version(self) -> str | None:
        return self.learner.version if self.learner is not None else None

    async def handle(self, batch: Sequence[Raw]) -> BaseException | None:
        """One batch's way, in the order that the module promises. Returns the bug if there was one."""
        outbox = self._outbox()
        examples = list(self._read(batch, outbox))
        await self.adopt_newest()
        async with self._lock:
            bug = None
            if self.learner is not None and examples:
                try:
                    learnt = await self._learn(self.learner, examples, evaluate=True)
                except Exception as error:  # the batch is set aside whole, then the process stops loudly
                    bug, learnt = error, Learnt([], 0)
                    for raw in batch:
                        reject(raw, Refused("bug", repr(bug)), self._settings, outbox, now_ms=now_ms())
            await outbox.flush()
            if self.learner is not None and examples:  # its progress passes over a batch that was set aside
                await self._send(self.learner, learnt)
            if bug is not None:
                await self.published()
        return bug

    async def adopt_newest(self) -> None:
        """Change to the newest release if there is a newer one than ours, and catch up with the stream."""
        if not self._known.caught_up.is_set():
            await asyncio.get_running_loop().run_in_executor(None, self._known.caught_up.wait)
        async with self._lock:
            newest = self._known.newest
            loop = asyncio.get_running_loop()
            if newest is None or newest.version == self._version or loop.time() < self._retry_at:
                return
            try:
                learner, start = await loop.run_in_executor(self._executor, self._load, newest.version)
            except (BundleError, KafkaError) as error:
                log.error("cannot adopt the release, keeping the old one", version=newest.version, error=str(error))
                self._retry_at = loop.time() + RETRY_S
                return
            await self._catch_up(learner, *start)
            await self.published()
            self.learner = learner
            metrics.MODEL_INFO.clear()
            metrics.MODEL_INFO.labels(learner.version).set(1)
            metrics.MODEL_CREATED.set(newest.created_ms / 1000)
            log.info("release adopted", version=learner.version)

    def _load(self, version: str) -> tuple[Learner, tuple[int, int]]:
        """The learner of a release with its published rows, and from where to where it catches up.

        A new release has what came after its own data to learn, to the end of the topic. Another one goes on from its
        progress; what lies between that and the committed offset is not delivered again, so it is fetched."""
        bundle = read_bundle(self._settings.bundles_dir / version)
        learner = Learner(bundle, self._known.items, self._settings.trainer, self._settings.model.seed)
        with TopicFollower(self._settings.kafka, topics.ITEM_VECTORS) as follower:
            while not follower.caught_up:
                for record in follower.poll(0.5):
                    learner.restore(record.key, None if record.value is None else decode(ItemVector, record.value))
        if not learner.is_new:
            return learner, (learner.progress.next_offset, committed_examples(self._settings.kafka))
        start = bundle.manifest.offsets.get(f"{topics.TRAINING_EXAMPLES}/0")
        return learner, (0, 0) if start is None else (start, sys.maxsize)

    async def _catch_up(self, learner: Learner, start: int, stop: int) -> None:
        """Learn the examples of these offsets that are there; those that Faust has yet to hand out included."""
        loop = asyncio.get_running_loop()
        chunks = batches(self._between(start, stop), self._settings.trainer.batch)
        while chunk := await loop.run_in_executor(self._executor, next, chunks, None):
            await self._send(learner, await self._learn(learner, chunk, evaluate=False))

    def _between(self, start: int, stop: int) -> Iterator[tuple[int, TrainingExample]]:
        if start >= stop:
            return
        with TopicFollower(self._settings.kafka, topics.TRAINING_EXAMPLES) as follower:
            follower.seek(0, start)
            while not follower.caught_up:
                for record in follower.poll(0.5):
                    if record.offset >= stop:
                        return
                    with suppress(Refused):  # reported when it first came
                        yield record.offset, decode(TrainingExample, record.value, max_bytes=_MOST_BYTES)

    async def _learn(self, learner: Learner, examples: list[tuple[int, TrainingExample]], *, evaluate: bool) -> Learnt:
        """Learn one batch, while the one before it is on its way."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: learner.learn(examples, evaluate=evaluate))

    async def _send(self, learner: Learner, learnt: Learnt) -> None:
        """Send what a batch has changed, once the one before it is acknowledged. Raises what sending that one met."""
        metrics.DUPLICATES.labels(topics.TRAINING_EXAMPLES).inc(learnt.duplicates)
        await self.published()
        self._publishing = asyncio.create_task(self._publish_all(learnt.rows, learner.progress_row()))

    async def published(self) -> None:
        """Wait until what was learnt is acknowledged, progress included."""
        publishing, self._publishing = self._publishing, None
        if publishing is not None:
            await publishing

    async def _publish_all(
        self, rows: Iterable[tuple[bytes, ItemVector | None]], progress: tuple[bytes, ItemVector]
    ) -> None:
        await self._publish(rows)
        reached("trainer: rows sent")
        await self._publish([progress])
        reached("trainer: progress sent")

    async def _publish(self, rows: Iterable[tuple[bytes, ItemVector | None]]) -> None:
        outbox = self._outbox()
        for key, row in rows:
            place = topics.partition_of(key.decode(), self._settings.kafka.partitions)
            outbox.add(topics.ITEM_VECTORS, place, key, None if row is None else encode(row))
        await outbox.flush()

    def _read(self, batch: Sequence[Raw], outbox: Outbox) -> Iterator[tuple[int, TrainingExample]]:
        metrics.RECEIVED.labels(topics.TRAINING_EXAMPLES).inc(len(batch))
        for raw in batch:
            try:
                yield raw.offset, decode(TrainingExample, raw.value, max_bytes=_MOST_BYTES)
            except Refused as refused:
                reject(raw, refused, self._settings, outbox, now_ms=now_ms())

    def _outbox(self) -> Outbox:
        if self.outbox is None:
            raise RuntimeError("the trainer's agent has not started")
        return self.outbox
