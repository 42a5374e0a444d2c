"""The trainer worker: training examples in, touched item rows out.

`training-examples` has one partition, so whoever owns it is the trainer and every other worker a standby. A trainer
adopts the newest release: it claims `item-vectors` for itself (streams/trainer/writer_epoch.py), loads the bundle,
takes back the rows of that release from the topic, and, when the release is new, first learns what came into
`training-examples` after the bundle's own data ended. A rebalance that leaves the partition where it is changes
nothing, and does not wait for a step or an adoption, which may take minutes. Who finds that another has claimed drops
all that it has learnt and stands by.

The order of effects of a batch, each of 2 and 3 acknowledged by the brokers before the next:

1. rank the examples (before learning: prequential recall), one training step, in an executor;
2. the touched rows, to `item-vectors`, while the next batch is learnt;
3. how far these rows have learnt (`Progress`), to `item-vectors`.

`Progress` alone says where to go on: a trainer that starts learns from there, whether or not Faust has committed more
by then, and what lies between it and the next batch is fetched. So a crash between 2 and 3 learns at most two batches
again; a crash after 3 passes over them; none is skipped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import faust
import structlog
from kafka.errors import KafkaError

from infra.platform import metrics
from infra.platform.health import Health
from infra.platform.settings import Settings
from models.release.bundle import BundleError
from streams import topics
from streams.kafka.faust_app import create_app, follow_readiness, handle_batches, now_ms, raw_topic, report_lag
from streams.kafka.follow import TopicMissing
from streams.kafka.intake import Raw, reject
from streams.kafka.outbox import Outbox, create_producer
from streams.messages import BundlePublished, Refused, TrainingExample
from streams.trainer.control_state import ControlState
from streams.trainer.learner import Learner, Learnt, batches
from streams.trainer.restore import examples_between, is_erased, read_example, restore_release
from streams.trainer.row_publisher import RowPublisher
from streams.trainer.writer_epoch import RowLog
from streams.write_permit import Fenced

log = structlog.get_logger(__name__)

RETRY_S = 5.0


def create_trainer_app(settings: Settings, health: Health) -> faust.App:
    app = create_app(settings, "trainer", has_standby=True, fetch_every_s=settings.trainer.wait_s)
    prefix = settings.kafka.topic_prefix
    control = ControlState(settings)
    worker = TrainerWorker(settings, control)
    follow_readiness(app, health, recovered=lambda: worker.is_current or not app.consumer.assignment())

    @app.on_partitions_assigned.connect  # type: ignore[untyped-decorator]
    async def hear(_: Any, assigned: Any, **__: Any) -> None:
        worker.hear_assignment(bool(assigned))

    @app.task  # type: ignore[untyped-decorator]
    async def tell_role() -> None:
        while not app.should_stop:
            health.detail |= {"role": worker.role, "epoch": worker.writer.epoch}
            await asyncio.sleep(0.1)

    @app.task  # type: ignore[untyped-decorator]
    async def lag() -> None:
        await report_lag(app, prefix)

    @app.task  # type: ignore[untyped-decorator]
    async def adopt_while_idle() -> None:
        while not app.should_stop:
            await asyncio.sleep(0.5)
            if app.consumer.assignment() and worker.writer.outbox is not None:
                await worker.adopt_newest()
                await worker.look()

    @app.agent(raw_topic(app, settings, topics.TRAINING_EXAMPLES), name="trainer")  # type: ignore[untyped-decorator]
    async def trainer(stream: Any) -> None:
        control.start()
        producer = create_producer(settings.kafka, "nextwatch-trainer")
        await producer.start()
        worker.writer.outbox = Outbox(producer, prefix)
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
            control.stop()
            await worker.writer.close()
            await producer.stop()

    return app


class TrainerWorker:
    """The learner in use and what is done with a batch. One lock: a release is adopted between two batches."""

    def __init__(
        self, settings: Settings, control: ControlState, open_row_log: Callable[[], RowLog] | None = None
    ) -> None:
        self.learner: Learner | None = None
        self._settings = settings
        self._control = control
        self._lock = asyncio.Lock()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="learner")
        self.writer = RowPublisher(settings.kafka, self._executor, open_row_log)
        self._is_assigned = False
        self._retry_at = 0.0

    @property
    def is_current(self) -> bool:
        newest = self._control.newest
        return self._control.caught_up.is_set() and (newest is None or self._version == newest.version)

    @property
    def role(self) -> str:
        """`active` for the trainer, `standby` for one that waits for its turn."""
        return "active" if self._is_assigned else "standby"

    @property
    def _version(self) -> str | None:
        return self.learner.version if self.learner is not None else None

    def hear_assignment(self, is_ours: bool) -> None:
        """The group has chosen: whether `training-examples` is ours. If it was ours before, what we know stays."""
        self._is_assigned, self._retry_at = is_ours, 0.0
        if not is_ours:
            self._stand_by()

    async def handle(self, batch: Sequence[Raw]) -> BaseException | None:
        """One batch's way, in the order that the module promises. Returns the bug if there was one."""
        outbox = self.writer.started()
        await self.adopt_newest()
        examples = list(self._read(batch, outbox))  # now it is known who was erased
        async with self._lock:
            bug = None
            try:
                if self.learner is not None and batch:
                    bug = await self._learn_batch(self.learner, batch, examples)
            except Fenced as fenced:
                self._lose(fenced)
            await outbox.flush()
        return bug

    async def adopt_newest(self) -> None:
        """Change to the newest release if there is a newer one than ours, and catch up with the stream; a standby has
        none, also when a batch of the time before is still in its hands. Raises ForgetSecretWrong."""
        if not self._control.caught_up.is_set():
            await asyncio.get_running_loop().run_in_executor(None, self._control.caught_up.wait)
        self._control.check()
        async with self._lock:
            newest = self._control.newest
            loop = asyncio.get_running_loop()
            if newest is None or newest.version == self._version:
                return
            if not self._is_assigned or loop.time() < self._retry_at:
                return
            try:
                await self._adopt(newest)
            except Fenced as fenced:
                self._lose(fenced)
            except (BundleError, KafkaError, TopicMissing) as error:
                log.error("cannot adopt the release, keeping the old one", version=newest.version, error=str(error))
                self._retry_at = loop.time() + RETRY_S

    async def look(self) -> None:
        """See, now and then, that nobody else writes `item-vectors`, and write again what a stale record hides."""
        if not self.writer.is_due:
            return
        async with self._lock:
            try:
                if self.learner is not None:
                    await self.writer.mend(self.learner)
            except Fenced as fenced:
                self._lose(fenced)

    async def _adopt(self, newest: BundlePublished) -> None:
        loop = asyncio.get_running_loop()
        epoch = await self.writer.claim()
        found = await loop.run_in_executor(
            self._executor, restore_release, self._settings, newest.version, self._control.items, epoch
        )
        learner = found.learner
        self.writer.note_restored(learner, found.shadowed)
        if learner.is_new:  # where it begins, before Faust commits what it has learnt: a crash must not skip that
            await self.writer.send(learner, Learnt([], 0))
        await self._catch_up(learner, found.start, found.stop)
        await self.writer.mend(learner)
        self.learner = learner
        metrics.MODEL_INFO.clear()
        metrics.MODEL_INFO.labels(learner.version).set(1)
        metrics.MODEL_CREATED.set(newest.created_ms / 1000)
        log.info("release adopted", version=learner.version, epoch=epoch)

    def _lose(self, fenced: Fenced) -> None:
        """Another trainer writes now. If the group says nothing else for a session, it was one that had only just been
        replaced itself, and we claim again."""
        if self.writer.epoch:
            log.error("another trainer has taken over, standing by", reason=str(fenced), epoch=self.writer.epoch)
            self._retry_at = asyncio.get_running_loop().time() + self._settings.kafka.session_timeout_s
        self._stand_by()

    def _stand_by(self) -> None:
        """Drop what is another trainer's now."""
        if self.learner is not None:
            log.info("standing by", version=self.learner.version)
        self.learner = None
        self.writer.end()
        metrics.MODEL_INFO.clear()

    async def _learn_batch(
        self, learner: Learner, batch: Sequence[Raw], examples: list[tuple[int, TrainingExample]]
    ) -> BaseException | None:
        """Learn what of a batch could be read. Returns the bug if there was one. Raises Fenced."""
        outbox = self.writer.started()
        if 0 < learner.progress.next_offset < batch[0].offset:  # handed out while nobody could learn it
            await self._catch_up(learner, learner.progress.next_offset, batch[0].offset)
        learnt, failed, bug = await self._learn(learner, examples, evaluate=True)
        for raw in batch:  # a bug of ours: its example is set aside, then the process stops loudly
            if raw.offset in failed:
                reject(raw, Refused("bug", repr(failed[raw.offset])), self._settings, outbox, now_ms=now_ms())
        await outbox.flush()
        learner.begin_at(batch[-1].offset + 1)
        if examples:  # the progress passes over what was set aside
            await self.writer.send(learner, learnt)
        if bug is not None:
            await self.writer.published()
        return bug

    async def _catch_up(self, learner: Learner, start: int, stop: int) -> None:
        """Learn the examples of these offsets that are there; those that Faust has yet to hand out included. One that
        shows a bug is passed over: it would be met again at every start."""
        loop = asyncio.get_running_loop()
        examples = examples_between(self._settings.kafka, start, stop, self._control.erased)
        chunks = batches(examples, self._settings.trainer.batch)
        while chunk := await loop.run_in_executor(self._executor, next, chunks, None):
            learnt, failed, _ = await self._learn(learner, chunk, evaluate=False)
            for offset, error in failed.items():
                log.error("an example that shows a bug is passed over", offset=offset, error=repr(error))
                metrics.REJECTED.labels(topics.TRAINING_EXAMPLES, "bug").inc()
            await self.writer.send(learner, learnt)

    async def _learn(
        self, learner: Learner, examples: list[tuple[int, TrainingExample]], *, evaluate: bool
    ) -> tuple[Learnt, dict[int, Exception], Exception | None]:
        """Learn one batch, while the one before it is on its way; where that shows a bug, one by one: what was learnt,
        the errors of those that were not, by offset, and the bug."""
        loop = asyncio.get_running_loop()
        try:
            learnt = await loop.run_in_executor(self._executor, lambda: learner.learn(examples, evaluate=evaluate))
        except Exception as bug:
            return *await loop.run_in_executor(self._executor, learner.learn_singly, examples, bug), bug
        return learnt, {}, None

    def _read(self, batch: Sequence[Raw], outbox: Outbox) -> Iterator[tuple[int, TrainingExample]]:
        metrics.RECEIVED.labels(topics.TRAINING_EXAMPLES).inc(len(batch))
        for raw in batch:
            try:
                example = read_example(raw.value)
                if is_erased(example, self._control.erased):
                    metrics.FORGOTTEN.labels(topics.TRAINING_EXAMPLES).inc()
                else:
                    yield raw.offset, example
            except Refused as refused:
                reject(raw, refused, self._settings, outbox, now_ms=now_ms())
