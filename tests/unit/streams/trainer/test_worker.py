"""What the trainer worker does with a batch: what is sent before what, and what becomes of a bug."""

import asyncio
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import REGISTRY

from infra.platform.settings import Bundles, Settings, Trainer
from models.release.bundle import Bundle
from streams import topics
from streams.bundles.fetching import Cache
from streams.bundles.source import source_of
from streams.epochs import claim, is_claim, mark
from streams.kafka.faust_app import now_ms
from streams.kafka.intake import Raw
from streams.kafka.outbox import Placed
from streams.messages import BundlePublished, ItemVector, TrainingExample, decode, encode
from streams.trainer.control_state import ControlState
from streams.trainer.learner import Learner
from streams.trainer.progress import PROGRESS_KEY, Progress
from streams.trainer.restore import Restored
from streams.trainer.sampling import is_kept
from streams.trainer.worker import TrainerWorker
from tests.harness.needs import OBSTORE, needs
from tests.harness.traffic import total_of
from tests.unit.serving.worlds import train_small
from tests.unit.streams.erasure.test_erased_users import record_of
from tests.unit.streams.memory_log import MemoryLog
from tests.unit.streams.trainer.test_learner import example


class Sent:
    """Stands where the outbox is and keeps what would be sent, flush by flush."""

    def __init__(self) -> None:
        self.flushes: list[list[tuple[str, bytes | None, bytes | None]]] = []
        self.fails = False
        self.log = MemoryLog(Settings().kafka.partitions)
        self._waiting: list[tuple[str, bytes | None, bytes | None]] = []

    def add(self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Any = ()) -> None:
        self._waiting.append((topic, key, value))
        if topic == topics.ITEM_VECTORS:
            self.log.add(topic, partition, key, value, headers)

    async def flush(self) -> dict[str, list[Placed]]:
        waiting, self._waiting = self._waiting, []
        if self.fails and any(topic == topics.ITEM_VECTORS for topic, *_ in waiting):
            raise OSError("the row is too large")
        if waiting:
            self.flushes.append(waiting)
        return await self.log.flush()

    def of(self, topic: str) -> list[list[bytes | None]]:
        """The keys of each flush that went to a topic."""
        flushes = [[key for name, key, _ in flush if name == topic and not is_claim(key)] for flush in self.flushes]
        return [keys for keys in flushes if keys]

    def progress(self) -> Progress:
        values = [value for flush in self.flushes for _, key, value in flush if key == PROGRESS_KEY]
        return msgspec.msgpack.decode(decode(ItemVector, values[-1]).state, type=Progress)


@pytest.fixture
def sent() -> Sent:
    return Sent()


@pytest.fixture
def worker(bundle: Bundle, sent: Sent) -> Iterator[TrainerWorker]:
    settings = Settings(trainer=Trainer(step_s=0, publish_s=0))
    control = ControlState(settings)
    control.caught_up.set()  # and no newer release: the learner stays
    worker = TrainerWorker(settings, control, lambda: sent.log)
    worker.writer.outbox = sent  # type: ignore[assignment]
    worker.learner = Learner(bundle, {}, settings.trainer, seed=1, epoch=1)
    yield worker
    worker._executor.shutdown()


def batch(*item_ids: str, start: int = 0) -> list[Raw]:
    return [
        Raw(topics.TRAINING_EXAMPLES, 0, offset, 0, b"u", encode(example(item_id, offset)), ())
        for offset, item_id in enumerate(item_ids, start)
    ]


async def handled(worker: TrainerWorker, *batches: Sequence[Raw]) -> None:
    """Claims, and learns these batches without a bug; returns when all of it is sent."""
    await worker.writer.claim()
    for each in batches:
        assert await worker.handle(each) is None
    await worker.writer.published()


