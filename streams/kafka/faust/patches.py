"""Private parts of Faust that we use.

tests/unit/streams/kafka/test_faust_patches.py tells of each when it is no longer needed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import faust
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer
from faust.types import TP
from faust.types.tuples import ConsumerMessage
from mode.utils.futures import notify

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


class Fetched(ConsumerMessage):
    """All records that one fetch has brought of the streams, by partition; as a message it stands at the last record of
    one of them."""

    __slots__ = ("portions",)

    def __init__(self, portions: dict[TP, list[Any]], generation_id: int) -> None:
        tp, records = next(iter(portions.items()))
        last: Any = records[-1]
        super().__init__(*tp, last.offset, last.timestamp, 0, None, None, b"", None, tp=tp, generation_id=generation_id)
        self.portions = portions


class Batch:
    """Records that an agent handles together, in order within each partition. A rebalance waits until it is
    acknowledged. `ends`: the last offset of each partition."""

    def __init__(self, portions: dict[TP, list[Any]], generation_id: int) -> None:
        self.records = [record for records in portions.values() for record in records]
        self.ends = {tp: records[-1].offset for tp, records in portions.items()}
        self.generation_id = generation_id
        self.acked, self.refcount = False, 1  # what Faust asks of a message that it waits for


class FetchingConsumer(Consumer):
    """A consumer that hands on whole fetches, and commits as far as batches were acknowledged.

    Why: Faust hands over message by message, with four tasks of the event loop for each, a message and an event, and a
    list of all the offsets that were acknowledged: .1 ms of CPU at full speed, .7 when few messages come. One agent
    reads all topics of an app and handles each partition in order, so the newest offset of each says it all; what
    compaction or a transaction has left out needs no account either.
    Upstream: faust-streaming/faust#313 (throughput); faust/transport/consumer.py, `getmany`, `_drain_messages`, `ack`,
    `_new_offset`.
    """

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Any:
        fetched = await super()._getmany(active_partitions, timeout)
        return {TP(*tp): records if self._is_changelog_tp(tp) else [records] for tp, records in fetched.items()}

    def _to_message(self, tp: TP, record: Any) -> Any:
        return record if isinstance(record, list) else super()._to_message(tp, record)

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Any]]:
        """Yield what the next fetch brings as one message; messages of tables as they are."""
        brought = [each async for each in super().getmany(timeout)]
        portions = {tp: self._not_read(tp, records) for tp, records in brought if isinstance(records, list)}
        for tp, message in brought:
            if tp not in portions:
                yield tp, message
        portions = {tp: records for tp, records in portions.items() if records}
        if portions:
            fetched = Fetched(portions, self.app.consumer_generation_id)
            yield fetched.tp, fetched
            for tp, records in portions.items():
                self._read_offset[tp] = records[-1].offset

    def _not_read(self, tp: TP, records: list[Any]) -> list[Any]:
        """Return the records that were not handed on before."""
        read = self._read_offset[tp]
        return records if read is None or records[0].offset >= read else [r for r in records if r.offset >= read]

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Nothing to note: what was acknowledged is told by its end."""

    def on_buffer_full(self, tp: TP) -> None:
        """Nothing to pause: who puts a fetch into a full queue waits. Faust would look again after a second."""

    def begin(self, batch: Batch) -> None:
        """Have rebalances wait for a batch."""
        self._unacked_messages.add(batch)  # type: ignore[arg-type]
        self.app.monitor.stream_inbound_time.update(dict.fromkeys(batch.ends, time.monotonic()))

    def acknowledge(self, batch: Batch) -> None:
        """Let the offsets of a batch be committed, unless the group has chosen anew since: then its records are read
        again, here or elsewhere."""
        batch.acked = True
        self._unacked_messages.discard(batch)  # type: ignore[arg-type]
        if batch.generation_id == self.app.consumer_generation_id:
            for tp, offset in batch.ends.items():
                self._acked[tp] = [offset]
        notify(self._waiting_for_ack)

    def _new_offset(self, tp: TP) -> int | None:
        acked = self._acked[tp]
        return acked[-1] + 1 if acked else None


def hand_on_fetches(app: faust.App) -> None:
    """Let the app's consumer be a FetchingConsumer; before it is made."""
    app.transport.Consumer = FetchingConsumer


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
