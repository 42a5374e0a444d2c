"""What the trainer has learnt, on its way to `item-vectors`: rows, then the progress that speaks of them, while the
next batch is learnt; under a tenure, so that only one trainer's rows count (streams/trainer/writer_epoch.py)."""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress

import structlog
from kafka.errors import KafkaError

from infra.platform import metrics
from infra.platform.fault_points import reached
from infra.platform.settings import Kafka
from streams import topics
from streams.epochs import mark
from streams.kafka.outbox import Outbox, Placed
from streams.messages import ItemVector, encode
from streams.trainer.learner import PROGRESS_KEY, Learner, Learnt
from streams.trainer.writer_epoch import KafkaRowLog, RowLog, WriterEpoch
from streams.write_permit import Fenced

log = structlog.get_logger(__name__)

RETRY_S = 1.0
Keyed = tuple[bytes, ItemVector | None]  # a row by its key, or the tombstone of one


class RowPublisher:
    """`learning`: where the learner runs, and nothing beside it. Most methods raise Fenced."""

    def __init__(self, kafka: Kafka, learning: Executor, open_row_log: Callable[[], RowLog] | None = None) -> None:
        self.outbox: Outbox | None = None
        self._kafka, self._learning = kafka, learning
        self._open_row_log = open_row_log or (lambda: KafkaRowLog(kafka))
        self._row_log: RowLog | None = None
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="tenure")
        self._tenure: WriterEpoch | None = None
        self._publishing: asyncio.Task[None] | None = None  # of the batch before
        self._progress: tuple[bytes, ItemVector] | None = None  # the newest that is published

    @property
    def epoch(self) -> int:
        """What we have claimed, 0 for nothing."""
        return self._tenure.epoch if self._tenure is not None else 0

    @property
    def is_due(self) -> bool:
        """Whether it is time to see what others have written."""
        return self._tenure is not None and self._tenure.is_due

    async def claim(self) -> int:
        """Our epoch, claimed if there is none. Raises TopicMissing, KafkaError."""
        if self._tenure is None:
            with suppress(Fenced):
                await self.published()  # what a tenure that is over has left
            if self._row_log is None:
                self._row_log = await asyncio.get_running_loop().run_in_executor(self._reader, self._open_row_log)
            owner = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
            tenure = WriterEpoch(owner, self._row_log, self._reader)
            self._tenure = tenure
            try:
                await tenure.begin(self._home(PROGRESS_KEY), self._put)
            except BaseException:
                self.end()
                raise
            metrics.TRAINER_EPOCH.set(self.epoch)
            log.info("claimed the item vectors", epoch=self.epoch)
        return self.epoch

    def end(self) -> None:
        """Write nothing more, not even what is on its way."""
        if self._tenure is not None:
            self._tenure.end()
        self._tenure = None
        metrics.TRAINER_EPOCH.set(0)

    def took_back(self, learner: Learner, shadowed: set[bytes]) -> None:
        """A learner has its rows from the topic, where stale records hide those of the keys `shadowed`."""
        self._held().shadowed |= shadowed
        self._progress = None if learner.is_new else learner.progress_row()

    async def send(self, learner: Learner, learnt: Learnt) -> None:
        """Send what a batch has changed, once the one before it is acknowledged. Raises what sending that one met."""
        metrics.DUPLICATES.labels(topics.TRAINING_EXAMPLES).inc(learnt.duplicates)
        await self.published()
        progress = learner.progress_row()
        self._publishing = asyncio.create_task(self._publish_all(self._held(), learner, learnt.rows, progress))

    async def published(self) -> None:
        """Wait until what was learnt is acknowledged, progress included."""
        publishing, self._publishing = self._publishing, None
        if publishing is not None:
            await publishing

    async def mend(self, learner: Learner) -> None:
        """See what others have written, and write again what of ours it hides."""
        await self.published()
        tenure = self._held()
        await self._look(tenure)
        await self._write_over(tenure, learner)

    async def close(self) -> None:
        with suppress(Fenced):
            await self.published()
        self._reader.shutdown()
        if self._row_log is not None:
            self._row_log.close()

    async def _publish_all(
        self, tenure: WriterEpoch, learner: Learner, rows: Iterable[Keyed], progress: tuple[bytes, ItemVector]
    ) -> None:
        if tenure.is_due:  # after a pause, before anything is written
            await self._look(tenure)
        await self._publish(tenure, rows)
        reached("trainer: rows sent")
        await self._publish(tenure, [progress])
        reached("trainer: progress sent")
        self._progress = progress
        await self._look(tenure, at_ends=False)
        await self._write_over(tenure, learner)

    async def _write_over(self, tenure: WriterEpoch, learner: Learner) -> None:
        keys, tenure.shadowed = tenure.shadowed, set()
        if not keys:
            return
        log.warning("a trainer that was replaced has written, its rows are written over", rows=len(keys))
        loop = asyncio.get_running_loop()
        rows = await loop.run_in_executor(self._learning, learner.rows_of, keys - {PROGRESS_KEY})
        await self._publish(tenure, rows)
        if PROGRESS_KEY in keys and self._progress is not None:
            await self._publish(tenure, [self._progress])

    async def _look(self, tenure: WriterEpoch, *, at_ends: bool = True) -> None:
        """See what others have written, as soon as a broker tells."""
        while True:
            try:
                return await tenure.look(at_ends=at_ends)
            except KafkaError as error:
                log.warning("broker unavailable, trying again", topic=topics.ITEM_VECTORS, error=str(error))
                await asyncio.sleep(RETRY_S)

    async def _publish(self, tenure: WriterEpoch, rows: Iterable[Keyed]) -> None:
        tenure.check()
        outbox = self._outbox()
        for key, row in rows:
            if row is None:
                outbox.add(topics.ITEM_VECTORS, self._home(key), key, None, [mark(tenure.epoch)])
            else:
                outbox.add(topics.ITEM_VECTORS, self._home(key), key, encode(row))
        tenure.note((await outbox.flush()).get(topics.ITEM_VECTORS, ()))

    async def _put(self, partitions: Iterable[int], key: bytes, value: bytes) -> list[Placed]:
        """The same record to several partitions; where it stands."""
        outbox = self._outbox()
        for partition in partitions:
            outbox.add(topics.ITEM_VECTORS, partition, key, value)
        return (await outbox.flush()).get(topics.ITEM_VECTORS, [])

    def _home(self, key: bytes) -> int:
        return topics.partition_of(key.decode(), self._kafka.partitions)

    def _held(self) -> WriterEpoch:
        if self._tenure is None:
            raise Fenced("the tenure is over")
        return self._tenure

    def _outbox(self) -> Outbox:
        if self.outbox is None:
            raise RuntimeError("the trainer's agent has not started")
        return self.outbox
