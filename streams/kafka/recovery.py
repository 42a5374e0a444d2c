"""The recovery of tables, batch by batch as they were fetched, before Faust looks for what is left. Why, and in which
order Faust ends a rebalance so that no event is lost, is said in streams/kafka/faust/patches.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable, MutableMapping
from typing import Any, TypeVar

import structlog
from faust.types import TP

from streams.kafka.faust.patches import FlowLastRecovery, TablesWithRecovery, fetch_records

T = TypeVar("T")
log = structlog.get_logger(__name__)

MOST_RECORDS = 2000  # of a batch
WAIT_S = 0.2
TELL_S = 2.0
ROUND_S = 30.0  # Faust gives the recovery up, without a word, when a step takes `broker_request_timeout`, 90 s


class BatchRecovery(FlowLastRecovery):
    """A recovery that takes over whole batches of records."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._reading = asyncio.Lock()

    async def read_ahead(self, consumer: Any, tps: set[TP], offsets: MutableMapping[TP, int]) -> None:
        async with self._reading:
            await self._read_batches(consumer, tps, offsets)

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
            fetched = await finished(fetch_records(consumer, behind, wait_s=WAIT_S, most=MOST_RECORDS))
            positions = {} if fetched else {tp: await consumer.position(tp) for tp in behind}
            if self.signal_recovery_start.is_set():
                return
            now_s = time.monotonic()
            for tp, records in fetched.items():
                self.tp_to_table[tp].take_over(tp.partition, records)
                offsets[tp] = records[-1].offset
                self.note_progress(tp, now_s)
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


class OrderedTables(TablesWithRecovery):
    """The TableManager of every app, whether or not it has tables."""

    make_recovery = BatchRecovery


async def finished(work: Coroutine[Any, Any, T]) -> T:
    """Return what work comes to that has effects: it is waited for also when we are cancelled, however often. When it
    fails, its error is raised and not our cancellation."""
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
