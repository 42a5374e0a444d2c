"""Whose rows count: however trainers' claims and rows interleave, whoever reads when, and whatever compaction takes,
everybody ends with the rows of the newest owner."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streams.epochs import CLAIM, HEADER, Epochs, claim, epoch_of, is_claim, mark
from streams.kafka.outbox import Placed
from streams.messages import ItemVector, encode
from streams.trainer.writer_epoch import WriterEpoch
from streams.write_permit import Fenced
from tests.unit.streams.memory_log import Kept, MemoryLog

LOOPS = threading.local()
PARTITIONS, HOME = 3, 1
PROGRESS = b""
KEYS = [b"a", b"b", b"c", b"d"]
BATCH = st.sets(st.sampled_from(KEYS), min_size=1)
PLACES = {PROGRESS: HOME} | {key: number % PARTITIONS for number, key in enumerate(KEYS)}


def row(epoch: int, step: int = 0) -> bytes:
    return encode(ItemVector("v", step, b"", b"", 0, epoch=epoch))


def record(partition: int, offset: int, epoch: int) -> Kept:
    return Kept(partition, offset, b"a", row(epoch))


def test_what_stands_behind_a_greater_epoch_does_not_count_and_what_stands_before_it_does():
    epochs = Epochs()
    assert epochs.take(record(0, 4, 1))
    assert not epochs.take(Kept(0, 5, *claim(2, "me"))), "a claim is no row"
    assert not epochs.take(record(0, 6, 1)), "written by who was replaced"
    assert epochs.take(record(0, 7, 2))
    assert epochs.take(record(1, 9, 1)), "the claim has not come yet in this partition"
    assert epochs.newest == 2


def test_a_partition_that_is_read_again_gives_the_same_answers():
    epochs = Epochs()
    records = [record(0, offset, epoch) for offset, epoch in ((0, 0), (3, 1), (4, 0), (8, 2), (9, 1), (12, 3), (13, 2))]
    first = [epochs.take(each) for each in records]
    assert first == [True, True, False, True, False, True, False]
    assert [epochs.take(each) for each in records] == first
    assert [epochs.take(each) for each in reversed(records)] == first[::-1], "in whatever order"


def test_a_tombstone_says_its_epoch_in_a_header_and_one_that_does_not_was_written_by_hand():
    epochs = Epochs()
    epochs.hear(0, 1, 2)
    assert not epochs.take(Kept(0, 2, b"a", None, (mark(1),)))
    assert epochs.take(Kept(0, 3, b"a", None, (mark(2),)))
    assert epochs.take(Kept(0, 4, b"a", None))
    assert epochs.take(Kept(0, 4, b"a", None, ((HEADER, b"junk"),)))


def test_rows_from_before_there_were_epochs_are_of_epoch_0():
    old = msgspec.msgpack.encode(["v", 1, b"", b"", 5])
    assert epoch_of(Kept(0, 0, b"a", old)) == 0 and Epochs().take(Kept(0, 0, b"a", old))
    assert msgspec.msgpack.decode(row(3), type=ItemVector).epoch == 3


JUNK_OF_EPOCH_9 = msgspec.msgpack.encode(["v", "no step", b"", b"", 5, b"", 9])


@pytest.mark.parametrize(
    "junk", [b"", b"\xc1", b"{}", msgspec.msgpack.encode(["v", 1, b"", b"", 5, b"", 2**64 - 1]), JUNK_OF_EPOCH_9]
)
def test_what_cannot_be_read_is_its_readers_to_report_and_raises_nothing(junk: bytes):
    epochs = Epochs()
    assert epochs.take(Kept(0, 0, b"a", junk)) and epochs.newest == 0


def test_no_items_id_looks_like_a_claim():
    assert is_claim(claim(1, "me")[0]) and not is_claim(None) and not is_claim(b"")
    with pytest.raises(UnicodeDecodeError):
        CLAIM.decode()


class Inline(Executor):
    """Does its work at once."""

    def submit(self, work: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


def run(work: Coroutine[Any, Any, None]) -> None:
    """In a loop that is kept: hundreds of new ones take seconds."""
    if not hasattr(LOOPS, "loop"):
        LOOPS.loop = asyncio.new_event_loop()
    LOOPS.loop.run_until_complete(work)


def sender(log: MemoryLog, before: Any = lambda: None) -> Any:
    """Writes records at once; `before` each of them something else may happen."""

    async def send(partitions: Iterable[int], key: bytes, value: bytes) -> list[Placed]:
        placed = []
        for partition in partitions:
            before()
            placed.append(Placed(partition, log.append(partition, key, value), 1))
        return placed

    return send


def begun(log: MemoryLog, owner: str, before: Any = lambda: None) -> WriterEpoch:
    claimed = WriterEpoch(owner, log, Inline())
    run(claimed.begin(HOME, sender(log, before)))
    return claimed


def test_of_two_that_claim_at_once_the_later_one_has_the_greater_epoch():
    log, rivals = MemoryLog(PARTITIONS), list[WriterEpoch]()

    def a_rival_is_faster() -> None:
        if not rivals:
            with ThreadPoolExecutor(1) as apart:  # where no loop is running
                rivals.append(apart.submit(begun, log, "rival").result())

    late = begun(log, "late", a_rival_is_faster)
    assert (rivals[0].epoch, late.epoch) == (1, 2)
    with pytest.raises(Fenced, match="epoch 2, ours is 1"):
        run(rivals[0].look())
    run(late.look())


def test_a_broker_that_does_not_tell_where_a_claim_stands_gives_none():
    async def send(partitions: Iterable[int], key: bytes, value: bytes) -> list[Placed]:
        return [Placed(partition, -1, 1) for partition in partitions]

    with pytest.raises(Fenced, match="does not tell"):
        run(WriterEpoch("me", MemoryLog(PARTITIONS), Inline()).begin(HOME, send))


def test_nothing_is_read_while_nobody_else_writes():
    log = MemoryLog(PARTITIONS)
    claimed = begun(log, "me")
    for _ in range(5):
        claimed.note([Placed(0, log.append(0, b"a", row(1)), 1)])
    log.read = None  # type: ignore[assignment]
    run(claimed.look())


def test_junk_that_says_a_greater_epoch_ends_no_epoch():
    log = MemoryLog(PARTITIONS)
    claimed = begun(log, "me")
    log.append(0, b"a", JUNK_OF_EPOCH_9)
    run(claimed.look())
    assert claimed.shadowed == {b"a"}, "what it hides is written again"
    log.append(0, b"a", row(9))
    with pytest.raises(Fenced, match="epoch 9"):
        run(claimed.look())


def test_an_epoch_that_is_over_writes_nothing_more():
    claimed = begun(MemoryLog(PARTITIONS), "me")
    claimed.end()
    with pytest.raises(Fenced):
        claimed.check()
    with pytest.raises(Fenced):
        run(claimed.look())


class TrainerModel:
    """Writes rows of batch 1, 2, ... and after them its progress, one record at a time, whether or not it still may."""

    def __init__(self, log: MemoryLog, name: str, previous: TrainerModel | None, moments: Iterable[int]) -> None:
        moments = iter(moments)

        def meanwhile() -> None:  # who is replaced goes on for a moment, between any two claims
            if previous is not None:
                previous.write_next(next(moments, 0))

        self.log = log
        self.claimed = begun(log, name, meanwhile)
        meanwhile()
        self.rows, self.claimed.shadowed = restored(log)
        self.batch = self.rows.get(PROGRESS, 0)
        self.pending: list[tuple[bytes, int | None]] = []

    def learn(self, keys: Iterable[bytes]) -> None:
        self.batch += 1
        self.pending += [*((key, self.batch) for key in keys), (PROGRESS, self.batch)]

    def expire(self, key: bytes) -> None:
        self.pending.append((key, None))

    def write_next(self, records: int = 1) -> None:
        for each in self.pending[:records]:
            self.write(*each)
        del self.pending[:records]

    def write(self, key: bytes, step: int | None) -> None:
        partition, epoch = PLACES[key], self.claimed.epoch
        value, headers = (None, [mark(epoch)]) if step is None else (row(epoch, step), [])
        self.claimed.note([Placed(partition, self.log.append(partition, key, value, headers), 1)])
        self.rows[key] = step

    def mend(self) -> None:
        run(self.claimed.look())
        hidden, self.claimed.shadowed = self.claimed.shadowed, set()
        for key in sorted(hidden & self.rows.keys()):
            self.write(key, self.rows[key])


def restored(log: Iterable[Kept]) -> tuple[dict[bytes, int | None], set[bytes]]:
    """What a reader that starts now makes of the log, and the keys whose newest record is stale."""
    epochs, rows, hidden = Epochs(), dict[bytes, int | None](), set[bytes]()
    for each in log:
        apply(epochs, rows, each)
        if not is_claim(each.key):
            (hidden.discard if epochs.take(each) else hidden.add)(each.key or b"")
    return rows, hidden


def apply(epochs: Epochs, rows: dict[bytes, int | None], each: Kept) -> None:
    if epochs.take(each):
        step = None if each.value is None else msgspec.msgpack.decode(each.value, type=ItemVector).step
        rows[each.key or b""] = step


class Interleaved(RuleBasedStateMachine):
    """Any number of trainers, of which each was replaced by the next and none but the last knows; one reader that goes
    on and others that start anew."""

    @initialize()
    def first(self) -> None:
        self.log = MemoryLog(PARTITIONS)
        self.trainers = [TrainerModel(self.log, "0", None, [])]
        self.live = SimpleNamespace(epochs=Epochs(), rows={}, read=[0] * PARTITIONS)

    @property
    def owner(self) -> TrainerModel:
        return self.trainers[-1]

    @rule(keys=BATCH, records=st.integers(0, 6))
    def learn(self, keys: set[bytes], records: int) -> None:
        self.owner.learn(sorted(keys))
        self.owner.write_next(records)

    @rule(key=st.sampled_from(KEYS))
    def expire(self, key: bytes) -> None:
        self.owner.expire(key)
        self.owner.write_next()

    @rule(keys=BATCH, number=st.integers(0, 3), records=st.integers(1, 6))
    @precondition(lambda self: len(self.trainers) > 1)
    def a_replaced_one_goes_on(self, keys: set[bytes], number: int, records: int) -> None:
        replaced = self.trainers[number % (len(self.trainers) - 1)]
        replaced.learn(sorted(keys))
        replaced.write_next(records)

    @rule(moments=st.lists(st.integers(0, 3), max_size=PARTITIONS + 1))
    @precondition(lambda self: len(self.trainers) < 4)
    def take_over(self, moments: list[int]) -> None:
        previous = self.owner
        self.trainers.append(TrainerModel(self.log, str(len(self.trainers)), previous, moments))
        learnt = self.owner.rows.get(PROGRESS) or 0
        for key, step in previous.rows.items():
            is_behind = (self.owner.rows.get(key) or learnt + 1) < (step or 0) <= learnt
            assert not is_behind, "progress that counts speaks of rows that count"

    @rule()
    def mend(self) -> None:
        self.owner.mend()

    @rule(number=st.integers(0, 3))
    @precondition(lambda self: len(self.trainers) > 1)
    def a_replaced_one_looks(self, number: int) -> None:
        with pytest.raises(Fenced):
            run(self.trainers[number % (len(self.trainers) - 1)].claimed.look())

    @rule(partition=st.integers(0, PARTITIONS - 1), share=st.floats(0, 1))
    def compact(self, partition: int, share: float) -> None:
        """Up to the first stale record that hides a good one: `min.compaction.lag.ms` is longer than one may do so."""
        epochs, hiding = Epochs(), dict[bytes | None, int]()
        for each in self.log.partitions[partition]:
            if epochs.take(each):
                hiding.pop(each.key, None)
            elif not is_claim(each.key):
                hiding.setdefault(each.key, each.offset)
        self.log.compact(partition, min([int(share * self.log.ends()[partition]), *hiding.values()]))

    @rule(partition=st.integers(0, PARTITIONS - 1), records=st.integers(1, 5))
    def read_on(self, partition: int, records: int) -> None:
        live = self.live
        for each in list(self.log.read(partition, live.read[partition], self.log.ends()[partition]))[:records]:
            apply(live.epochs, live.rows, each)
            live.read[partition] = each.offset + 1

    @rule(partition=st.integers(0, PARTITIONS - 1))
    def rewind(self, partition: int) -> None:
        self.live.read[partition] = 0

    @invariant()
    def who_starts_now_has_the_owners_rows(self) -> None:
        if hasattr(self, "log"):
            assert restored(self.log)[0] == self.owner.rows

    def teardown(self) -> None:
        if not hasattr(self, "log"):
            return
        self.owner.mend()
        for partition in range(PARTITIONS):
            self.log.compact(partition, self.log.ends()[partition])
            self.read_on(partition, 10**6)
        rows, hidden = restored(self.log)
        assert rows == self.owner.rows, "also when only the newest of each key are left"
        assert not hidden & self.owner.rows.keys()
        assert self.live.rows == self.owner.rows


Interleaved.TestCase.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)
TestInterleaved = Interleaved.TestCase
