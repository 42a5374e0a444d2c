"""The release beside the live one: it learns what the live one learns, and costs the live one nothing."""

import asyncio
import dataclasses
import threading
import time
import uuid
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from math import isnan
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from kafka import KafkaProducer, TopicPartition
from msgspec.structs import replace
from prometheus_client import REGISTRY

from infra.platform.kafka_clients import kafka_python_options
from infra.platform.run_files import fill_in
from infra.platform.settings import Kafka, Settings, Trainer
from models.release.bundle import Bundle, read_bundle, read_manifest
from streams import topics
from streams.bundles.source import BundleSource
from streams.epochs import is_claim
from streams.kafka.faust_app import now_ms
from streams.kafka.follow import read_to_end
from streams.kafka.intake import Raw
from streams.kafka.outbox import Outbox, create_producer
from streams.kafka.topic_ids import RIVAL_TRAINER, TopicReplaced, check_topic_ids, read_known_ids
from streams.messages import BundlePublished, ItemVector, decode, encode
from streams.topics import create_topics
from streams.trainer import rival as module
from streams.trainer import worker as worker_module
from streams.trainer.control_state import ControlState
from streams.trainer.learner import Learner, batches
from streams.trainer.progress import PROGRESS_KEY, Progress
from streams.trainer.restore import ExamplesGone, restore_release
from streams.trainer.rival import NoRoom, Rival, RivalRelease, require_room
from streams.trainer.worker import TrainerWorker
from tests.harness.traffic import total_of
from tests.unit.serving.worlds import train_small
from tests.unit.streams.trainer.test_learner import example
from tests.unit.streams.trainer.test_worker import batch

