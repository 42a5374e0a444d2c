"""The batches of an agent, made of the fetches that Faust hands on.

A batch is given out as soon as `most` records are there, else `within_s` after the one before at the earliest: what
comes after a pause is not held up. It takes as much of each partition as of the others, so that none runs ahead of the
others' time. The rest of a fetch waits here. When the group chooses anew, the rest is dropped, and read again by whom
it then belongs to: nothing but the batch in hand holds up a rebalance.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from typing import Any

import faust
from faust.types import TP

from streams.kafka.faust.patches import Batch, Fetched

FETCHES = 1  # read ahead, beside the rest of the one in use and one that waits for room


class Batches:
    """The batches of an agent whose stream reads `channel`, for an app that has FetchingConsumer."""

    def __init__(self, app: faust.App, channel: Any, *, most: int, within_s: float) -> None:
        self._app, self._channel = app, channel
        self._most, self._within_s = most, within_s
        self._rest = Rest()
        self._given_s = -within_s

    async def next(self) -> Batch:
        """Return the next batch, which is to be acknowledged to the app's consumer."""
        while True:
            while not self._rest.count:
                self._take(await self._channel.get())
            await self._fill()
            if not self._is_current(self._rest.generation_id):
                self._rest = Rest()
            else:
                batch = Batch(self._rest.take(self._most), self._rest.generation_id)
                self._app.consumer.begin(batch)
                self._given_s = time.monotonic()
                return batch

    async def _fill(self) -> None:
        """Take what comes until a batch is full, or due."""
        due_s = self._given_s + self._within_s
        while self._rest.count < self._most:
            left_s = due_s - time.monotonic()
            if left_s <= 0 and self._channel.empty():
                return
            try:
                self._take(await asyncio.wait_for(self._channel.get(), max(left_s, 0.001)))
            except TimeoutError:
                return

    def _take(self, event: Any) -> None:
        fetched: Fetched = event.message
        if not self._is_current(fetched.generation_id):
            return
        if fetched.generation_id != self._rest.generation_id:
            self._rest = Rest(fetched.generation_id)
        self._rest.add(fetched.portions)

    def _is_current(self, generation_id: int) -> bool:
        return bool(self._app.flow_control.is_active() and generation_id == self._app.consumer_generation_id)


class Rest:
    """Records that are not given out yet, by partition and in order."""

    def __init__(self, generation_id: int = -1) -> None:
        self.generation_id, self.count = generation_id, 0
        self._portions: dict[TP, deque[Any]] = {}

    def add(self, portions: dict[TP, list[Any]]) -> None:
        for tp, records in portions.items():
            self._portions.setdefault(tp, deque()).extend(records)
            self.count += len(records)

    def take(self, most: int) -> dict[TP, list[Any]]:
        """Return the first `most` records, of each partition as many as of the others as far as they reach."""
        taken: dict[TP, list[Any]] = defaultdict(list)
        while most and self._portions:
            share = max(1, most // len(self._portions))
            for tp, records in list(self._portions.items()):
                count = min(share, len(records), most)
                taken[tp] += [records.popleft() for _ in range(count)]
                most, self.count = most - count, self.count - count
                if not records:
                    del self._portions[tp]
        return {tp: records for tp, records in taken.items() if records}