def test_rows_are_sent_before_the_progress_that_speaks_of_them(worker: TrainerWorker, sent: Sent):
    asyncio.run(handled(worker, batch("item-1", "item-2"), batch("item-3", start=2)))
    first, progress, second, last = sent.of(topics.ITEM_VECTORS)
    assert {b"item-1", b"item-2"} <= set(first) and b"item-3" in second
    assert progress == last == [PROGRESS_KEY]
    assert sent.progress().next_offset == 3


class Traced(list[tuple[str, str, dict[str, Any], list[str]]]):
    """Keeps what is told, in place of a tracer."""

    def wants(self, traceparent: str) -> bool:
        return True

    def tell(self, name: str, traceparent: str, stages: Any, attributes: dict[str, Any], links: list[str]) -> None:
        self.append((name, traceparent, attributes, links))


def test_a_step_is_told_of_to_the_traces_of_its_watches_and_one_without_any_to_nobody(worker: TrainerWorker):
    one, other = (f"00-4bf92f3577b34da6a3ce929d0e0e473{end}-00f067aa0ba902b7-01" for end in "67")
    worker._tracer = traced = Traced()  # type: ignore[assignment]
    plain, first, second = batch("item-1", "item-2", "item-3")
    with_traces = [
        plain,
        first._replace(headers=(("traceparent", one.encode()),)),
        second._replace(headers=(("traceparent", other.encode()),)),
    ]
    asyncio.run(handled(worker, with_traces, batch("item-4", start=3)))
    assert traced == [("learn", one, {"nextwatch.examples": 3}, [other])]


def test_a_batch_with_a_bug_is_set_aside_and_progress_passes_over_it(
    worker: TrainerWorker, sent: Sent, monkeypatch: pytest.MonkeyPatch
):
    """Else a trainer that starts again would fetch it and die of it for ever."""

    async def a_good_one_and_a_bad_one() -> BaseException | None:
        await handled(worker, batch("item-1"))
        assert worker.learner is not None
        monkeypatch.setattr(worker.learner._trainer, "learn", lambda *_: 1 / 0)
        return await worker.handle(batch("item-2", "item-3", start=1))

    assert isinstance(asyncio.run(a_good_one_and_a_bad_one()), ZeroDivisionError)
    assert len(sent.of(topics.DEAD_LETTERS)[0]) == 2
    assert b"item-1" in sent.of(topics.ITEM_VECTORS)[0]
    assert sent.progress().next_offset == 3


def test_one_example_with_a_bug_costs_no_other_and_catching_up_passes_over_it(
    worker: TrainerWorker, sent: Sent, monkeypatch: pytest.MonkeyPatch
):
    assert worker.learner is not None
    read = worker.learner._trainer.read

    def read_or_fail(examples: Sequence[TrainingExample]) -> Any:
        if any(each.item_id == "item-2" for each in examples):
            raise ZeroDivisionError
        return read(examples)

    monkeypatch.setattr(worker.learner._trainer, "read", read_or_fail)

    async def three() -> BaseException | None:
        await worker.writer.claim()
        return await worker.handle(batch("item-1", "item-2", "item-3"))

    assert isinstance(asyncio.run(three()), ZeroDivisionError)
    assert len(sent.of(topics.DEAD_LETTERS)[0]) == 1
    assert {b"item-1", b"item-3"} <= set(sent.of(topics.ITEM_VECTORS)[0])
    assert sent.progress().next_offset == 3

    later = [(offset, example(item_id, offset)) for offset, item_id in enumerate(("item-4", "item-2", "item-5"), 3)]
    monkeypatch.setattr("streams.trainer.worker.examples_between", lambda *_: iter(later))

    async def caught_up() -> None:
        await worker._catch_up(worker.learner, 3, 6)  # type: ignore[arg-type]
        await worker.writer.published()

    sent.flushes.clear()
    asyncio.run(caught_up())
    assert {b"item-4", b"item-5"} <= set(sent.of(topics.ITEM_VECTORS)[0])
    assert sent.progress().next_offset == 6 and not sent.of(topics.DEAD_LETTERS)