PATIENCE_S = 30
ITEMS = [f"item-{number}" for number in (1, 2, 3, 1, 4, 5, 1, 2, 6, 7, 1, 3)]  # all of them have rows


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A data directory and the versions of three releases in it."""
    data_dir = tmp_path_factory.mktemp("rivals")
    (data_dir / "bundles").mkdir()
    return data_dir, [train_small(data_dir / "bundles", seed).version for seed in (1, 2, 3)]


@pytest.fixture
def versions(trained: tuple[Path, list[str]]) -> list[str]:
    return trained[1]


@pytest.fixture
def settings(kafka: str, trained: tuple[Path, list[str]]) -> Settings:
    """Four examples are a step, and rows wait until it is the end: what is learnt is the same in every run."""
    own = Settings(
        data_dir=trained[0],
        kafka=Kafka(topic_prefix=f"t{uuid.uuid4().hex[:8]}-", partitions=2),
        trainer=Trainer(batch=4, step_s=7200, publish_s=7200, evaluate_share=1.0),
    )
    filled = fill_in(own, kafka, "")
    create_topics(filled.kafka)
    return filled


@pytest.fixture
def watched(settings: Settings) -> Iterator[Callable[..., None]]:
    """Write examples of these items; the first one is of offset `start` in both topics."""
    producer = KafkaProducer(**kafka_python_options(settings.kafka))

    def write(*item_ids: str, start: int = 0) -> None:
        name = settings.kafka.topic_prefix + topics.TRAINING_EXAMPLES
        told = [producer.send(name, encode(example(item_id, at))) for at, item_id in enumerate(item_ids, start)]
        assert [each.get(timeout=30).offset for each in told] == list(range(start, start + len(item_ids)))

    yield write
    producer.close()


class Trainers:
    """A live trainer that has adopted the first of the releases, and what is beside it."""

    def __init__(self, settings: Settings, versions: Sequence[str]) -> None:
        self.settings = settings
        self.control = ControlState(settings)
        self.control.caught_up.set()
        self.control.newest = BundlePublished(versions[0], 1, 8, 40, "")
        self.live = TrainerWorker(settings, self.control)
        self.rival = Rival(settings, self.control, self.live)

    async def learnt(self, offset: int) -> None:
        """Returns when the release beside the live one has learnt all below it."""
        await until(lambda: self.learnt_to == offset, lambda: f"{self.learnt_to} of {offset}: {self.rival.refusal}")

    async def finished(self) -> None:
        """The experiment is stopped, and all is let go."""
        self.control.beside = ""
        await until(lambda: self.rival._release is None, lambda: "let go")

    @property
    def learnt_to(self) -> int | None:
        release = self.rival._release
        return release.worker.learnt_to if release is not None and release.worker.learner is not None else None


@asynccontextmanager
async def running(settings: Settings, versions: Sequence[str]) -> AsyncIterator[Trainers]:
    trainers = Trainers(settings, versions)
    producer = create_producer(settings.kafka, "live")
    await producer.start()
    trainers.live.writer.outbox = Outbox(producer, settings.kafka.topic_prefix)
    trainers.live.hear_assignment(True)
    while not trainers.live.is_current:  # a broker that has just started has no coordinator yet
        await trainers.live.adopt_newest()
        await asyncio.sleep(0.1)
    trainers.rival.start()
    try:
        yield trainers
    finally:
        await trainers.rival.stop(10)
        await trainers.live.close()
        await producer.stop()


def fresh(*item_ids: str, start: int = 0) -> list[Raw]:
    """A batch for the live one, written just now: of old ones that are full a sample is learnt."""
    return [each._replace(produced_ms=now_ms()) for each in batch(*item_ids, start=start)]


async def until(true: Callable[[], bool], what: Callable[[], str], timeout_s: float = PATIENCE_S) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while not true():
        assert loop.time() < deadline, what()
        await asyncio.sleep(0.02)


def rows(settings: Settings, topic: str) -> dict[bytes, ItemVector]:
    """The newest row by key."""
    records = [each for each in read_to_end(settings.kafka, topic) if not is_claim(each.key)]
    return {each.key: decode(ItemVector, each.value) for each in records if each.value is not None}


def progress(settings: Settings, topic: str = topics.RIVAL_VECTORS) -> Progress:
    return msgspec.msgpack.decode(rows(settings, topic)[PROGRESS_KEY].state, type=Progress)


def alone(settings: Settings, version: str, item_ids: Sequence[str]) -> dict[bytes, ItemVector]:
    """The rows of a release that learns these examples with nobody beside it."""
    bundle = read_bundle(settings.bundles_dir / version)
    learner = Learner(bundle, {}, settings.trainer, settings.model.seed, epoch=1)
    for step in batches(list(enumerate(map(example, item_ids, range(len(item_ids))))), settings.trainer.batch):
        learner.learn(step, evaluate=False)
    return {key: row for key, row in learner.rows_of([each.encode() for each in item_ids]) if row is not None}


def assert_the_same(found: dict[bytes, ItemVector], expected: dict[bytes, ItemVector]) -> None:
    assert expected.keys() <= found.keys()
    for key, row in expected.items():
        assert found[key].version == row.version
        np.testing.assert_allclose(vector(found[key].vector), vector(row.vector), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(vector(found[key].query_row), vector(row.query_row), rtol=1e-5, atol=1e-6)
        assert total_of(found[key]) == pytest.approx(total_of(row))


def vector(content: bytes) -> np.ndarray:
    return np.frombuffer(content, "<f4")


def sample(name: str, labels: dict[str, str] | None = None) -> float | None:
    return REGISTRY.get_sample_value(name, labels or {})


def test_it_learns_what_it_would_learn_alone_and_tells_how_far_it_is(settings, versions, watched):
    watched(*ITEMS)

    async def learnt() -> None:
        async with running(settings, versions) as trainers:
            trainers.control.beside = versions[1]
            await trainers.learnt(12)
            await until(lambda: sample("nextwatch_rival_lag_examples") == 0, lambda: "lag")
            await until(lambda: sample("nextwatch_rival_learning_info", {"version": versions[1]}) == 1, lambda: "info")
            assert trainers.rival.version == versions[1] and not trainers.rival.refusal
            await trainers.finished()
            await until(lambda: sample("nextwatch_rival_learning_info", {"version": versions[1]}) is None, lambda: "")
            await until(lambda: isnan(sample("nextwatch_rival_lag_examples") or 0), lambda: "no lag of nothing")

    asyncio.run(learnt())
    assert_the_same(rows(settings, topics.RIVAL_VECTORS), alone(settings, versions[1], ITEMS))
    assert progress(settings) == Progress(12, {0: 11})


def test_the_live_release_learns_the_same_with_another_beside_it_and_speaks_for_itself_alone(
    settings, versions, watched
):
    watched(*ITEMS, "\N{SNOWMAN}")
    counted = ("nextwatch_training_steps_total", "nextwatch_prequential_examples_total")
    received = {"topic": topics.TRAINING_EXAMPLES}

    async def both() -> None:
        async with running(settings, versions) as trainers:
            trainers.control.beside = versions[1]
            await trainers.learnt(12 + 1)  # an item without a row waits for nothing
            before = [sample(name) or 0.0 for name in counted]
            seen = sample("nextwatch_messages_received_total", received) or 0.0
            for first in range(0, len(ITEMS), 4):
                assert await trainers.live.handle(fresh(*ITEMS[first : first + 4], start=first)) is None
            await trainers.live.finish()
            assert [(sample(name) or 0.0) - at for name, at in zip(counted, before, strict=True)] == [3, 12]
            assert (sample("nextwatch_messages_received_total", received) or 0.0) - seen == 12
            assert sample("nextwatch_trainer_rows") == 40, "the other one has a row more"
            await trainers.finished()
            assert sample("nextwatch_trainer_epoch") == 1
            assert sample("nextwatch_model_info", {"version": versions[0]}) == 1
            assert sample("nextwatch_model_info", {"version": versions[1]}) is None

    steps, ranked = (sample(name) or 0.0 for name in counted)
    asyncio.run(both())
    assert [(sample(name) or 0.0) - at for name, at in zip(counted, (steps, ranked), strict=True)] == [3, 12]
    assert_the_same(rows(settings, topics.ITEM_VECTORS), alone(settings, versions[0], ITEMS))
    for topic, version in zip((topics.ITEM_VECTORS, topics.RIVAL_VECTORS), versions, strict=False):
        assert {row.version for row in rows(settings, topic).values()} == {version}


@pytest.mark.parametrize("is_clean", [True, False], ids=["a clean stop", "a crash"])
def test_who_starts_again_goes_on_from_its_progress_and_learns_nothing_twice(settings, versions, watched, is_clean):
    watched(*ITEMS[:6])  # of which two wait for a step

    async def once() -> None:
        async with running(settings, versions) as trainers:
            trainers.control.beside = versions[1]
            await trainers.learnt(4)
            if not is_clean:
                await trainers.rival.stop(0)

    async def again() -> None:
        async with running(settings, versions) as trainers:
            trainers.control.beside = versions[1]
            await trainers.learnt(10 if is_clean else 12)  # four are a step
            await trainers.finished()

    asyncio.run(once())
    told = progress(settings)
    assert told.next_offset == (6 if is_clean else 0)
    watched(*ITEMS[6:], start=6)
    asyncio.run(again())
    assert progress(settings) == Progress(12, {0: 11})
    found, expected = rows(settings, topics.RIVAL_VECTORS), alone(settings, versions[1], ITEMS)
    for key, row in expected.items():  # each watch is counted once, whatever the steps were
        assert total_of(found[key]) == pytest.approx(total_of(row))


def test_when_the_experiment_is_stopped_what_waits_is_published_and_the_learner_let_go(settings, versions, watched):
    watched(*ITEMS[:6])

    async def stopped() -> None:
        async with running(settings, versions) as trainers:
            trainers.control.beside = versions[1]
            await trainers.learnt(4)
            assert progress(settings) == Progress(0), "its rows wait"
            learner = weakref.ref(trainers.rival._release.worker.learner)  # type: ignore[union-attr,arg-type]
            await trainers.finished()
            assert progress(settings) == Progress(6, {0: 5})
            await until(lambda: learner() is None, lambda: "its rows are in memory still")
            assert trainers.live.version == versions[0]

    asyncio.run(stopped())


def test_a_release_that_was_learnt_before_is_told_again_as_learnt_though_nothing_is_watched(
    settings, versions, watched
):
    """Servers wait to hear that it is taught for the experiment that runs now."""
    watched(*ITEMS[:4])

    def told() -> int:
        return sum(each.key == PROGRESS_KEY for each in read_to_end(settings.kafka, topics.RIVAL_VECTORS))

    async def twice() -> None:
        async with running(settings, versions) as trainers:
            trainers.control.beside = versions[1]
            await trainers.learnt(4)
            await trainers.finished()
            before = told()
            trainers.control.beside = versions[1]
            await trainers.learnt(4)
            await until(lambda: told() > before, lambda: "its progress")

    asyncio.run(twice())


def test_another_experiment_has_its_own_release_learnt(settings, versions, watched):
    watched(*ITEMS[:4])

    async def two() -> None:
        async with running(settings, versions) as trainers:
            trainers.control.beside = versions[1]
            await trainers.learnt(4)
            trainers.control.beside = versions[2]
            await until(lambda: trainers.rival.version == versions[2], lambda: trainers.rival.refusal)
            await trainers.learnt(4)
            await trainers.finished()

    asyncio.run(two())
    found = rows(settings, topics.RIVAL_VECTORS)
    assert found[PROGRESS_KEY].version == versions[2]
    assert_the_same(found, alone(settings, versions[2], ITEMS[:4]))


def test_a_bug_of_its_own_leaves_the_live_one_learning_and_costs_one_example(settings, versions, watched, monkeypatch):
    watched(*ITEMS[:4])
    monkeypatch.setattr("streams.trainer.rival.RETRY_S", 0.1)
    step_with = Learner._step_with

    def step(self: Learner, fresh: Any, **how: Any) -> Any:
        if self.version == versions[1] and any(each.item_id == "item-2" for each in fresh):
            raise ZeroDivisionError
        return step_with(self, fresh, **how)

    monkeypatch.setattr(Learner, "_step_with", step)

    async def with_a_bug() -> None:
        async with running(settings, versions) as trainers:
            failed = []
            fail = trainers.rival._fail

            async def note(wanted: str, error: Exception) -> None:
                failed.append(error)
                await fail(wanted, error)

            monkeypatch.setattr(trainers.rival, "_fail", note)
            trainers.control.beside = versions[1]
            await until(lambda: bool(failed), lambda: "a bug")
            assert await trainers.live.handle(fresh(*ITEMS[:4])) is None
            await trainers.live.finish()
            await trainers.learnt(4)
            assert isinstance(failed[0], ZeroDivisionError) and len(failed) == 1
            await trainers.finished()

    asyncio.run(with_a_bug())
    assert_the_same(rows(settings, topics.ITEM_VECTORS), alone(settings, versions[0], ITEMS[:4]))
    assert progress(settings) == Progress(4, {0: 3})
    assert {b"item-1", b"item-3"} <= rows(settings, topics.RIVAL_VECTORS).keys()
    assert not list(read_to_end(settings.kafka, topics.DEAD_LETTERS)), "the live release has learnt it"


def test_a_release_that_is_not_there_is_refused_and_the_live_one_learns(settings, versions):
    async def missing() -> None:
        async with running(settings, versions) as trainers:
            trainers.control.beside = "no_such_release"
            await until(lambda: "no_such_release" in trainers.rival.refusal, lambda: "refused")
            assert trainers.rival.version == ""
            assert await trainers.live.handle(fresh(*ITEMS[:4])) is None and trainers.live.learnt_to == 4
            await trainers.finished()
            await until(lambda: not trainers.rival.refusal, lambda: "nothing is wanted, and nothing refused")

    asyncio.run(missing())


def test_who_is_not_the_trainer_any_more_drops_it_unpublished_and_the_next_one_goes_on(settings, versions, watched):
    watched(*ITEMS[:4])

    async def handed_over() -> None:
        async with running(settings, versions) as first:
            first.control.beside = versions[1]
            await first.learnt(4)
            for part in (first.live, first.rival):
                part.hear_assignment(False)
            assert first.rival.version == "", "at once"
            await until(lambda: first.rival._release is None, lambda: "let go")
            assert progress(settings) == Progress(0), "not its to publish any more"
            async with running(settings, versions) as second:
                second.control.beside = versions[1]
                await second.learnt(4)
                assert first.rival.version == ""
                await second.finished()

    asyncio.run(handed_over())
    assert_the_same(rows(settings, topics.RIVAL_VECTORS), alone(settings, versions[1], ITEMS[:4]))
    assert rows(settings, topics.RIVAL_VECTORS)[PROGRESS_KEY].epoch == 2


def test_the_live_one_learns_while_it_is_adopted_which_ends_with_the_experiment(
    settings, versions, watched, monkeypatch
):
    watched(*ITEMS)
    gate = threading.Event()

    def held(settings: Settings, version: str, *how: Any) -> Any:
        assert version == versions[0] or gate.wait(PATIENCE_S)
        return restore_release(settings, version, *how)

    monkeypatch.setattr(worker_module, "restore_release", held)

    async def slow() -> None:
        async with running(settings, versions) as trainers:
            trainers.control.beside = versions[1]
            await until(lambda: trainers.rival._release is not None, lambda: "begun")
            await asyncio.sleep(0.5)
            assert await asyncio.wait_for(trainers.live.handle(fresh(*ITEMS[:4])), 10) is None
            assert trainers.live.learnt_to == 4 and trainers.rival.version == ""
            trainers.control.beside = ""
            release = trainers.rival._release
            await until(lambda: release is not None and release.is_dropped, lambda: "told while it is restored")
            gate.set()
            await until(lambda: trainers.rival._release is None, lambda: "let go")

    try:
        asyncio.run(slow())
    finally:
        gate.set()
    assert rows(settings, topics.RIVAL_VECTORS) == {}


@pytest.mark.parametrize(
    ("live", "newest", "beside", "wanted"),
    [
        ("a", "a", "b", "b"),
        ("a", "a", "", ""),
        ("a", "a", "a", ""),
        ("a", "b", "b", ""),
        ("a", "b", "a", ""),
        (None, "a", "b", ""),
    ],
    ids=["another", "none", "the live one", "the one that comes", "the one that goes", "nobody is live here"],
)
def test_which_release_is_wanted_beside_the_live_one(live, newest, beside, wanted):
    control = ControlState(Settings())
    control.newest, control.beside = BundlePublished(newest, 1, 8, 40, ""), beside
    worker: Any = type("Live", (), {"version": live})
    assert Rival(Settings(), control, worker).wanted == wanted


def test_its_memory_of_topics_is_its_own_and_there_is_none_before_the_first_experiment(settings, versions, watched):
    watched(*ITEMS[:4])

    async def first() -> None:
        async with running(settings, versions) as trainers:
            assert RIVAL_TRAINER not in read_known_ids(settings.kafka) and not check_topic_ids(settings.kafka)
            trainers.control.beside = versions[1]
            await trainers.learnt(4)

    asyncio.run(first())
    known = read_known_ids(settings.kafka)
    if known:  # a broker that tells ids
        assert known[RIVAL_TRAINER].keys() == {
            topics.RIVAL_VECTORS,
            topics.TRAINING_EXAMPLES,
            topics.WATCH_EVENTS,
        }
    assert not check_topic_ids(settings.kafka)


def test_what_is_refused_is_tried_later_each_time_and_told_as_wanted_and_not_learnt(
    settings, versions, watched, monkeypatch
):
    monkeypatch.setattr(module, "RETRY_S", 0.1)
    tried: list[float] = []

    def refused(settings: Settings, version: str, *how: Any) -> Any:
        if version == versions[0]:
            return restore_release(settings, version, *how)
        tried.append(time.monotonic())
        raise TopicReplaced("was made again")

    monkeypatch.setattr(worker_module, "restore_release", refused)

    async def told() -> None:
        async with running(settings, versions) as trainers:
            trainers.control.beside = versions[1]
            await until(lambda: len(tried) >= 5, lambda: f"tried {tried}")
            waits = np.diff(tried)
            assert waits[2] > 0.4 and waits[3] > 0.8, "each time twice as long"
            assert trainers.rival.refusal == "was made again" and trainers.rival.version == ""
            assert await trainers.live.handle(fresh(*ITEMS[:4])) is None
            await until(lambda: sample("nextwatch_rival_lag_examples") == 4, lambda: "the live one has learnt so many")
            assert sample("nextwatch_rival_wanted_info", {"version": versions[1]}) == 1
            assert sample("nextwatch_rival_learning_info", {"version": versions[1]}) is None
            await trainers.finished()
            await until(lambda: sample("nextwatch_rival_wanted_info", {"version": versions[1]}) is None, lambda: "over")
            assert isnan(sample("nextwatch_rival_lag_examples") or 0)

    asyncio.run(told())


def test_while_it_has_failed_what_the_live_one_learns_counts_as_its_lag(settings, versions, watched, monkeypatch):
    watched(*ITEMS)

    async def fails(_: RivalRelease) -> None:
        raise ZeroDivisionError

    async def failed() -> None:
        async with running(settings, versions) as trainers:
            trainers.control.beside = versions[1]
            await trainers.learnt(12)
            monkeypatch.setattr(RivalRelease, "learn", fails)
            await until(lambda: trainers.rival._release is None and bool(trainers.rival.refusal), lambda: "failed")
            assert await trainers.live.handle(fresh(*ITEMS[:4], start=12)) is None
            await until(lambda: sample("nextwatch_rival_lag_examples") == 4, lambda: "the live one is ahead")
            assert sample("nextwatch_rival_learning_info", {"version": versions[1]}) is None

    asyncio.run(failed())


def test_of_late_examples_none_is_passed_over(settings, versions, watched):
    """As the live one does: what is not learnt here would be told nowhere."""
    impatient = settings.model_copy(update={"trainer": settings.trainer.model_copy(update={"sample_after_s": 1e-9})})
    release = RivalRelease(impatient, ControlState(impatient), versions[1])
    late = batch(*ITEMS)
    assert [raw.offset for raw, _ in release.worker._read(late, None)] == [raw.offset for raw in late]  # type: ignore[arg-type]


@pytest.mark.parametrize("learnt", [0, 4], ids=["before it begins", "while nobody learns it"])
def test_where_examples_that_it_has_yet_to_learn_are_deleted_it_is_refused(
    settings, versions, watched, monkeypatch, learnt
):
    watched(*ITEMS[:4])
    name = TopicPartition(settings.kafka.topic_prefix + topics.TRAINING_EXAMPLES, 0)

    async def begun() -> None:
        async with running(settings, versions) as trainers:
            trainers.control.beside = versions[1]
            await trainers.learnt(4)
            await trainers.finished()

    async def refused() -> None:
        async with running(settings, versions) as trainers:
            trainers.control.beside = versions[1]
            await until(lambda: "experiment stop" in trainers.rival.refusal, lambda: trainers.rival.refusal)
            assert f"{6 - learnt} examples" in trainers.rival.refusal and "--no-announce" in trainers.rival.refusal
            assert trainers.rival.version == "" and trainers.live.version == versions[0]

    read = BundleSource.read

    def from_topics(self: BundleSource, version: str, *how: Any) -> Bundle:
        bundle = read(self, version, *how)
        offsets = {f"{topics.TRAINING_EXAMPLES}/0": 0}
        is_live = version == versions[0]
        return bundle if is_live else dataclasses.replace(bundle, manifest=replace(bundle.manifest, offsets=offsets))

    monkeypatch.setattr(BundleSource, "read", from_topics)
    if learnt:
        asyncio.run(begun())
    watched(*ITEMS[4:], start=4)
    with topics.open_admin(settings.kafka) as admin:
        admin.delete_records({name: 6})
    asyncio.run(refused())


def test_retention_that_is_faster_than_it_learns_is_not_passed_over(settings, versions):
    release = RivalRelease(settings, ControlState(settings), versions[1])
    release._examples = Deleted()  # type: ignore[assignment]
    release._next = 5
    with pytest.raises(ExamplesGone, match="2 examples"):
        release._poll()
    release._next = release.end = 7
    assert [raw.offset for raw in release._poll()] == [8], "a gap of the topic's own"
    assert release.end == 9, "whatever the client takes for its place"


class Deleted:
    """All below offset 7 is deleted, and 7 is a mark of a transaction; the client is finding its place again."""

    def poll(self, timeout_s: float) -> list[Any]:
        name = topics.TRAINING_EXAMPLES
        return [type("Record", (), {**FIELDS, "topic": name, "partition": 0, "offset": 8})]

    def firsts_of(self, partition: int) -> dict[str, int]:
        return {topics.TRAINING_EXAMPLES: 7}

    def known_ends(self) -> dict[tuple[str, int], int]:
        return {(topics.TRAINING_EXAMPLES, 0): 9}

    def lags(self) -> dict[tuple[str, int], int]:
        return {(topics.TRAINING_EXAMPLES, 0): 9}


FIELDS: dict[str, Any] = {"key": None, "value": b"", "timestamp": 1, "headers": []}


def test_one_that_does_not_fit_into_memory_is_refused_before_it_is_read(settings, versions, monkeypatch):
    told = read_manifest(settings.bundles_dir / versions[1])
    monkeypatch.setattr(module, "free_bytes", lambda: 10**9)
    require_room(told)
    with pytest.raises(NoRoom, match=r"100,000,000 items .* GB: give the trainer more memory, or `nextwatch exp"):
        require_room(replace(told, items=10**8))
    monkeypatch.setattr(module, "free_bytes", lambda: 10)
    monkeypatch.setattr(worker_module, "restore_release", only(versions[0]))

    async def refused() -> None:
        async with running(settings, versions) as trainers:
            trainers.control.beside = versions[1]
            await until(lambda: "more memory" in trainers.rival.refusal, lambda: trainers.rival.refusal)
            assert trainers.live.version == versions[0]

    asyncio.run(refused())


def only(live: str) -> Callable[..., Any]:
    def restore(settings: Settings, version: str, *how: Any) -> Any:
        assert version == live
        return restore_release(settings, version, *how)

    return restore


def test_a_stop_that_cannot_wait_closes_its_clients_all_the_same(settings, versions, watched, monkeypatch):
    watched(*ITEMS[:4])
    closed: list[str] = []
    for step in ("_close_examples", "_stop_producer"):

        async def note(self: RivalRelease, *, close: Any = getattr(RivalRelease, step), step: str = step) -> None:
            await close(self)
            closed.append(step)

        monkeypatch.setattr(RivalRelease, step, note)

    async def stopped() -> None:
        async with running(settings, versions) as trainers:
            trainers.control.beside = versions[1]
            await trainers.learnt(4)
            await trainers.rival.stop(0)
            assert closed == ["_close_examples", "_stop_producer"]
            assert trainers.rival._running is not None and trainers.rival._running.done()

    asyncio.run(stopped())
