"""`item-vectors` in memory: several partitions with offsets, compacted when a test says so. A model of the topic for
tests of who may write it; that Kafka behaves so is shown by the system tests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from streams import topics
from streams.kafka.outbox import Placed


class Kept(NamedTuple):
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


class MemoryLog:
    """A streams.trainer.writer_epoch.RowLog, and the outbox that writes into it."""

    def __init__(self, partitions: int) -> None:
        self.partitions: list[list[Kept]] = [[] for _ in range(partitions)]
        self._ends = [0] * partitions
        self._waiting: list[Kept] = []

    def append(self, partition: int, key: bytes, value: bytes | None, headers: Iterable[tuple[str, bytes]] = ()) -> int:
        offset = self._ends[partition]
        self.partitions[partition].append(Kept(partition, offset, key, value, tuple(headers)))
        self._ends[partition] += 1
        return offset

    def compact(self, partition: int, before: int) -> None:
        """Keep the newest of each key among the records before an offset, and where each of them stands."""
        records = self.partitions[partition]
        newest = {record.key: record.offset for record in records if record.offset < before}
        self.partitions[partition] = [r for r in records if r.offset >= before or newest[r.key] == r.offset]

    def __iter__(self) -> Iterator[Kept]:
        for records in self.partitions:
            yield from records

    # --- streams.trainer.writer_epoch.RowLog

    def ends(self) -> Mapping[int, int]:
        return dict(enumerate(self._ends))

    def read(self, partition: int, start: int, stop: int) -> Iterator[Kept]:
        return (record for record in list(self.partitions[partition]) if start <= record.offset < stop)

    def close(self) -> None:
        pass

    # --- streams.kafka.outbox.Outbox

    def add(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> None:
        assert topic == topics.ITEM_VECTORS
        self._waiting.append(Kept(partition, -1, key, value, tuple(headers)))

    async def flush(self) -> dict[str, list[Placed]]:
        waiting, self._waiting = self._waiting, []
        placed = [Placed(each.partition, self.append(*each[:1], *each[2:]), 1) for each in waiting]  # type: ignore[arg-type]
        return {topics.ITEM_VECTORS: placed}
