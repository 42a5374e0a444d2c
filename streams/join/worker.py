"""The work of the join worker with a batch, and with time that passes: impressions and watch events become ranking
examples and item statistics.

The order of effects, of a batch of events and of a round of closings alike, each step acknowledged by the brokers
before the next:

1. dead letters, forwarded messages, ranking examples and the rows of the statistics;
2. the changed states (the table's changelog, `join-state`);
3. the offsets (Faust, when the agent asks for the next batch).

A crash after 1 makes the same examples again, under the same identity and revision; of two copies the later one holds
(it knows at least as much). The rows know by their marks what is in them. For that the next owner of a partition begins
where its rows say that the last one had come to: it first closes again what was due then, from the states of that time,
and lets no window of an impression that is still to come end before. A crash after 2 finds the offsets in the states.
A state of which nothing is left but offsets is deleted only when these are committed, else its events could come again.

Wrong impressions are reported and forwarded here, wrong watches by the history worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from infra.platform import metrics
from infra.platform.fault_points import reached
from infra.platform.settings import Kafka, Settings
from streams import topics
from streams.erased_users import NOBODY, ErasedUsers
from streams.erasure.erasure_worker import ErasureWorker
from streams.join.attribution import Rules
from streams.join.metrics import RankingQuality
from streams.join.partition import TOPICS, Partition
from streams.join.rules import Step, advance, apply_impression, apply_watch, due_ms, open_count
from streams.kafka.consumer_progress import ConsumerProgress
from streams.kafka.faust_app import now_ms
from streams.kafka.intake import Raw, read, reject
from streams.kafka.outbox import Outbox
from streams.kafka.tables import load, put
from streams.messages import ImpressionOutline, JoinState, Refused, StatisticsRow, WatchEvent, encode

SHOWN = {topics.IMPRESSIONS: ImpressionOutline}
WATCHED = {topics.WATCH_EVENTS: WatchEvent}
MOST_AT_ONCE = 1000  # users whose states are in hand together
SWEEP_ROWS = 500  # looked at in each round
AGAIN_MS = 5000  # a state that could not be deleted yet is looked at again after this


class JoinWorker:
    """The partitions in hand. One lock: a round of closings stands between two batches."""

    def __init__(
        self,
        settings: Settings,
        states: Any,
        progress: ConsumerProgress,
        read_rows: Callable[[Kafka], dict[int, list[StatisticsRow]]],
    ) -> None:
        self.partitions: dict[int, Partition] = {}
        self.erasure: ErasureWorker | None = None
        self._settings = settings
        self._rules = Rules.of(settings)
        self._states = states
        self._progress = progress
        self._read_rows = read_rows
        self._quality = RankingQuality()
        self._lock = asyncio.Lock()

    @property
    def _erased(self) -> ErasedUsers:
        return NOBODY if self.erasure is None else self.erasure.users

    @property
    def is_current(self) -> bool:
        """True when all is known of the partitions that are ours."""
        return self._progress.assigned() <= self.partitions.keys()

    async def handle(self, batch: Sequence[Raw], outbox: Outbox) -> BaseException | None:
        """One batch's way, in the order that the module promises. Returns the first bug that an event has shown."""
        async with self._lock:
            await self._take_over({raw.partition for raw in batch}, outbox)
            changed, bug = self._apply(batch, outbox, now_ms())
            for number in {raw.partition for raw in batch}:
                partition = self.partitions[number]
                self._add_rows(partition.statistics.publish(pushed_by=partition.pushed_by), outbox)
            await outbox.flush()
            reached("join: examples sent")
            for user_id, state in changed.items():
                self._keep(state, self.partitions[self._place_of(user_id)], outbox)
            await outbox.flush()
            reached("join: states sent")
        return bug

    async def advance_all(self, outbox: Outbox) -> BaseException | None:
        """Move event time on and close what is due, on every partition that is ours."""
        if self.erasure is not None:
            await self.erasure.look(self._lock)
        async with self._lock:
            assigned = self._progress.assigned()
            await self._take_over(assigned, outbox)
            if self.erasure is not None:
                await self.erasure.advance(assigned, outbox)
            for number in sorted(assigned):
                partition = self.partitions[number]
                await self._advance(partition, partition.watermark.advance(self._behind(partition), now_ms()), outbox)
                self._sweep(partition, outbox)
                partition.show(now_ms())
            await outbox.flush()
        return None

    async def give_up(self, revoked: Iterable[int]) -> None:
        async with self._lock:
            for number in revoked:
                if number in self.partitions:
                    self.partitions.pop(number).hide()
            if self.erasure is not None:
                self.erasure.give_up(revoked)

    def drop(self, user_id: str, outbox: Outbox) -> None:
        """Delete an erased user's state: no example is made of what waits in it."""
        partition = self.partitions.get(self._place_of(user_id))
        if partition is not None:
            partition.open -= open_count(load(self._states, JoinState, user_id))
            partition.due_queue.put(user_id, None)
        self._put(user_id, None, outbox)

    async def _take_over(self, numbers: set[int], outbox: Outbox) -> None:
        """Make what is known of partitions that are new to us, and finish what their last owner had begun."""
        if not (missing := numbers - self.partitions.keys()):
            return
        if self.erasure is not None:  # before anything is made of the states
            await self.erasure.take_over(missing, outbox)
        rows = await asyncio.get_running_loop().run_in_executor(None, self._read_rows, self._settings.kafka)
        for number in missing:
            self.partitions[number] = Partition(number, self._settings, rows.get(number, ()), now_ms())
        for user_id in list(self._states):
            partition = self.partitions.get(self._place_of(user_id))
            if partition is not None and partition.number in missing:
                state = load(self._states, JoinState, user_id)
                partition.open += open_count(state)
                partition.due_queue.put(user_id, self._due_ms(state, partition))
                partition.watermark.know(_latest_ms(state))
        for number in missing:
            await self._advance(self.partitions[number], self.partitions[number].closed_ms, outbox)

    def _apply(
        self, batch: Sequence[Raw], outbox: Outbox, now_ms: int
    ) -> tuple[dict[str, JoinState], BaseException | None]:
        """Apply a batch to the states of its users: those that changed, and the first bug. What is to be sent is put
        into `outbox`; the table is only read."""
        changed: dict[str, JoinState] = {}
        bug: BaseException | None = None
        for raw, event in self._read(batch, outbox, now_ms):
            partition = self.partitions[raw.partition]
            try:
                before = changed.get(event.user_id) or load(self._states, JoinState, event.user_id)
                before = self._erased.begin(before)
                step = self._step(before, event, raw, partition)
            except Exception as error:  # a bug of ours: this event is set aside, the others are not harmed
                bug = bug or error
                reject(raw, Refused("bug", repr(error)), self._settings, outbox, now_ms=now_ms)
                continue
            event_ms = event.at_ms if isinstance(event, ImpressionOutline) else event.event_ms
            partition.watermark.observe(raw.topic, event_ms, now_ms)
            self._note(before, step, partition, outbox)
            if step.state is not before:
                changed[event.user_id] = step.state
            if isinstance(event, ImpressionOutline) and step.state.impressions is before.impressions:
                metrics.DUPLICATES.labels(raw.topic).inc()
        for raw in batch:
            handled = self.partitions[raw.partition].handled
            handled[raw.topic] = max(raw.offset + 1, handled.get(raw.topic, 0))
        return changed, bug

    def _read(
        self, batch: Sequence[Raw], outbox: Outbox, now_ms: int
    ) -> Iterator[tuple[Raw, ImpressionOutline | WatchEvent]]:
        """The good messages of a batch, impressions first: then fewer watches have to wait for theirs."""
        yield from read(batch, SHOWN, self._settings, outbox, now_ms=now_ms, erased=self._erased)
        yield from read(batch, WATCHED, self._settings, None, now_ms=now_ms, erased=self._erased)

    def _step(self, before: JoinState, event: ImpressionOutline | WatchEvent, raw: Raw, partition: Partition) -> Step:
        where: Any = {"watermark_ms": partition.watermark.value_ms, "partition": partition.number, "rules": self._rules}
        if isinstance(event, ImpressionOutline):
            partition.pushed_by = max(raw.offset, partition.pushed_by)
            return apply_impression(before, event, raw.value or b"", raw.offset, **where)
        return apply_watch(before, event, raw.offset, **where)

    async def _advance(self, partition: Partition, watermark_ms: int, outbox: Outbox) -> None:
        """Close what is due, some users at a time, in the order that the module promises."""
        reached_ms = -1
        while reached_ms < watermark_ms:
            users, reached_ms = partition.due_queue.take(watermark_ms, MOST_AT_ONCE)
            changed = []
            for user_id in users:
                before = load(self._states, JoinState, user_id)
                step = advance(before, watermark_ms=reached_ms, partition=partition.number, rules=self._rules)
                self._note(before, step, partition, outbox)
                changed.append(step.state)
            self._add_rows(partition.statistics.publish(closed_ms=reached_ms), outbox)
            await outbox.flush()
            reached("join: closings sent")
            for state in changed:
                self._keep(state, partition, outbox)
            await outbox.flush()
            reached("join: closed states sent")

    def _note(self, before: JoinState, step: Step, partition: Partition, outbox: Outbox) -> None:
        """Count what happened, and put its examples into the outbox."""
        partition.open += open_count(step.state) - open_count(before)
        for fate in step.fates:
            metrics.JOINED.labels(fate).inc()
        for example in step.examples:
            outbox.add(topics.RANKING_EXAMPLES, partition.number, before.user_id.encode(), encode(example))
        for tally in step.tallies:
            partition.statistics.count(tally)
            if tally.counted is None:
                self._quality.observe(tally)
                metrics.CLOSED.labels("window" if tally.pushed_by is None else "bound").inc()

    def _keep(self, state: JoinState, partition: Partition, outbox: Outbox) -> None:
        """Write a user's state, or delete it when nothing is left of it that a crash could bring back."""
        user_id, is_stored = state.user_id, state.user_id in self._states
        if due_ms(state, self._rules) is None and (not is_stored or self._is_committed(state, partition.number)):
            partition.due_queue.put(user_id, None)
            if is_stored:
                self._put(user_id, None, outbox)
            return
        partition.due_queue.put(user_id, self._due_ms(state, partition))
        self._put(user_id, state, outbox)

    def _put(self, user_id: str, state: JoinState | None, outbox: Outbox) -> None:
        partitions, compact = self._settings.kafka.partitions, self._settings.join.compact
        put(self._states, topics.JOIN_STATE, user_id, state, outbox, partitions, compact=compact)

    def _due_ms(self, state: JoinState, partition: Partition) -> int:
        due = due_ms(state, self._rules)
        return partition.watermark.value_ms + AGAIN_MS if due is None else due

    def _is_committed(self, state: JoinState, number: int) -> bool:
        shown, watched = (self._progress.committed(topic, number) for topic in TOPICS)
        return state.impression_offset < shown and state.watch_offset < watched

    def _behind(self, partition: Partition) -> set[str]:
        """The topics that are not read to their ends."""

        def is_behind(topic: str) -> bool:
            end = self._progress.end(topic, partition.number)
            handled = max(partition.handled.get(topic, 0), self._progress.committed(topic, partition.number))
            return end is None or end > handled

        return {topic for topic in TOPICS if is_behind(topic)}

    def _sweep(self, partition: Partition, outbox: Outbox) -> None:
        for scope, id_ in partition.statistics.sweep(partition.watermark.value_ms, SWEEP_ROWS):
            outbox.add(topics.ITEM_STATISTICS, 0, partition.statistics.key_of(scope, id_), None)

    def _add_rows(self, rows: Iterable[StatisticsRow], outbox: Outbox) -> None:
        for row in rows:
            statistics = self.partitions[row.partition].statistics
            outbox.add(topics.ITEM_STATISTICS, 0, statistics.key_of(row.scope, row.id), encode(row))

    def _place_of(self, user_id: str) -> int:
        return topics.partition_of(user_id, self._settings.kafka.partitions)


def _latest_ms(state: JoinState) -> int:
    """The greatest event time that a state knows of."""
    shown = (each.at_ms for each in state.impressions)
    return max((*shown, *(watch.event_ms for watch in state.early)), default=0)
