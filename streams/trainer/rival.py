"""The release that an experiment serves beside the live one (`Experiment.beside`), learnt by the same trainer.

The comparison is fair only where both learn what happens. So while such an experiment runs, a second TrainerWorker
learns the other release in the same way, and its rows and Progress go to `rival-vectors`. What differs is where
examples come from: the group's place in `training-examples` is the live one's, so the topic is read here beside the
group, from the release's own Progress on. Unreadable examples are the live one's to report.

The live one never waits for it. It has a lock, threads, a producer and consumers of its own, and whatever goes wrong
ends in `run`: it is said, all that was learnt is dropped, and after a while taken back from the topic, as by a process
that starts again. Who is not the trainer any more drops it at once; when the experiment ends, what waits is published
first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import nan
from typing import Any, TypeVar

import structlog

from infra.platform import metrics
from infra.platform.settings import Settings
from streams import topics
from streams.kafka.follow import TopicFollower
from streams.kafka.intake import Raw, raw_of
from streams.kafka.outbox import Outbox, create_producer
from streams.trainer.control_state import ControlState
from streams.trainer.learner import batches
from streams.trainer.sides import RIVAL
from streams.trainer.worker import TrainerWorker

log = structlog.get_logger(__name__)

TICK_S = 0.1
RETRY_S, MOST_RETRY_S = 5.0, 300.0  # between two tries, twice as long each time that one fails soon

T = TypeVar("T")


class Rival:
    """Follows which release is wanted beside the one that `live` learns, and learns it."""

    def __init__(self, settings: Settings, control: ControlState, live: TrainerWorker) -> None:
        self.refusal = ""  # why the release that is wanted is not learnt
        self._settings, self._control, self._live = settings, control, live
        self._release: RivalRelease | None = None
        self._running: asyncio.Task[None] | None = None
        self._is_stopping = False
        self._failed, self._retry_at, self._wait_s = "", 0.0, 0.0
        self._told = ""

    @property
    def wanted(self) -> str:
        """The release to learn beside the live one, empty for none: also where it is the live one, or is going to be,
        and for who learns no live one, a standby above all."""
        beside, newest = self._control.beside, self._control.newest
        is_live = beside == self._live.version or (newest is not None and beside == newest.version)
        return "" if self._live.version is None or is_live else beside

    @property
    def version(self) -> str:
        """The release that is learnt, empty for none."""
        return (self._release.worker.version or "") if self._release is not None else ""

    def hear_assignment(self, is_ours: bool) -> None:
        """The group has chosen the trainer. Who is none drops all at once, in whatever it is."""
        if not is_ours and self._release is not None:
            self._release.worker.hear_assignment(False)

    def start(self) -> None:
        self._is_stopping = False
        self._running = asyncio.create_task(self.run())

    async def stop(self, within_s: float) -> None:
        """Learn and publish all that waits, as far as that takes no longer; never raises."""
        self._is_stopping = True
        if self._running is not None:
            _, late = await asyncio.wait([self._running], timeout=within_s)
            for task in late:  # where it stands: what it has not published, the next one learns again
                task.cancel()

    async def run(self) -> None:
        """Until it is stopped. The outermost loop: whatever an error is, the live release is learnt on."""
        while not self._is_stopping:
            try:
                await self._round(self.wanted)
            except Exception as error:
                await self._fail(error)
            self._tell()
            await asyncio.sleep(TICK_S)
        try:
            await self._let_go(is_published=True)
        except Exception as error:
            log.error("what waits of the release beside the live one is not published", error=repr(error))
        self._tell()

    async def _round(self, wanted: str) -> None:
        release = self._release
        if release is not None and (release.version != wanted or release.is_dropped):
            await self._let_go(is_published=self._live.version is not None)
        if not wanted:
            self.refusal, self._failed = "", ""
            metrics.RIVAL_LAG.set(nan)
            return
        if wanted == self._failed and asyncio.get_running_loop().time() < self._retry_at:
            return
        if self._release is None:
            self._release = RivalRelease(self._settings, self._control, wanted)
            await self._release.open()
        await self._learn(self._release)
        self.refusal = self._release.worker.refusal

    async def _learn(self, release: RivalRelease) -> None:
        """One round of it; that in which it is adopted takes minutes, and ends where it is not wanted any more."""
        learning = asyncio.ensure_future(release.learn())
        try:
            while not (await asyncio.wait([learning], timeout=TICK_S))[0]:
                if not release.worker.version and (self._is_stopping or self.wanted != release.version):
                    release.worker.hear_assignment(False)
                release.tell_lag()
            await learning
        finally:
            learning.cancel()
        release.tell_lag()

    async def _let_go(self, *, is_published: bool) -> None:
        release, self._release = self._release, None
        if release is not None:
            try:
                if is_published:
                    await release.worker.finish()
            finally:
                await release.close()

    async def _fail(self, error: Exception) -> None:
        now_s = asyncio.get_running_loop().time()
        is_soon = self._failed == self.wanted and now_s - self._retry_at < MOST_RETRY_S
        self._wait_s = min(2 * self._wait_s, MOST_RETRY_S) if is_soon else RETRY_S
        self._failed, self._retry_at, self.refusal = self.wanted, now_s + self._wait_s, repr(error)
        log.error(
            "the release beside the live one is not learnt for now, trying again",
            version=self._failed,
            error=repr(error),
            wait_s=self._wait_s,
            exc_info=error,
        )
        await self._let_go(is_published=False)

    def _tell(self) -> None:
        if self._told != self.version:
            metrics.RIVAL_LEARNING.clear()
            self._told = self.version
            if self._told:
                metrics.RIVAL_LEARNING.labels(self._told).set(1)


class RivalRelease:
    """One release's learner with its examples and its producer, from `open` until `close`."""

    def __init__(self, settings: Settings, control: ControlState, version: str) -> None:
        self.version = version
        self.worker = TrainerWorker(settings, control, side=RIVAL, version=version)
        self._settings = settings
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="rival-examples")
        self._producer: Any = None
        self._examples: TopicFollower | None = None
        self._next = self._end = 0  # of the topic: handed out below the one, known to be there below the other

    @property
    def is_dropped(self) -> bool:
        """True where the worker was told that it is not its turn any more."""
        return self.worker.role == "standby"

    async def open(self) -> None:
        """Raises TopicMissing, and the KafkaError of either client."""
        self.worker.hear_assignment(True)
        self._producer = create_producer(self._settings.kafka, "nextwatch-trainer-rival")
        await self._producer.start()
        self.worker.writer.outbox = Outbox(self._producer, self._settings.kafka.topic_prefix)
        self._examples = await self._read(lambda: TopicFollower(self._settings.kafka, topics.TRAINING_EXAMPLES))
        self._end = (await self._read(self._examples.ends))[topics.TRAINING_EXAMPLES, 0]

    async def learn(self) -> None:
        """Adopt the release if it is not, else learn what has come. Raises the bug that an example has shown."""
        examples = self._opened()
        if self.worker.learner is None:
            await self.worker.adopt_newest()
            if self.worker.learner is not None:
                self._next = self.worker.learner.progress.next_offset
                await self._read(lambda: examples.seek(0, self._next))
            return
        for batch in batches(await self._read(self._poll), self._settings.trainer.batch):
            if (bug := await self.worker.handle(batch)) is not None:
                raise bug
        await self.worker.look()
        await self.worker.tick()

    def tell_lag(self) -> None:
        if (learnt_to := self.worker.learnt_to) is not None:
            metrics.RIVAL_LAG.set(max(0, self._end - learnt_to))

    async def close(self) -> None:
        """Write nothing more, and let go of everything; what fails at that is said, for it is over all the same."""
        for closing in (self.worker.close, self._close_examples, self._stop_producer):
            try:
                await closing()
            except Exception as error:
                log.warning("not closed cleanly", version=self.version, error=repr(error))

    async def _close_examples(self) -> None:
        if self._examples is not None:
            await self._read(self._examples.close)
        self._reader.shutdown(wait=False)

    async def _stop_producer(self) -> None:
        if self._producer is not None:
            await self._producer.stop()

    def _opened(self) -> TopicFollower:
        assert self._examples is not None
        return self._examples

    def _poll(self) -> list[Raw]:
        """What has come, after a wait of `trainer.wait_s` at most."""
        examples = self._opened()
        records = examples.poll(self._settings.trainer.wait_s)
        if records:
            self._next = records[-1].offset + 1
        self._end = max(self._end, self._next + examples.lags()[topics.TRAINING_EXAMPLES, 0])
        return [raw_of(record, self._settings.kafka.topic_prefix, record.timestamp) for record in records]

    async def _read(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reader, work)