def test_rows_that_cannot_be_sent_stop_the_process_and_are_no_bug_of_the_next_batch(worker: TrainerWorker, sent: Sent):
    async def a_lost_one_and_the_next() -> None:
        await worker.writer.claim()
        assert await worker.handle(batch("item-1")) is None
        sent.fails = True
        await asyncio.sleep(0)
        await worker.handle(batch("item-2", start=1))

    with pytest.raises(OSError, match="too large"):
        asyncio.run(a_lost_one_and_the_next())
    assert not sent.of(topics.DEAD_LETTERS)


def test_rows_go_where_their_items_are_in_a_topic_that_kept_its_partitions(worker: TrainerWorker, sent: Sent):
    """`kafka.partitions` was raised; rows of an item in two partitions would have no order."""
    sent.log = MemoryLog(Settings().kafka.partitions - 1)
    worker.writer._open_row_log = lambda: sent.log  # type: ignore[assignment,return-value]
    asyncio.run(handled(worker, batch("item-1", "item-2", "item-3")))
    for item in (b"item-1", b"item-2", b"item-3"):
        assert newest_row(sent, item).version


def claimed(sent: Sent, epoch: int) -> None:
    """Another trainer takes over."""
    for partition in range(len(sent.log.partitions)):
        sent.log.append(partition, *claim(epoch, "another"))


def newest_row(sent: Sent, key: bytes) -> ItemVector:
    home = topics.partition_of(key.decode(), len(sent.log.partitions))
    return decode(ItemVector, [each.value for each in sent.log.partitions[home] if each.key == key][-1])


def test_a_trainer_that_was_replaced_in_a_pause_writes_no_row_and_stands_by(
    worker: TrainerWorker, sent: Sent, monkeypatch: pytest.MonkeyPatch
):
    async def paused() -> int:
        worker.hear_assignment(True)
        await handled(worker, batch("item-1"))
        claimed(sent, 2)
        written = len(list(sent.log))
        monkeypatch.setattr("streams.trainer.writer_epoch.LOOK_EVERY_S", 0.0)  # a pause: the last look is long ago
        assert await worker.handle(batch("item-2", start=1)) is None
        await worker.look()
        return len(list(sent.log)) - written

    assert asyncio.run(paused()) == 0
    assert worker.learner is None and worker.writer.epoch == 0


def test_a_row_that_a_replaced_trainer_still_writes_is_written_over_progress_and_tombstones_too(
    worker: TrainerWorker, sent: Sent
):
    async def mended() -> None:
        await handled(worker, batch("item-1", "item-2"))
        for key, value in ((b"item-1", b""), (b"item-2", None), (PROGRESS_KEY, b"")):
            home = topics.partition_of(key.decode(), len(sent.log.partitions))
            stale = None if value is None else encode(ItemVector("v", 99, b"", b"", 0))
            sent.log.append(home, key, stale, [mark(0)])
        await handled(worker, batch("item-3", start=2))
        assert worker.learner is not None
        await worker.writer.mend(worker.learner)

    asyncio.run(mended())
    assert [newest_row(sent, key).epoch for key in (b"item-1", b"item-2", PROGRESS_KEY)] == [1, 1, 1]
    assert [key for key, _ in worker.learner.rows_of([b"item-1", b"unknown"])] == [b"item-1"]  # type: ignore[union-attr]
    progress = msgspec.msgpack.decode(newest_row(sent, PROGRESS_KEY).state, type=Progress)
    assert progress.next_offset == 3


def test_another_assignment_ends_it_and_the_same_one_changes_nothing(worker: TrainerWorker, sent: Sent):
    async def reassigned() -> None:
        worker.hear_assignment(True)
        await worker.writer.claim()
        learner = worker.learner
        worker.hear_assignment(True)
        assert (worker.learner, worker.role, worker.writer.epoch) == (learner, "active", 1)
        worker.hear_assignment(False)
        assert (worker.learner, worker.role, worker.writer.epoch) == (None, "standby", 0)
        assert await worker.writer.claim() == 2, "who gets it back claims again"

    asyncio.run(reassigned())


