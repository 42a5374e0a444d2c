"""Private parts of Faust that we use.

tests/unit/streams/kafka/test_faust_patches.py tells of each when it is no longer needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import faust
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from faust.types import TP

from infra.platform.third_parties.patching import replace, require_version

require_version("faust-streaming", "0.11.3", "0.16")


def fetch_from_flowing_only() -> None:
    """Let every fetch of this process keep to the partitions that flowed when it began; for apps without tables too,
    whose partitions are paused in a rebalance.

    Why: Faust hands aiokafka its living set of flowing partitions, which is empty for a moment in a rebalance, and to
    aiokafka an empty set means all partitions. What is fetched then is cleared away, and lost.
    Upstream: robinhood/faust#69 (the lock of its last point is gone), faust-streaming/faust#221;
    faust/transport/drivers/aiokafka.py, `_fetch_records`.
    """
    replace(AIOKafkaConsumerThread, "_fetch_records", _fetching_from_flowing)


def _fetching_from_flowing(fetch: Any) -> Any:
    async def fetch_flowing(self: Any, consumer: Any, flowing: Any, **limits: Any) -> Any:
        flowing = frozenset(flowing)
        return await fetch(self, consumer, flowing, **limits) if flowing else {}

    return fetch_flowing


class FlowLastRecovery(Recovery):
    """A recovery that reads tables by `read_ahead` first, and lets the streams' partitions flow at the very end.

    Why the end: Faust lets them flow, then seeks to the committed offsets, then clears the streams' queues. What was
    fetched in between is cleared away and what follows it is handled, so that it is never read again. A worker that
    started with a backlog lost events one time in six; a standby that was given its first partition could.
    Why `read_ahead`: Faust hands a changelog's records over one by one, with several tasks of the event loop for each:
    0.15 ms, most of what a restart took.
    Upstream: faust-streaming/faust#216 and #217 (the order); faust/tables/recovery.py, `on_recovery_completed`,
    `_resume_streams`, `_build_offsets`, `_slurp_changelogs`.
    """

    async def read_ahead(self, consumer: Any, tps: set[TP], offsets: MutableMapping[TP, int]) -> None:
        """Read tables as far as it goes, and move `offsets` there; Faust reads what is left."""

    def note_progress(self, tp: TP, now_s: float) -> None:
        """Say that records of a partition have come: Faust warns of a standstill."""
        self._active_events_received_at[tp] = self._last_flush_at = now_s

    async def _build_offsets(
        self, consumer: Any, tps: set[TP], destination: MutableMapping[TP, int], title: str
    ) -> None:
        await super()._build_offsets(consumer, tps, destination, title)
        if title == "active":
            await self.read_ahead(consumer, tps, destination)

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


class TablesWithRecovery(TableManager):
    """A TableManager that recovers by `make_recovery`.

    Why: an app has a setting for its TableManager and none for its Recovery.
    Upstream: faust/tables/manager.py, `recovery`.
    """

    make_recovery: type[FlowLastRecovery]
    _recovery: Recovery | None

    @property
    def recovery(self) -> Recovery:
        if self._recovery is None:
            self._recovery = self.make_recovery(self.app, self, beacon=self.beacon, loop=self.loop)
        return self._recovery


async def fetch_records(consumer: Any, tps: set[TP], *, wait_s: float, most: int) -> dict[TP, list[Any]]:
    """Return the next records of partitions that do not flow, aiokafka's own; empty when none comes for a while.

    Why: Faust's consumer gives out what flows only, message by message.
    Upstream: faust/transport/drivers/aiokafka.py, `_fetch_records`.
    """
    thread = consumer._thread

    async def fetch() -> Any:
        fetcher = thread._ensure_consumer()._fetcher
        with fetcher._subscriptions.fetch_context():
            waited_for = fetcher.fetched_records(tps, timeout=wait_s, max_records=most)
            try:  # while the group chooses anew aiokafka waits for its choice, and that may wait for us
                return await asyncio.wait_for(waited_for, 2 * wait_s)
            except TimeoutError:
                return {}

    return {TP(*tp): records for tp, records in (await thread.call_thread(fetch)).items()}


def committed_offset(consumer: Any, tp: TP) -> int | None:
    """Return the offset that would be read first after a crash; None before the first commit.

    Why: Faust's own `Consumer` tells it nobody, and asking the brokers would cost a request for each partition.
    Upstream: faust/transport/consumer.py, `_committed_offset`.
    """
    offset: int | None = consumer._committed_offset.get(tp)
    return offset


def read_offset(consumer: Any, tp: TP) -> int | None:
    """Return the offset of the newest record that a stream was given; None before the first. Why and upstream are as
    for `committed_offset`."""
    offset: int | None = consumer._read_offset.get(tp)
    return offset


def coordinator_of(app: faust.App) -> Any:
    """Return aiokafka's group coordinator of the app's consumer.

    Why: only it knows whether the group still counts us in. Upstream: faust/transport/drivers/aiokafka.py,
    `AIOKafkaConsumerThread._consumer`.
    """
    consumer: Any = app.consumer
    return consumer._thread._consumer._coordinator


def partitions_by_key(table: faust.Table) -> dict[Any, int]:
    """Return the dict in which the memory store keeps the partition of each key.

    Why: a key whose partition is not known there stays in memory when its partition is another worker's.
    Upstream: faust/stores/memory.py, `_key_partition`.
    """
    partitions: dict[Any, int] = table.data._key_partition  # type: ignore[attr-defined]
    return partitions
