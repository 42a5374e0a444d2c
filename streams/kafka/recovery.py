"""The recovery of tables, batch by batch, and the end of a rebalance, in an order that loses nothing.

Faust hands a changelog's records over one by one, with several tasks of the event loop for each: 0.15 ms, most of what
a restart took. Here they are taken over in the batches in which they were fetched, before Faust looks for what is left.

Faust ends a rebalance by letting the streams' partitions flow, then seeking them to their committed offsets, then
clearing the streams' queues. What was fetched in between is cleared away and what follows it is handled, so that it is
never read again: the histories are ahead of it. A worker that started with a backlog lost events one time in six; a
standby that was given its first partition could. Here the partitions flow last, and until then no fetch can take their
records: Faust hands aiokafka its living set of flowing partitions, which is empty for a moment, and to aiokafka an
empty set means all partitions.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, TypeVar

import structlog
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from faust.types import TP

T = TypeVar("T")
log = structlog.get_logger(__name__)

MOST_RECORDS = 2000  # of a batch
WAIT_S = 0.2
TELL_S = 2.0
ROUND_S = 30.0  # Faust gives the recovery up, without a word, when a step takes `broker_request_timeout`, 90 s


class OrderedRecovery(Recovery):
    """What OrderedTables recovers by."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._reading = asyncio.Lock()

    async def _build_offsets(
        self, consumer: Any, tps: set[TP], destination: MutableMapping[TP, int], title: str
    ) -> None:
        """Faust asks from where it is to read: from behind what is read here."""
        await super()._build_offsets(consumer, tps, destination, title)
        if title == "active":
            async with self._reading:
                await self._read_batches(consumer, tps, destination)

    async def _read_batches(self, consumer: Any, tps: Iterable[TP], offsets: MutableMapping[TP, int]) -> None:
        """Take over the records from behind `offsets` to the highwaters. `offsets` are at each time those of the last
        records taken over, so this can end at any time; when another rebalance has begun it touches nothing more."""
        behind = {tp for tp in tps if offsets[tp] < self.active_highwaters[tp]}
        if not behind:
            return
        await consumer.seek_wait({tp: offsets[tp] + 1 for tp in behind})
        began_s = told_s = time.monotonic()
        while behind:
            # A fetch that went on alone would take records from the next reader.
            fetched = await finished(fetch_records(consumer, behind))
            positions = {} if fetched else {tp: await consumer.position(tp) for tp in behind}
            if self.signal_recovery_start.is_set():
                return
            now_s = time.monotonic()
            for tp, records in fetched.items():
                self.tp_to_table[tp].take_over(tp.partition, records)
                offsets[tp] = records[-1].offset
                self._active_events_received_at[tp] = self._last_flush_at = now_s  # Faust warns of a standstill
            for tp, position in positions.items():  # what was last may be gone, or no record of ours
                offsets[tp] = max(offsets[tp], position - 1)
            behind = {tp for tp in behind if offsets[tp] < self.active_highwaters[tp]}
            if behind and now_s - told_s > TELL_S:
                told_s = now_s
                left = sum(self.active_highwaters[tp] - offsets[tp] for tp in behind)
                log.info("recovering states", offsets_to_read=left)
            if behind and now_s - began_s > ROUND_S:
                self.signal_recovery_start.set()  # begin anew, from where we are
                return

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


async def fetch_records(consumer: Any, tps: set[TP]) -> dict[TP, list[Any]]:
    """The next records of partitions that do not flow, aiokafka's own; empty when none comes for a while."""
    thread = consumer._thread

    async def fetch() -> Any:
        fetcher = thread._ensure_consumer()._fetcher
        with fetcher._subscriptions.fetch_context():
            waited_for = fetcher.fetched_records(tps, timeout=WAIT_S, max_records=MOST_RECORDS)
            try:  # while the group chooses anew aiokafka waits for its choice, and that may wait for us
                return await asyncio.wait_for(waited_for, 2 * WAIT_S)
            except TimeoutError:
                return {}

    return {TP(*tp): records for tp, records in (await thread.call_thread(fetch)).items()}


async def finished(work: Coroutine[Any, Any, T]) -> T:
    """What work comes to that has effects: it is waited for also when we are cancelled, however often; when it fails
    its error is raised and not our cancellation."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    result = task.result()
    if cancelled is not None:
        raise cancelled
    return result


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