def test_a_batch_that_is_still_in_hand_makes_no_trainer_of_one_that_the_group_has_passed_over(
    worker: TrainerWorker, sent: Sent, monkeypatch: pytest.MonkeyPatch
):
    """It would claim, and the one whose turn it is would lose its rows and a session."""
    adopted: list[str] = []

    async def adopt(version: str) -> None:
        adopted.append(version)

    async def passed_over() -> None:
        worker._control.newest = BundlePublished("v2", 1, 8, 10, "")
        monkeypatch.setattr(worker, "_adopt", adopt)
        worker.hear_assignment(True)
        worker.hear_assignment(False)
        assert await worker.handle(batch("item-1")) is None
        assert (adopted, worker.writer.epoch) == ([], 0)
        worker.hear_assignment(True)
        assert await worker.handle(batch("item-1")) is None
        assert adopted == ["v2"]

    asyncio.run(passed_over())


def test_where_a_new_release_begins_is_published_before_anything_is_learnt(
    worker: TrainerWorker, sent: Sent, monkeypatch: pytest.MonkeyPatch
):
    """Else a crash after Faust's commit and before the first progress would skip what was learnt in between."""
    assert worker.learner is not None
    learner = worker.learner
    learner.begin_at(5)
    monkeypatch.setattr("streams.trainer.worker.restore_release", lambda *_: Restored(learner, 5, 5, set()))

    async def adopted() -> None:
        worker.hear_assignment(True)
        worker.learner, worker._control.newest = None, BundlePublished("v2", 1, 8, 10, "")
        await worker.adopt_newest()

    asyncio.run(adopted())
    assert sent.of(topics.ITEM_VECTORS) == [[PROGRESS_KEY]]
    assert sent.progress() == Progress(5, {})


def test_examples_that_were_handed_out_while_nobody_could_learn_them_are_fetched(
    worker: TrainerWorker, sent: Sent, monkeypatch: pytest.MonkeyPatch
):
    asked = []

    def between(_: Any, start: int, stop: int, __: Any) -> Iterator[tuple[int, Any]]:
        asked.append((start, stop))
        yield from ((offset, example("item-5", offset)) for offset in range(start, stop))

    monkeypatch.setattr("streams.trainer.worker.examples_between", between)
    asyncio.run(handled(worker, *(batch("item-1", start=start) for start in (0, 1, 5, 6))))
    assert asked == [(2, 5)]
    assert sent.progress() == Progress(7, {0: 6})


def test_what_is_from_before_its_user_was_forgotten_is_not_learnt(worker: TrainerWorker, sent: Sent):
    records = batch("item-1", "item-2")
    at_ms = decode(TrainingExample, records[0].value).event_ms
    worker._control.erased.hear(*record_of("u", at_ms), 0)
    asyncio.run(handled(worker, records))
    rows = {key for keys in sent.of(topics.ITEM_VECTORS) for key in keys} - {PROGRESS_KEY}
    assert b"item-2" in rows and b"item-1" not in rows
    assert sent.progress() == Progress(2, {0: 1})


def known_rows(sent: Sent) -> set[bytes | None]:
    return {key for keys in sent.of(topics.ITEM_VECTORS) for key in keys} - {PROGRESS_KEY}


def patient(worker: TrainerWorker, bundle: Bundle) -> None:
    """Examples and rows wait for hours."""
    worker._settings = Settings(trainer=Trainer(step_s=7200, publish_s=7200))
    worker.learner = Learner(bundle, {}, worker._settings.trainer, seed=1, epoch=1)


