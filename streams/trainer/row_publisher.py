"""The way of what the trainer has learnt to its topic (`item-vectors`): rows, then the progress that speaks of them,
while the next batch is learnt; under a claimed epoch, so that only one trainer's rows count
(streams/trainer/writer_epoch.py)."""

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

from infra.platform.fault_points import reached
from infra.platform.settings import Kafka
from streams import topics
from streams.epochs import mark
from streams.kafka.outbox import Outbox, Placed
from streams.messages import encode
from streams.trainer.learner import Keyed, Learner, Learnt
from streams.trainer.progress import PROGRESS_KEY
from streams.trainer.sides import LIVE, Side
from streams.trainer.writer_epoch import RowLog, WriterEpoch
from streams.write_permit import Fenced

log = structlog.get_logger(__name__)

RETRY_S = 1.0


class RowPublisher:
    """`learning`: where the learner runs, and nothing beside it; `outbox` is there once the trainer's agent has
    started. Most methods raise Fenced."""

    def __init__(
        self,
        kafka: Kafka,
        learning: Executor,
        open_row_log: Callable[[], RowLog] | None = None,
        side: Side = LIVE,
    ) -> None:
        self.outbox: Outbox | None = None
        self._learning = learning
        self._side = side
        self._partitions = 0  # of the topic, which may be fewer than `kafka.partitions`
        self._open_row_log = open_row_log or (lambda: RowLog(kafka, side.topic))
        self._row_log: RowLog | None = None
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="epochs")
        self._claimed: WriterEpoch | None = None
        self._publishing: asyncio.Task[None] | None = None  # of the batch before
        self._progress: Keyed | None = None  # the newest that is published

    @property
    def epoch(self) -> int:
        """The epoch that we have claimed, 0 for none."""
        return self._claimed.epoch if self._claimed is not None else 0

    @property
    def is_due(self) -> bool:
        """True when it is time to see what others have written."""
        return self._claimed is not None and self._claimed.is_due

    async def claim(self) -> int:
        """Return our epoch, claimed if there is none. Raises TopicMissing, KafkaError."""
        if self._claimed is None:
            with suppress(Fenced):
                await self.published()  # what an epoch that is over has left
            if self._row_log is None:
                self._row_log = await asyncio.get_running_loop().run_in_executor(self._reader, self._open_row_log)
            self._partitions = len(await asyncio.get_running_loop().run_in_executor(self._reader, self._row_log.ends))
            owner = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
            self._claimed = epoch = WriterEpoch(owner, self._row_log, self._reader, self._side)
            try:
                await epoch.begin(self._home(PROGRESS_KEY), self._put)
            except BaseException:
                self.end()
                raise
            self._side.metrics.TRAINER_EPOCH.set(self.epoch)
            log.info("claimed the topic of rows", topic=self._side.topic, epoch=self.epoch)
        return self.epoch

    def end(self) -> None:
        """Write nothing more, not even what is on its way."""
        if self._claimed is not None:
            self._claimed.end()
        self._claimed = None
        self._side.metrics.TRAINER_EPOCH.set(0)

    def note_restored(self, learner: Learner, shadowed: set[bytes]) -> None:
        """A learner has its rows from the topic, where stale records hide those of the keys `shadowed`."""
        self._ours().shadowed |= shadowed
        self._progress = None if learner.is_new else learner.progress_row()

    async def send(self, learner: Learner, learnt: Learnt) -> None:
        """Send what is due after a batch, once the one before it is acknowledged. Raises what sending that one met."""
        self._side.metrics.DUPLICATES.labels(topics.TRAINING_EXAMPLES).inc(learnt.duplicates)
        await self.published()
        progress = learner.progress_row()
        self._publishing = asyncio.create_task(self._publish_all(self._ours(), learner, learnt.rows, progress))

    async def published(self) -> None:
        """Wait until what was learnt is acknowledged, progress included."""
        publishing, self._publishing = self._publishing, None
        if publishing is not None:
            await publishing

    async def mend(self, learner: Learner) -> None:
        """See what others have written, and write again what of ours it hides."""
        await self.published()
        epoch = self._ours()
        await self._look(epoch)
        await self._write_over(epoch, learner)

    async def close(self) -> None:
        with suppress(Fenced):
            await self.published()
        self._reader.shutdown()
        if self._row_log is not None:
            self._row_log.close()

    async def _publish_all(self, epoch: WriterEpoch, learner: Learner, rows: Iterable[Keyed], progress: Keyed) -> None:
        if epoch.is_due:  # after a pause, before anything is written
            await self._look(epoch)
        await self._publish(epoch, rows)
        reached("trainer: rows sent")
        await self._publish(epoch, [progress])
        reached("trainer: progress sent")
        self._progress = progress
        await self._look(epoch, at_ends=False)
        await self._write_over(epoch, learner)

    async def _write_over(self, epoch: WriterEpoch, learner: Learner) -> None:
        keys, epoch.shadowed = epoch.shadowed, set()
        if not keys:
            return
        log.warning("a trainer that was replaced has written, its rows are written over", rows=len(keys))
        loop = asyncio.get_running_loop()
        rows = await loop.run_in_executor(self._learning, learner.rows_of, keys - {PROGRESS_KEY})
        await self._publish(epoch, rows)
        if PROGRESS_KEY in keys and self._progress is not None:
            await self._publish(epoch, [self._progress])

    async def _look(self, epoch: WriterEpoch, *, at_ends: bool = True) -> None:
        """See what others have written, as soon as a broker tells."""
        while True:
            try:
                return await epoch.look(at_ends=at_ends)
            except KafkaError as error:
                log.warning("broker unavailable, trying again", topic=self._side.topic, error=str(error))
                await asyncio.sleep(RETRY_S)

    async def _publish(self, epoch: WriterEpoch, rows: Iterable[Keyed]) -> None:
        epoch.check()
        for key, row in rows:
            value, headers = (None, [mark(epoch.epoch)]) if row is None else (encode(row), [])
            self.started().add(self._side.topic, self._home(key), key, value, headers)
        epoch.note(await self._flush())

    async def _put(self, partitions: Iterable[int], key: bytes, value: bytes) -> list[Placed]:
        """The same record to several partitions; where it stands."""
        for partition in partitions:
            self.started().add(self._side.topic, partition, key, value)
        return await self._flush()

    async def _flush(self) -> list[Placed]:
        return (await self.started().flush()).get(self._side.topic, [])

    def _home(self, key: bytes) -> int:
        return topics.partition_of(key.decode(), self._partitions)

    def _ours(self) -> WriterEpoch:
        if self._claimed is None:
            raise Fenced("the epoch is over")
        return self._claimed

    def started(self) -> Outbox:
        """Return the outbox of the trainer's agent, which has started."""
        assert self.outbox is not None
        return self.outbox
