"""The release that an experiment serves beside the live one (`Experiment.beside`), learnt by the same trainer.

The comparison is fair only where both learn what happens. So while such an experiment runs, a second TrainerWorker
learns the other release in the same way, and its rows and Progress go to `rival-vectors`. What differs is where
examples come from: the group's place in `training-examples` is the live one's, so the topic is read here beside the
group, from the release's own Progress on. Unreadable examples are the live one's to report. None is passed over: where
some that it has yet to learn are deleted, it is refused.

The live one never waits for it. It has a lock, threads, a producer and consumers of its own, no bundle of it is fetched
while one of the live one's is, and it is not begun where there is no memory for it. Whatever goes wrong ends in `run`:
it is said, all that was learnt is dropped, and after a while taken back from the topic, as by a process that starts
again. Who is not the trainer any more drops it at once; when the experiment ends, what waits is published first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import nan
from typing import Any, TypeVar

import structlog
from kafka.errors import KafkaError

from infra.platform import metrics
from infra.platform.memory import free_bytes
from infra.platform.settings import Settings
from models.release.bundle import BundleError, Manifest
from streams import topics
from streams.bundles.source import never, source_of
from streams.kafka.follow import TopicFollower, TopicMissing
from streams.kafka.intake import Raw, raw_of
from streams.kafka.outbox import Outbox, create_producer
from streams.kafka.topic_ids import TopicReplaced
from streams.trainer.control_state import ControlState
from streams.trainer.learner import batches
from streams.trainer.restore import ExamplesGone, require_examples
from streams.trainer.sides import RIVAL
from streams.trainer.worker import TrainerWorker

log = structlog.get_logger(__name__)

TICK_S = 0.1
RETRY_S, MOST_RETRY_S = 5.0, 300.0  # between two tries, twice as long each time that one fails soon
CLOSE_S = 3.0  # longest wait until a client is closed
MEMORY_PARTS = 2  # of what is free, one may be its
NUMBERS_BYTES, ITEM_BYTES = 4, 500  # of a number of a table; of an item what is no vector: id, places, counts, facts

T = TypeVar("T")


class NoRoom(RuntimeError):
    """There is no memory for a second learner; the text says how much it would take, and the way out."""


REFUSED = (BundleError, KafkaError, TopicMissing, TopicReplaced, ExamplesGone, NoRoom)  # what is no bug


class Rival:
    """Follows which release is wanted beside the one that `live` learns, and learns it."""

    def __init__(self, settings: Settings, control: ControlState, live: TrainerWorker) -> None:
        self.refusal = ""  # why the release that is wanted is not learnt
        self._settings, self._control, self._live = settings, control, live
        self._release: RivalRelease | None = None
        self._running: asyncio.Task[None] | None = None
        self._is_stopping = False
        self._failed, self._retry_at, self._wait_s = "", 0.0, 0.0
        self._learnt = "", 0  # the release that is wanted, and how far it has learnt at most, as far as is known
        self._told: dict[Any, str] = {}  # by gauge

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
        """Learn and publish all that waits, as far as that takes no longer, then close all; never raises."""
        self._is_stopping = True
        if self._running is not None:
            _, late = await asyncio.wait([self._running], timeout=within_s)
            for task in late:  # where it stands: what it has not published, the next one learns again
                task.cancel()
                await asyncio.wait([task], timeout=2 * CLOSE_S)

    async def run(self) -> None:
        """Until it is stopped. The outermost loop: whatever an error is, the live release is learnt on."""
        try:
            while not self._is_stopping:
                wanted = self.wanted
                try:
                    await self._round(wanted)
                except Exception as error:
                    await self._fail(wanted, error)
                self._tell(wanted)
                await asyncio.sleep(TICK_S)
            try:
                await self._let_go(is_published=True)
            except Exception as error:
                log.error("what waits of the release beside the live one is not published", error=repr(error))
        finally:  # also of one that is cancelled
            await self._let_go(is_published=False)
            self._tell("")

    async def _round(self, wanted: str) -> None:
        release = self._release
        if release is not None and (release.version != wanted or release.is_dropped):
            await self._let_go(is_published=self._live.version is not None)
        if not wanted:
            self.refusal, self._failed = "", ""
            return
        if wanted == self._failed and asyncio.get_running_loop().time() < self._retry_at:
            return
        if self._release is None:
            if wanted != self._failed:
                self.refusal = ""
            self._release = RivalRelease(self._settings, self._control, wanted, lambda: self._live.is_fetching)
            await self._release.open()
        await self._learn(self._release)
        if self.version:
            self.refusal = ""

    async def _learn(self, release: RivalRelease) -> None:
        """One round of it; that in which it is adopted takes minutes, and ends where it is not wanted any more."""
        learning = asyncio.ensure_future(release.learn())
        try:
            while not (await asyncio.wait([learning], timeout=TICK_S))[0]:
                if not release.worker.version and (self._is_stopping or self.wanted != release.version):
                    release.worker.hear_assignment(False)
                self._tell(release.version)
            await learning
        finally:
            if learning.cancel():
                await asyncio.wait([learning], timeout=CLOSE_S)

    async def _let_go(self, *, is_published: bool) -> None:
        if (release := self._release) is None:
            return
        try:
            if is_published:
                await release.worker.finish()
        finally:
            try:
                await release.close()
            finally:
                self._release = None

    async def _fail(self, wanted: str, error: Exception) -> None:
        """Say it and drop all; the next try is later each time, until one has learnt for a while."""
        now_s = asyncio.get_running_loop().time()
        adopted_s = self._release.adopted_s if self._release is not None else None
        is_soon = self._failed == wanted and (adopted_s is None or now_s - adopted_s < MOST_RETRY_S)
        self._wait_s = min(2 * self._wait_s, MOST_RETRY_S) if is_soon else RETRY_S
        is_refused = isinstance(error, REFUSED)
        self._failed, self.refusal = wanted, str(error) if is_refused else repr(error)
        log.error(
            "the release beside the live one is not learnt for now, trying again",
            version=wanted,
            error=self.refusal,
            wait_s=self._wait_s,
            exc_info=None if is_refused else error,
        )
        await self._let_go(is_published=False)
        self._retry_at = asyncio.get_running_loop().time() + self._wait_s

    def _tell(self, wanted: str) -> None:
        for gauge, version in ((metrics.RIVAL_WANTED, wanted), (metrics.RIVAL_LEARNING, self.version)):
            if self._told.get(gauge, "") != version:
                self._told[gauge] = version
                gauge.clear()
                if version:
                    gauge.labels(version).set(1)
        metrics.RIVAL_LAG.set(self._lag(wanted) if wanted else nan)

    def _lag(self, wanted: str) -> int:
        """How many examples it has yet to learn; while it is not learnt at least as many: those that the live one has
        learnt since it was wanted, or since it was learnt."""
        release, live_to = self._release, self._live.learnt_to or 0
        end = release.end if release is not None else 0
        if release is not None and (learnt_to := release.worker.learnt_to) is not None:
            self._learnt = release.version, learnt_to
        if self._learnt[0] != wanted:
            self._learnt = wanted, live_to
        return max(0, max(end, live_to) - self._learnt[1])


class RivalRelease:
    """One release's learner with its examples and its producer, from `open` until `close`."""

    def __init__(
        self, settings: Settings, control: ControlState, version: str, yields: Callable[[], bool] = never
    ) -> None:
        """Its bundle is not fetched while `yields`."""
        self.version = version
        self.worker = TrainerWorker(settings, control, side=RIVAL, version=version, yields=yields)
        self.adopted_s: float | None = None  # when it was, by the loop's clock
        self.end = 0  # of the topic, as far as is known
        self._settings = settings
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="rival-examples")
        self._producer: Any = None
        self._examples: TopicFollower | None = None
        self._next = 0  # of the topic: handed out below

    @property
    def is_dropped(self) -> bool:
        """True where the worker was told that it is not its turn any more."""
        return self.worker.role == "standby"

    async def open(self) -> None:
        """Raises BundleError, NoRoom, TopicMissing, and the KafkaError of either client."""
        self.worker.hear_assignment(True)
        require_room(await self._read(lambda: source_of(self._settings).manifest(self.version)))
        self._producer = create_producer(self._settings.kafka, "nextwatch-trainer-rival")
        await self._producer.start()
        self.worker.writer.outbox = Outbox(self._producer, self._settings.kafka.topic_prefix)
        self._examples = await self._read(lambda: TopicFollower(self._settings.kafka, topics.TRAINING_EXAMPLES))
        self.end = (await self._read(self._examples.ends))[topics.TRAINING_EXAMPLES, 0]

    async def learn(self) -> None:
        """Adopt the release if it is not, else learn what has come. Raises the bug that an example has shown, and what
        of REFUSED stands in its way."""
        examples = self._opened()
        if self.worker.learner is None:
            await self.worker.adopt_newest()
            if self.worker.learner is not None:
                self.adopted_s = asyncio.get_running_loop().time()
                self._next = self.worker.learner.progress.next_offset
                await self._read(lambda: examples.seek(0, self._next))
            return
        for batch in batches(await self._read(self._poll), self._settings.trainer.batch):
            if (bug := await self.worker.handle(batch)) is not None:
                raise bug
        await self.worker.look()
        await self.worker.tick()

    async def close(self) -> None:
        """Write nothing more, and let go of everything; what fails at that is said, for it is over all the same."""
        for closing in (self.worker.close, self._close_examples, self._stop_producer):
            try:
                await asyncio.wait_for(closing(), CLOSE_S)
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
        """What has come, after a wait of `trainer.wait_s` at most. Raises ExamplesGone where retention was faster."""
        examples = self._opened()
        records = examples.poll(self._settings.trainer.wait_s)
        if records:
            if records[0].offset > self._next:
                require_examples(self._next, examples.firsts_of(0)[topics.TRAINING_EXAMPLES])
            self._next = records[-1].offset + 1
        self.end = max(self.end, self._next, examples.known_ends()[topics.TRAINING_EXAMPLES, 0])
        return [raw_of(record, self._settings.kafka.topic_prefix, record.timestamp) for record in records]

    async def _read(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reader, work)


def require_room(told: Manifest) -> None:
    """Return where the learner of a release fits into what is free: both tables with their accumulators, and what is
    held of each item. Raises NoRoom."""
    takes = told.items * (2 * NUMBERS_BYTES * (told.dim + 1) + ITEM_BYTES)
    if takes > (room := free_bytes() // MEMORY_PARTS):
        raise NoRoom(
            f"{told.version} with {told.items:,} items takes about {takes / 1e9:.1f} GB beside the live release, and "
            f"half of what is free is {room / 1e9:.1f} GB: give the trainer more memory, or `nextwatch experiment stop`"
        )