def test_examples_wait_to_be_learnt_together_but_for_none_of_an_item_without_a_row(
    worker: TrainerWorker, sent: Sent, bundle: Bundle
):
    patient(worker, bundle)

    async def three_batches() -> None:
        await handled(worker, batch("item-1", "item-2"), batch("item-3", start=2))
        await worker.tick()
        assert worker.learner is not None and worker.learner.progress.next_offset == 0
        await handled(worker, batch("new", start=3))
        assert worker.learner.progress.next_offset == 4

    asyncio.run(three_batches())
    assert known_rows(sent) >= {b"new"} and not known_rows(sent) & {b"item-1", b"item-2", b"item-3"}
    assert sent.progress() == Progress(0, {}), "it stays before what only waiting rows have learnt"


def test_a_clean_stop_learns_and_publishes_all_that_waits(worker: TrainerWorker, sent: Sent, bundle: Bundle):
    patient(worker, bundle)

    async def stopped() -> None:
        await handled(worker, batch("item-1", "new", "item-2"), batch("item-3", start=3))
        await worker.finish()

    asyncio.run(stopped())
    assert known_rows(sent) >= {b"item-1", b"item-2", b"item-3", b"new"}
    assert sent.of(topics.ITEM_VECTORS)[-1] == [PROGRESS_KEY] and sent.progress() == Progress(4, {0: 3})


def test_what_has_waited_long_enough_goes_without_a_batch(worker: TrainerWorker, sent: Sent, bundle: Bundle):
    patient(worker, bundle)
    worker._settings = Settings(trainer=Trainer(step_s=0.01, publish_s=0.01))
    worker.learner = Learner(bundle, {}, worker._settings.trainer, seed=1, epoch=1)

    async def idle() -> None:
        await handled(worker, batch("item-1"))
        await asyncio.sleep(0.02)
        await worker.tick()  # learns it
        await asyncio.sleep(0.02)
        await worker.tick()  # publishes its row
        await worker.writer.published()

    asyncio.run(idle())
    assert b"item-1" in known_rows(sent) and sent.progress() == Progress(1, {0: 0})


def test_who_hands_over_forgets_what_is_gathered_and_the_next_one_begins_before_it(
    worker: TrainerWorker, sent: Sent, bundle: Bundle
):
    patient(worker, bundle)

    async def handed_over() -> None:
        worker.hear_assignment(True)
        await handled(worker, batch("item-1", "new"), batch("item-2", start=2))
        worker.hear_assignment(False)
        await worker.tick()
        await worker.finish()

    asyncio.run(handed_over())
    assert known_rows(sent) >= {b"new"} and b"item-2" not in known_rows(sent)
    assert sent.progress() == Progress(0, {}) and not worker._gathered


def test_a_gap_between_gathered_batches_is_fetched(
    worker: TrainerWorker, sent: Sent, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
):
    patient(worker, bundle)
    asked = []
    monkeypatch.setattr("streams.trainer.worker.examples_between", lambda _, *gap: asked.append(gap[:2]) or iter(()))

    async def with_a_gap() -> None:
        await handled(worker, batch("item-1"), batch("item-2", start=5))
        await worker.finish()

    asyncio.run(with_a_gap())
    assert asked == [(1, 5)]
    assert sent.progress().next_offset == 6


def test_a_bug_that_is_met_between_two_batches_is_told_with_the_next_one(
    worker: TrainerWorker, sent: Sent, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
):
    patient(worker, bundle)

    async def between() -> BaseException | None:
        await handled(worker, batch("new", "item-1"), batch("item-2", start=2))
        worker._settings = Settings(trainer=Trainer(step_s=0))
        assert worker.learner is not None
        with monkeypatch.context() as patch:
            patch.setattr(worker.learner._trainer, "learn", lambda *_: 1 / 0)
            await worker.tick()
        assert b"item-1" in known_rows(sent) and sent.progress().next_offset == 3, "a restart does not meet it again"
        return await worker.handle(batch("item-3", start=3))

    assert isinstance(asyncio.run(between()), ZeroDivisionError)
    assert len(sent.of(topics.DEAD_LETTERS)[0]) == 1


