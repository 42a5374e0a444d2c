"""The right to write `item-vectors`, or `rival-vectors`, from the claim of an epoch until another trainer claims a
greater one.

The claim. On the partition of `Progress` first: read to the end, write a claim greater than all that was read, read
back. The log's own order decides between two that start at once: a claim that an equal or greater one stands before has
lost, and a greater one is tried. Then on every other partition, then the rows are restored, then written. That order
matters: progress that counts stands before our claim on its own partition, so the rows that it speaks of were there
before we claimed theirs, and count too; no example is skipped.

A stale row. Who was paused in the middle of a send writes it when it goes on, behind our claim. Nobody counts it, but
it is the newest record of its key, and compaction would take ours, the good one. So we notice and write ours again:
brokers tell where our records stand, and what stands in between, or behind the last of them, was written by somebody
else and is read. That costs nothing while nobody does. A restore finds such keys as well, and until one of the two has
happened, `min.compaction.lag.ms` of the topic keeps the good row.

A greater epoch among what others wrote, claim or row, means that we are the one that was replaced (`Fenced`). Before a
row is written that is looked for whenever the last look is a while ago, so after a pause it is found at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from itertools import takewhile
from typing import TypeVar

from kafka.consumer.fetcher import ConsumerRecord

from infra.platform.settings import Kafka
from streams.epochs import Epochs, claim, epoch_of, is_claim
from streams.kafka.follow import TopicFollower
from streams.kafka.outbox import Placed
from streams.trainer.sides import LIVE, Side
from streams.write_permit import Fenced

LOOK_EVERY_S = 2.0

T = TypeVar("T")
Send = Callable[[Iterable[int], bytes, bytes], Awaitable[Iterable[Placed]]]  # a record to these partitions


class RowLog:
    """A topic of rows as it stands. Blocks; not for two threads. Raises TopicMissing, kafka.errors.KafkaError."""

    def __init__(self, kafka: Kafka, topic: str) -> None:
        self._follower = TopicFollower(kafka, topic, partitions=())
        self.close = self._follower.close

    def ends(self) -> Mapping[int, int]:
        """The offset after the last record, by partition."""
        return {partition: end for (_, partition), end in self._follower.ends().items()}

    def read(self, partition: int, start: int, stop: int) -> Iterator[ConsumerRecord]:
        """Yield what there is from `start` to before `stop`."""
        if start < stop:
            self._follower.assign([partition])
            self._follower.seek(partition, start)
            self._follower.expect_present()
            yield from takewhile(lambda record: record.offset < stop, self._follower.to_end())


class WriterEpoch:
    """One trainer's, for one epoch. `log` is read in `reader`, one call at a time."""

    def __init__(self, owner: str, row_log: RowLog, reader: Executor, side: Side = LIVE) -> None:
        self.epoch = 0
        self.is_over = False
        self.shadowed: set[bytes] = set()  # keys whose newest record is stale: to be written again
        self._owner, self._log, self._reader, self._side = owner, row_log, reader, side
        self._next: dict[int, int] = {}  # by partition: where our next record stands if nobody else writes
        self._strange: list[tuple[int, int, int]] = []  # partition, from, to: written by somebody else, and not read
        self._looked_s = 0.0

    async def begin(self, home: int, send: Send) -> None:
        """Claim an epoch; returns when the claim is acknowledged on all partitions. `home`: that of `Progress`. Raises
        Fenced, KafkaError."""
        epochs, read, placed = Epochs(), 0, Placed(home, 0, 0)
        while not self.epoch:
            ends = await self._in_reader(self._log.ends)
            await self._hear(epochs, home, read, ends[home])
            epoch = epochs.newest + 1
            (placed,) = await self._claim(send, [home], epoch)
            await self._hear(epochs, home, ends[home], placed.offset)
            if epochs.before(home, placed.offset) < epoch:
                self.epoch = epoch
            read = ends[home]
        others = await self._claim(send, [number for number in ends if number != home], self.epoch)
        self._next = {place.partition: place.offset + 1 for place in (placed, *others)}
        self._looked_s = asyncio.get_running_loop().time()

    def end(self) -> None:
        """Nothing more is written by this trainer, whoever is in the middle of it."""
        self.is_over = True

    def check(self) -> None:
        """Raises Fenced when it is over."""
        if self.is_over:
            raise Fenced("the epoch is over")

    def note(self, placed: Iterable[Placed]) -> None:
        """Records of ours are acknowledged."""
        for partition, offset, count in placed:
            if offset < 0:
                continue  # the next look finds them, and that they are ours
            expected = self._next.get(partition, offset)
            if offset > expected:
                self._strange.append((partition, expected, offset))
            self._next[partition] = max(expected, offset + count)

    @property
    def is_due(self) -> bool:
        """Return whether the last look at the ends is a while ago."""
        return asyncio.get_running_loop().time() - self._looked_s >= LOOK_EVERY_S

    async def look(self, *, at_ends: bool = True) -> None:
        """Read what others have written: since our last records too, or (not `at_ends`) between ours alone. Raises
        Fenced."""
        if at_ends:
            began_s = asyncio.get_running_loop().time()
            for partition, end in (await self._in_reader(self._log.ends)).items():
                self.note([Placed(partition, end, 0)])
            self._looked_s = began_s
        while self._strange:
            gap = self._strange[-1]
            for record in await self._read(*gap):
                self._judge(record)
            self._strange.remove(gap)
        self.check()

    def _judge(self, record: ConsumerRecord) -> None:
        epoch = epoch_of(record)
        if epoch == self.epoch or (epoch is None and record.value is None):  # ours, or taken out by hand
            return
        if epoch is not None and epoch > self.epoch:
            self.end()
            raise Fenced(f"another trainer has claimed epoch {epoch}, ours is {self.epoch}")
        if not is_claim(record.key):
            self._side.metrics.STALE_ROWS.inc()
            self.shadowed.add(record.key or b"")

    async def _claim(self, send: Send, partitions: Iterable[int], epoch: int) -> list[Placed]:
        placed = list(await send(partitions, *claim(epoch, self._owner)))
        if any(place.offset < 0 for place in placed):
            raise Fenced("the broker does not tell where our claim stands")
        return placed

    async def _hear(self, epochs: Epochs, partition: int, start: int, stop: int) -> None:
        for record in await self._read(partition, start, stop):
            epochs.take(record)

    async def _read(self, partition: int, start: int, stop: int) -> list[ConsumerRecord]:
        return await self._in_reader(lambda: list(self._log.read(partition, start, stop)))

    async def _in_reader(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reader, work)
