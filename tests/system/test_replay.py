"""What a crash run is judged by, by hand: the replay of a few events, and what a verdict calls lost and doubled."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from models.release.bundle import Bundle
from models.retrieval import incremental
from streams.epochs import claim
from streams.messages import Impression, ItemVector, Shown, TrainingExample, Watch, WatchEvent, encode
from streams.trainer.learner import Learner
from tests.harness.crash import relearnt
from tests.harness.crash.relearnt import relearn, stream_of
from tests.harness.crash.replay import Events, ExampleContent, examples, histories, outcomes, trending
from tests.harness.crash.run import WINDOW_S, settings_for
from tests.harness.crash.verdict import Verdict, compare_rows
from tests.unit.serving.worlds import ITEMS, load, train_small

SETTINGS = settings_for(Path("data"))
AT_MS = 1_000_000


def watch(name: str, item: str, after_s: float, seconds: float = 60.0, request_id: str | None = None) -> WatchEvent:
    return WatchEvent(name, "u", item, AT_MS + round(1000 * after_s), seconds, 60.0, request_id)


def events_of(watches: list[WatchEvent], shown: list[Impression]) -> Events:
    """In this order on partition 0."""
    found = Events(at_home=watches)
    found.watches["u"] = [(event, (0, offset)) for offset, event in enumerate(watches)]
    found.lists["u"] = [(impression, (0, offset)) for offset, impression in enumerate(shown)]
    return found


def show(request_id: str, items: str, after_s: float = 0.0) -> Impression:
    shown = tuple(Shown(item, place, "retrieval") for place, item in enumerate(items, 1))
    return Impression(request_id, "u", AT_MS + round(1000 * after_s), "server", "v", shown)


def test_a_history_is_in_order_of_time_and_an_example_is_of_a_completed_watch():
    events = events_of([watch("late", "a", 2), watch("early", "b", 1, seconds=5)], [])
    assert histories(events, SETTINGS)["u"].watches == (("early", 1), ("late", 0))
    assert examples(events, SETTINGS) == {(0, 0): ExampleContent("u", "a", AT_MS + 2000, 60.0, 60.0, ())}
    assert trending(events, SETTINGS) == {"a": 1}


def test_an_example_says_what_was_watched_before_it_and_was_known_then():
    events = events_of([watch("first", "a", 1), watch("late", "b", 3), watch("between", "c", 2)], [])
    before = {place: example.before for place, example in examples(events, SETTINGS).items()}
    assert before == {(0, 0): (), (0, 1): ("first",), (0, 2): ("first",)}


def test_a_watch_belongs_to_the_list_that_it_names_else_to_the_newest_that_showed_it_in_time():
    shown = [show("first", "ab"), show("second", "bc", 1)]
    watches = [
        watch("named", "b", 2, 10, "first"),
        watch("newest", "b", 2, 20),
        watch("too late", "c", 1 + WINDOW_S + 1, 40),
        watch("before", "a", -1, 40),
    ]
    assert outcomes(events_of(watches, shown), SETTINGS) == {(0, 0): [0, 10], (0, 1): [20, 0]}


def test_what_is_missing_is_lost_what_is_too_much_is_doubled_and_the_rest_is_the_same():
    verdict = Verdict()
    verdict.compare("row", {"a": 1, "b": 1, "c": 1}, {"b": 2, "c": 1, "d": 1})
    assert verdict.lost == ["row a"]
    assert verdict.doubled == ["row d: there is none"]
    assert verdict.differing == ["row b: 2, not 1"]


# --- rows ------------------------------------------------------------------------------------------------------------


@dataclass
class Topic:
    """`item-vectors`, with one partition."""

    records: list[SimpleNamespace] = field(default_factory=list)

    def write(self, key: bytes, value: bytes) -> None:
        self.records.append(SimpleNamespace(partition=0, offset=len(self.records), key=key, value=value, headers=[]))

    def publish(self, learner: Learner, rows: list[tuple[bytes, ItemVector | None]]) -> None:
        for key, row in (*rows, learner.progress_row()):
            assert row is not None
            self.write(key, encode(row))


def example_of(at: int, item: str, before: str) -> TrainingExample:
    watches = (Watch(before, AT_MS, 60.0, 60.0, True, "before", 0),)
    return TrainingExample("u", item, AT_MS + at, 60.0, 60.0, watches, (), None, 0, at, AT_MS)


RNG = random.Random(1)
EXAMPLES = [example_of(at, *RNG.choices(ITEMS, k=2)) for at in range(100)]
STEP = 5


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    directory = tmp_path_factory.mktemp("bundles")
    return load(directory, train_small(directory))


def trainer_on(topic: Topic, bundle: Bundle, epoch: int) -> Learner:
    """One that claims the topic and takes the rows back that are there."""
    topic.write(*claim(epoch, "a trainer"))
    learner = Learner(bundle, {}, SETTINGS.trainer, SETTINGS.model.seed, epoch)
    for key, row in stream_of(learner.version, [], topic.records).rows.items():
        learner.restore(key, row)
    for trainer in stream_of(learner.version, [], topic.records).trainers.values():
        if trainer.progress is not None:
            learner.restore(b"", trainer.progress)
    return learner


def steps(topic: Topic, learner: Learner, start: int, stop: int) -> None:
    """A step a second, and rows that wait as long as the settings say."""
    for first in range(start, stop, STEP):
        batch = list(enumerate(EXAMPLES[first : first + STEP], first))
        topic.publish(learner, learner.learn(batch, float(first // STEP), evaluate=False).rows)


def judged(topic: Topic, bundle: Bundle) -> Verdict:
    verdict = Verdict()
    examples = [SimpleNamespace(offset=at, value=encode(example)) for at, example in enumerate(EXAMPLES)]
    stream = stream_of(bundle.manifest.version, examples, topic.records)
    compare_rows(verdict, relearn(stream, bundle, {}, SETTINGS.trainer, SETTINGS.model.seed), stream.rows)
    return verdict


def test_rows_of_a_run_without_faults_are_learnt_again_to_the_bit(bundle: Bundle):
    topic = Topic()
    steps(topic, trainer_on(topic, bundle, 1), 0, 100)
    verdict = judged(topic, bundle)
    assert verdict.compared["vectors of rows"] > 30 and verdict.furthest == 0


def test_where_a_step_ended_that_published_nothing_is_found(bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    topic = Topic()
    learner = trainer_on(topic, bundle, 1)
    steps(topic, learner, 0, 50)
    with monkeypatch.context() as patch:
        patch.setattr(incremental, "PUBLISH_MOVE", 1e9)
        silent = learner.learn(list(enumerate(EXAMPLES[50:53], 50)), 9.5, evaluate=False).rows
        patch.setattr(
            incremental, "PUBLISH_MOVE", -1.0
        )  # no row waits afterwards, so the progress does not tell either
        topic.publish(learner, learner.learn(list(enumerate(EXAMPLES[53:60], 53)), 11.0, evaluate=False).rows)
    assert silent == []
    steps(topic, learner, 60, 100)
    assert judged(topic, bundle).furthest == 0
    monkeypatch.setattr(relearnt, "MOST_TRIED", 0)
    assert judged(topic, bundle).furthest > 0, "as one step it is another one"


def test_a_trainer_that_dies_costs_nothing_that_counts_as_a_difference(bundle: Bundle):
    """It has learnt two steps that it could not publish."""
    topic = Topic()
    steps(topic, trainer_on(topic, bundle, 1), 0, 50)
    second = trainer_on(topic, bundle, 2)
    steps(topic, second, second.progress.next_offset, 100)
    assert second.epoch == 2 and judged(topic, bundle).differing == []


def test_one_example_in_a_hundred_that_is_learnt_twice_and_counted_once_is_a_difference(bundle: Bundle):
    topic = Topic()
    learner = trainer_on(topic, bundle, 1)
    steps(topic, learner, 0, 50)
    learner._trainer._step(learner._trainer.read([EXAMPLES[50]]))
    steps(topic, learner, 50, 100)
    assert any(f"row of {EXAMPLES[50].item_id}," in each for each in judged(topic, bundle).differing)


def test_a_step_that_leaves_one_example_out_is_a_difference(bundle: Bundle):
    topic = Topic()
    learner = trainer_on(topic, bundle, 1)
    steps(topic, learner, 0, 50)
    learner.begin_at(51)
    steps(topic, learner, 50, 100)
    assert any(f"row of {EXAMPLES[50].item_id}," in each for each in judged(topic, bundle).differing)