def test_of_full_batches_that_are_too_old_a_sample_is_learnt_and_the_rest_counted(worker: TrainerWorker, sent: Sent):
    worker._settings = Settings(trainer=Trainer(step_s=0, publish_s=0, batch=40, sample_after_s=100.0))
    before = REGISTRY.get_sample_value("nextwatch_training_passed_over_total") or 0.0
    old = [each._replace(produced_ms=now_ms() - 400_000) for each in batch(*["item-1"] * 79)]
    asyncio.run(handled(worker, old[:40], old[40:]))  # the second one is not full
    kept = sum(is_kept(0, offset, 0.25) for offset in range(40))
    assert 0 < kept < 25
    assert (REGISTRY.get_sample_value("nextwatch_training_passed_over_total") or 0.0) - before == 40 - kept
    assert sent.progress().next_offset == 79
    counted = total_of(newest_row(sent, b"item-1")) - total_of_release(worker, "item-1")
    assert round(counted) == kept + 39


def total_of_release(worker: TrainerWorker, item_id: str) -> float:
    assert worker.learner is not None
    model = worker.learner._released
    return float(model.popularity.totals()[model.item_ids.index(item_id)])


def test_another_watch_topic_is_remembered_behind_the_progress_that_knows_nothing_of_it(
    worker: TrainerWorker, sent: Sent, monkeypatch: pytest.MonkeyPatch
):
    """Else a crash in between would pass over its watches by the offsets of the one before."""
    assert worker.learner is not None
    learner, told = worker.learner, []
    learner.is_new = False
    found = Restored(learner, 5, 5, set(), is_renewed=True)
    monkeypatch.setattr("streams.trainer.worker.restore_release", lambda *_: found)
    monkeypatch.setattr("streams.trainer.worker.remember_ids", lambda *_: told.append(sent.progress()))

    async def adopted() -> None:
        worker.hear_assignment(True)
        worker.learner, worker._control.newest = None, BundlePublished("v2", 1, 8, 10, "")
        await worker.adopt_newest()

    asyncio.run(adopted())
    assert told == [learner.progress]


@needs(OBSTORE)
def test_the_old_release_goes_on_until_the_new_one_is_fetched(
    bundle: Bundle, sent: Sent, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr("streams.trainer.worker.RETRY_S", 0)
    store, trained = tmp_path / "store", tmp_path / "trained"
    newer = train_small(trained, 2)
    settings = Settings(data_dir=tmp_path, bundles=Bundles(store=f"file://{store}"))
    control = ControlState(settings)
    control.caught_up.set()
    worker = TrainerWorker(settings, control, lambda: sent.log)
    worker.writer.outbox = sent  # type: ignore[assignment]
    worker.learner = old = Learner(bundle, {}, settings.trainer, seed=1, epoch=1)
    worker.hear_assignment(True)
    control.newest = BundlePublished(newer.version, newer.created_ms, newer.dim, newer.items, newer.schema_hash)

    def restored(settings: Settings, version: str, *_: Any) -> Restored:
        return Restored(Learner(source_of(settings).read(version), {}, settings.trainer, 1, 2), 0, 0, set())

    monkeypatch.setattr("streams.trainer.worker.restore_release", restored)

    async def look_until(true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not true():
            assert time.monotonic() < deadline
            await worker.adopt_newest()
            await asyncio.sleep(0.02)

    gate, fetch = threading.Event(), Cache.fetch

    def held(self: Cache, version: str, stopped: Callable[[], bool]) -> Path:
        gate.wait(5)
        return fetch(self, version, stopped)

    monkeypatch.setattr(Cache, "fetch", held)

    async def adopted() -> None:
        for _ in range(3):
            await worker.adopt_newest()  # nobody waits for what is being fetched
        assert worker.learner is old and not worker.refusal
        gate.set()
        await look_until(lambda: "is not there" in worker.refusal)
        assert worker.learner is old, "and it learns on"
        shutil.copytree(trained / newer.version, store / newer.version)
        await look_until(lambda: worker.is_current)

    asyncio.run(adopted())
    assert worker.learner is not old and not worker.refusal
    worker._executor.shutdown()
