"""What a crash costs while rows wait: nothing is skipped and nothing counts twice, wherever it comes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from infra.platform.settings import Trainer
from models.release.bundle import Bundle
from streams.messages import ItemVector, decode, encode
from streams.trainer.learner import Keyed, Learner, Learnt, batches
from streams.trainer.progress import PROGRESS_KEY, Progress, WaitingRows
from tests.harness.traffic import total_of
from tests.unit.streams.trainer.test_learner import example, numbered

EVER = float("inf")
WAITING = Trainer(publish_s=3.0, batch=8, evaluate_share=0.0)


def test_a_row_waits_from_its_first_change_on_and_the_progress_stays_before_it():
    waiting, steps = WaitingRows(3.0, most=100), [Progress(10 * step, {0: step}) for step in range(9)]
    waiting.add([b"a", b"b"], steps[0], now_s=0.0)
    waiting.add([b"b", b"c"], steps[1], now_s=1.0)
    assert waiting.overdue(2.9, 20) == [] and waiting.told(steps[2]) == steps[0]
    assert waiting.overdue(3.0, 20) == [b"a", b"b"]
    waiting.discard(b"a")
    assert waiting.told(steps[2]) == steps[0], "b began to wait with the first step"
    waiting.discard(b"b")
    assert waiting.told(steps[2]) == steps[1]
    waiting.discard(b"c")
    assert waiting.told(steps[2]) == steps[2]


def test_no_row_waits_while_more_is_learnt_than_a_restart_may_learn_again():
    waiting = WaitingRows(EVER, most=100)
    waiting.add([b"a"], Progress(0), now_s=0.0)
    waiting.add([b"b"], Progress(50), now_s=0.0)
    assert [waiting.overdue(0.0, offset) for offset in (100, 101, 151)] == [[], [b"a"], [b"a", b"b"]]


def test_a_watched_row_that_has_moved_little_waits_and_a_new_items_row_goes_at_once(bundle: Bundle):
    learner = Learner(bundle, {}, WAITING, seed=1)
    rows = dict(learner.learn(numbered(example("item-1", 0), example("new", 1)), now_s=10.0).rows)
    assert b"new" in rows and b"item-1" not in rows
    assert progress_of(learner) == 0
    assert learner.due(12.9).rows == [] and progress_of(learner) == 0
    assert [key for key, _ in learner.due(13.0).rows] == [b"item-1"]
    assert progress_of(learner) == 2
    assert learner.due(EVER) == Learnt([])


def progress_of(learner: Learner) -> int:
    restarted = Learner.__new__(Learner)
    restarted._step, restarted.version = 0, learner.version
    restarted.restore(*learner.progress_row())
    return restarted.progress.next_offset


def stream(count: int, seed: int) -> list[tuple[int, object]]:
    """Examples of old items and new ones; some are there twice, as a history worker makes them after a crash."""
    rng, places = np.random.default_rng(seed), [0, 0]
    made = []
    while len(made) < count:
        partition = int(rng.integers(2))
        item = f"item-{rng.integers(12)}" if rng.random() < 0.8 else f"new-{rng.integers(6)}"
        made.append(example(item, places[partition], partition))
        places[partition] += 1
        if rng.random() < 0.1:
            made.append(made[int(rng.integers(max(0, len(made) - 5), len(made)))])
    return list(enumerate(made[:count]))


def run(bundle: Bundle, topic: list[Keyed], examples: list, *, batch: int) -> Learner:
    """A trainer that starts with these records of the topic and learns the rest, writing there."""
    learner = Learner(bundle, {}, WAITING, seed=1)
    for key, row in topic:
        learner.restore(key, None if row is None else decode(ItemVector, encode(row)))
    ahead = examples[learner.progress.next_offset :]
    for number, chunk in enumerate(batches(ahead, batch)):
        topic += learner.learn(chunk, now_s=float(number)).rows
        topic.append(learner.progress_row())
    return learner


@pytest.mark.parametrize("seed", range(3))
def test_after_a_crash_at_any_record_each_watch_counts_once(bundle: Bundle, seed: int):
    examples, rng = stream(90, seed), np.random.default_rng(seed)
    taken = {(each.partition, each.offset): each.item_id for _, each in examples}
    released = dict(zip(bundle.model.item_ids, bundle.model.popularity.totals().tolist(), strict=True))
    whole: list[Keyed] = []
    run(bundle, whole, examples, batch=4)
    for cut in sorted(rng.choice(len(whole), 12, replace=False).tolist()):
        topic = whole[:cut]
        for again in (int(rng.integers(1, 30)), 10**6):  # a second crash, then a run to the end
            learner = run(bundle, topic, examples[: cut + again], batch=int(rng.integers(2, 9)))
            topic = topic[: len(topic) - int(rng.integers(0, 6))] if again < 10**6 else topic
        topic += learner.due(EVER).rows
        newest = {key.decode(): row for key, row in topic if row is not None and key != PROGRESS_KEY}
        counted = Counter({item: round(total_of(row) - released.get(item, 0.0)) for item, row in newest.items()})
        assert +counted == Counter(taken.values()), f"after a crash at record {cut}"


def test_rows_of_before_that_do_not_say_what_they_have_learnt_are_taken_back(bundle: Bundle):
    learner = Learner(bundle, {}, Trainer(publish_s=0), seed=1)
    key, row = next(each for each in learner.learn(numbered(example("item-1", 0))).rows if each[0] == b"item-1")
    old = decode(ItemVector, encode(row)[:1].replace(b"\x98", b"\x97") + encode(row)[1:-1])  # an array of 7, not of 8
    assert old.learnt_to == 0 and old.state == row.state
    restarted = Learner(bundle, {}, Trainer(publish_s=0), seed=1)
    restarted.restore(key, old)
    assert dict(restarted.rows_of([key]))[key].vector == row.vector
    assert restarted.learn(numbered(example("item-1", 0))).duplicates == 0
