"""The end of a rebalance (and of the recovery of tables), in an order that loses nothing.

Faust ends it by letting the streams' partitions flow, then seeking them to their committed offsets, then clearing the
streams' queues. What was fetched in between is cleared away and what follows it is handled, so that it is never read
again: the histories are ahead of it. A worker that started with a backlog lost events one time in six; a standby that
was given its first partition could. Here the partitions flow last, and until then no fetch can take their records:
Faust hands aiokafka its living set of flowing partitions, which is empty for a moment, and to aiokafka an empty set
means all partitions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread


class OrderedRecovery(Recovery):
    async def on_recovery_completed(self, generation_id: int = 0) -> None:
        with self._partitions_flow_last():
            await super().on_recovery_completed(generation_id)

    async def _resume_streams(self, generation_id: int = 0) -> None:  # the same, of an app without tables
        with self._partitions_flow_last():
            await super()._resume_streams(generation_id)

    @contextmanager
    def _partitions_flow_last(self) -> Iterator[None]:
        consumer = self.app.consumer
        held: list[Any] = []  # the partitions that are to flow
        consumer.resume_partitions = held.append
        try:
            yield
        finally:
            del consumer.resume_partitions  # the class's own method again
        for partitions in held:
            consumer.resume_partitions(partitions)


class OrderedTables(TableManager):
    """What an app takes as its TableManager, whether or not it has tables."""

    _recovery: Recovery | None

    @property
    def recovery(self) -> Recovery:
        if self._recovery is None:
            self._recovery = OrderedRecovery(self.app, self, beacon=self.beacon, loop=self.loop)
        return self._recovery


def fetch_from_flowing_only() -> None:
    """Let every fetch of this process keep to the partitions that flowed when it began; for apps without tables too,
    whose partitions are paused in a rebalance."""
    fetch = AIOKafkaConsumerThread._fetch_records
    if getattr(fetch, "keeps_to_flowing", False):
        return

    async def fetch_flowing(self: Any, consumer: Any, flowing: Any, **limits: Any) -> Any:
        flowing = frozenset(flowing)
        return await fetch(self, consumer, flowing, **limits) if flowing else {}

    fetch_flowing.keeps_to_flowing = True  # type: ignore[attr-defined]
    AIOKafkaConsumerThread._fetch_records = fetch_flowing
