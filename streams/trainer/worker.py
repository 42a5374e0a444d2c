"""What the trainer does with its examples: gather, learn, publish.

The order of effects, each of 3 and 4 acknowledged by the brokers before the next:

1. gather examples (streams/trainer/gathered.py), for `trainer.step_s` or until one is of an item without a row;
2. rank them (before learning: prequential recall), one training step, in an executor;
3. the rows that have moved far or waited long, to `item-vectors`, while the next batch is learnt;
4. how far all published rows have learnt (`Progress`), to `item-vectors`.

`Progress` alone says where to go on: a trainer that starts learns from there, whether or not Faust has committed more
by then, and what lies between it and the next batch is fetched. It stays before the first example that is gathered or
is in a waiting row only (streams/trainer/progress.py), so none is skipped; and a row says itself what it has learnt, so
a restart teaches it nothing twice, wherever the crash was. What a crash does lose are the moves of rows as negatives
since they were last published, each below the PUBLISH_MOVE of models/retrieval/incremental.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import structlog
from kafka.errors import KafkaError

from infra.platform.settings import Settings
from infra.platform.tracing import Stage, Tracer, traceparent_in
from models.release.bundle import BundleError
from streams import topics
from streams.bundles.source import FetchedAhead, never, source_of
from streams.kafka.faust_app import now_ms
from streams.kafka.follow import TopicMissing
from streams.kafka.intake import Raw, reject
from streams.kafka.outbox import Outbox
from streams.kafka.topic_ids import TopicReplaced, remember_ids
from streams.messages import Refused, TrainingExample
from streams.trainer.control_state import ControlState
from streams.trainer.gathered import Gathered, Read
from streams.trainer.learner import Learner, Learnt, batches
from streams.trainer.restore import examples_between, is_erased, read_example, restore_release
from streams.trainer.row_publisher import RowPublisher
from streams.trainer.sampling import is_kept, share_kept
from streams.trainer.sides import LIVE, Side
from streams.trainer.writer_epoch import RowLog
from streams.write_permit import Fenced

log = structlog.get_logger(__name__)

RETRY_S = 5.0
EVERYTHING = float("inf")  # later than what any row waits for


class TrainerWorker:
    """The learner in use and what is done with a batch. One lock: a release is adopted between two batches."""

    def __init__(
        self,
        settings: Settings,
        control: ControlState,
        open_row_log: Callable[[], RowLog] | None = None,
        tracer: Tracer | None = None,
        *,
        side: Side = LIVE,
        version: str | None = None,
        yields: Callable[[], bool] = never,
    ) -> None:
        """`version`: the release to learn; None: the newest that is announced. Its bundle is not fetched while
        `yields`."""
        self.learner: Learner | None = None
        self._settings = settings
        self._control = control
        self._side, self._metrics = side, side.metrics
        self._fixed = version
        self._adopting: Learner | None = None  # while it catches up
        self._ahead = FetchedAhead(source_of(settings), yields)
        self.refusal = ""  # why the newest release is not ours yet
        self._lock = asyncio.Lock()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="learner")
        self.writer = RowPublisher(settings.kafka, self._executor, open_row_log, side)
        self._tracer = tracer
        self._gathered = Gathered()
        self._bug: BaseException | None = None  # met while no batch was in hand
        self._is_assigned = False
        self._retry_at = 0.0

    @property
    def is_current(self) -> bool:
        return self._control.caught_up.is_set() and self._wanted in (None, self.version)

    @property
    def role(self) -> str:
        """`active` for the trainer, `standby` for one that waits for its turn."""
        return "active" if self._is_assigned else "standby"

    @property
    def version(self) -> str | None:
        """The release that is learnt, None for none."""
        return self.learner.version if self.learner is not None else None

    @property
    def is_fetching(self) -> bool:
        """True while the bundle of a release to adopt is on its way to this disk."""
        return bool(self._ahead.under_way)

    @property
    def learnt_to(self) -> int | None:
        """The offset of `training-examples` below which all is learnt, None while there is no learner."""
        learner = self.learner or self._adopting
        return learner.progress.next_offset if learner is not None else None

    @property
    def _wanted(self) -> str | None:
        newest = self._control.newest
        return self._fixed or (newest.version if newest is not None else None)

    def hear_assignment(self, is_ours: bool) -> None:
        """The group has chosen: whether `training-examples` is ours. If it was ours before, what we know stays."""
        self._is_assigned, self._retry_at = is_ours, 0.0
        if not is_ours:
            self._stand_by()

    async def handle(self, batch: Sequence[Raw]) -> BaseException | None:
        """One batch's way, in the order that the module promises. Returns the bug if there was one, since the last
        batch."""
        outbox = self.writer.started()
        await self.adopt_newest()
        examples = list(self._read(batch, outbox))
        async with self._lock:
            if self.learner is not None and batch and self._gathered and batch[0].offset > self._gathered.stop:
                await self._learn_gathered(self.learner)  # what lies between is fetched with the next step
            if self.learner is not None and batch:
                self._gathered.add(batch, examples, _now_s())
                await self._learn_if_due(self.learner)
            await outbox.flush()
        bug, self._bug = self._bug, None
        return bug

    async def tick(self) -> None:
        """Learn and publish what has waited long enough, though no batch comes."""
        async with self._lock:
            if self.learner is not None:
                await self._learn_if_due(self.learner)
            if self.learner is not None:
                await self._publish_due(self.learner, _now_s())

    async def finish(self) -> None:
        """Learn and publish all that waits: a clean stop leaves nothing to be learnt again."""
        async with self._lock:
            if self.learner is not None and self._gathered:
                await self._learn_gathered(self.learner)
            if self.learner is not None:
                await self._publish_due(self.learner, EVERYTHING)

    async def close(self) -> None:
        """Write nothing more, and let go of what is learnt and of the topic."""
        self._ahead.stop()
        self._stand_by()
        await self.writer.close()
        self._executor.shutdown(wait=False)

    async def adopt_newest(self) -> None:
        """Change to the release that is wanted if it is not ours, and catch up with the stream; a standby has
        none, also when a batch of the time before is still in its hands. Raises ForgetSecretWrong, and for a release
        that was named what stands in its way; for the newest one `refusal` says that, and it is tried again."""
        if not self._control.caught_up.is_set():
            await asyncio.get_running_loop().run_in_executor(None, self._control.caught_up.wait)
        self._control.check()
        async with self._lock:
            wanted = self._wanted
            loop = asyncio.get_running_loop()
            if wanted in (None, self.version):
                return
            if not self._is_assigned or loop.time() < self._retry_at:
                return
            try:
                if not self._ahead.is_here(wanted):
                    return  # the old one goes on meanwhile
                await self._adopt(wanted)
                self.refusal = ""
            except Fenced as fenced:
                self._lose(fenced)
            except (BundleError, KafkaError, TopicMissing, TopicReplaced) as error:
                if self._fixed:
                    raise
                self.refusal = str(error)
                log.error("cannot adopt the release, keeping the old one", version=wanted, error=str(error))
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

    async def _adopt(self, version: str) -> None:
        try:
            self.learner = await self._restored(version)
        finally:
            self._adopting = None
        self._metrics.MODEL_INFO.clear()
        self._metrics.MODEL_INFO.labels(version).set(1)
        newest = self._control.newest
        if newest is not None and newest.version == version:
            self._metrics.MODEL_CREATED.set(newest.created_ms / 1000)
        log.info("release adopted", topic=self._side.topic, version=version, epoch=self.writer.epoch)

    async def _restored(self, version: str) -> Learner:
        """A release as the topics tell, and what it has yet to learn, learnt. Raises Fenced, BundleError, KafkaError,
        TopicMissing, TopicReplaced."""
        loop = asyncio.get_running_loop()
        epoch = await self.writer.claim()
        found = await loop.run_in_executor(
            self._executor, restore_release, self._settings, version, self._control.items, epoch, self._side
        )
        self._adopting = learner = found.learner
        self.writer.note_restored(learner, found.shadowed)
        # Where it begins, before Faust commits what it has learnt: a crash must not skip that. And servers wait to hear
        # that a release beside the live one is taught for this experiment.
        if learner.is_new or found.is_renewed or self._side is not LIVE:
            await self.writer.send(learner, Learnt([], 0))
        await self._catch_up(learner, found.start, found.stop)
        if found.is_renewed:  # only now: a crash before begins this again
            await self.writer.published()
            await loop.run_in_executor(self._executor, remember_ids, self._settings.kafka, self._side.worker)
        await self.writer.mend(learner)
        return learner

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
        self._gathered.clear()
        self.writer.end()
        self._metrics.MODEL_INFO.clear()

    async def _learn_if_due(self, learner: Learner) -> None:
        """Learn what is gathered if it has waited long enough, fills a step, or holds an item that has no row."""
        gathered, settings = self._gathered, self._settings.trainer
        if gathered and (
            gathered.waited_s(_now_s()) >= settings.step_s
            or len(gathered.examples) >= settings.batch
            or not all(learner.knows(each.example.item_id) for each in gathered.examples)
        ):
            await self._learn_gathered(learner)

    async def _learn_gathered(self, learner: Learner) -> None:
        """Learn all that is gathered; notes the bug if there was one."""
        start = self._gathered.start
        try:
            for group, stop in self._gathered.take(self._settings.trainer.batch):
                self._bug = await self._learn_group(learner, group, start, stop) or self._bug
                start = stop
        except Fenced as fenced:
            self._lose(fenced)

    async def _learn_group(self, learner: Learner, group: list[Read], start: int, stop: int) -> BaseException | None:
        """Learn what of these offsets could be read. Returns the bug if there was one. Raises Fenced."""
        outbox = self.writer.started()
        if 0 < learner.progress.next_offset < start:  # handed out while nobody could learn it
            await self._catch_up(learner, learner.progress.next_offset, start)
        examples = [(each.raw.offset, each.example) for each in group if not self._is_erased(each.example)]
        began_s = time.perf_counter()
        learnt, failed, bug = await self._learn(learner, examples, evaluate=True)
        if self._tracer is not None:
            _trace(self._tracer, group, Stage("step", began_s, time.perf_counter()))
        for raw, _ in group:  # a bug of ours: its example is set aside, then the process stops loudly
            if raw.offset in failed:
                self._set_aside(raw, Refused("bug", repr(failed[raw.offset])), outbox)
        await outbox.flush()
        learner.begin_at(stop)
        if examples:
            await self.writer.send(learner, learnt)
        if bug is not None:  # the progress passes over what was set aside
            await self._publish_due(learner, EVERYTHING)
        return bug

    async def _publish_due(self, learner: Learner, now_s: float) -> None:
        """Send the rows that have waited until `now_s`, and wait for it where that is all of them."""
        try:
            loop = asyncio.get_running_loop()
            learnt = await loop.run_in_executor(self._executor, learner.due, now_s)
            if learnt.rows or now_s == EVERYTHING:
                await self.writer.send(learner, learnt)
            if now_s == EVERYTHING:
                await self.writer.published()
        except Fenced as fenced:
            self._lose(fenced)

    def _is_erased(self, example: TrainingExample) -> bool:
        """Return whether an example is from before its user was erased, and count it."""
        erased = is_erased(example, self._control.erased)
        self._metrics.FORGOTTEN.labels(topics.TRAINING_EXAMPLES).inc(erased)
        return erased

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
                self._metrics.REJECTED.labels(topics.TRAINING_EXAMPLES, "bug").inc()
            await self.writer.send(learner, learnt)

    async def _learn(
        self, learner: Learner, examples: list[tuple[int, TrainingExample]], *, evaluate: bool
    ) -> tuple[Learnt, dict[int, Exception], Exception | None]:
        """Learn one batch, while the one before it is on its way; where that shows a bug, one by one: what was learnt,
        the errors of those that were not, by offset, and the bug."""
        loop = asyncio.get_running_loop()
        now_s = _now_s()
        try:
            learnt = await loop.run_in_executor(
                self._executor, lambda: learner.learn(examples, now_s, evaluate=evaluate)
            )
        except Exception as bug:
            return *await loop.run_in_executor(self._executor, learner.learn_singly, examples, bug, now_s), bug
        return learnt, {}, None

    def _read(self, batch: Sequence[Raw], outbox: Outbox) -> Iterator[Read]:
        """The examples of a batch: for the live release a sample of one that is full and late
        (streams/trainer/sampling.py); the one beside it may lag, which is told."""
        self._metrics.RECEIVED.labels(topics.TRAINING_EXAMPLES).inc(len(batch))
        settings = self._settings.trainer
        age_s = (now_ms() - batch[0].produced_ms) / 1000 if batch else 0.0
        is_full = self._side is LIVE and len(batch) >= settings.batch
        share = share_kept(age_s, settings.sample_after_s, is_full=is_full)
        for raw in batch:
            if not is_kept(raw.partition, raw.offset, share):
                self._metrics.PASSED_OVER.inc()
                continue
            try:
                yield Read(raw, read_example(raw.value))
            except Refused as refused:
                self._set_aside(raw, refused, outbox)

    def _set_aside(self, raw: Raw, refused: Refused, outbox: Outbox) -> None:
        """Put an example among the dead letters, if it is the live release that cannot use it: else one would lie there
        that was learnt, or twice."""
        if self._side is LIVE:
            reject(raw, refused, self._settings, outbox, now_ms=now_ms())
        elif refused.code == "bug":
            log.error("an example that shows a bug is passed over", offset=raw.offset, error=str(refused))


def _trace(tracer: Tracer, group: Sequence[Read], step: Stage) -> None:
    """Tell of a step that traced watches have caused: a part of the first one's trace, with links to the others."""
    found = [traceparent_in(each.raw.headers) for each in group if each.raw.headers]
    traced = [each for each in found if each and tracer.wants(each)]
    if traced:
        tracer.tell("learn", traced[0], [step], {"nextwatch.examples": len(group)}, traced[1:])


def _now_s() -> float:
    """By a clock that does not jump."""
    return asyncio.get_running_loop().time()
