"""Examples that wait to be learnt together."""

from __future__ import annotations

from streams import topics
from streams.kafka.intake import Raw
from streams.messages import encode
from streams.trainer.gathered import Gathered, Read
from tests.unit.streams.trainer.test_learner import example


def read(*offsets: int) -> list[Read]:
    return [
        Read(Raw(topics.TRAINING_EXAMPLES, 0, at, 0, b"u", encode(example("item-1", at)), ()), example("item-1", at))
        for at in offsets
    ]


def raws(start: int, stop: int) -> list[Raw]:
    return [each.raw for each in read(*range(start, stop))]


def test_it_reaches_as_far_as_was_read_and_groups_meet_without_a_gap():
    gathered = Gathered()
    gathered.add(raws(3, 6), read(3, 5), now_s=1.0)  # 4 could not be read
    gathered.add(raws(6, 9), read(6, 7), now_s=2.0)  # nor 8
    assert (gathered.start, gathered.stop, gathered.waited_s(2.5)) == (3, 9, 1.5)
    groups = [([each.raw.offset for each in group], stop) for group, stop in gathered.take(3)]
    assert groups == [([3, 5, 6], 7), ([7], 9)]
    assert not gathered


def test_a_batch_of_which_nothing_could_be_read_is_passed_over_as_one():
    gathered = Gathered()
    gathered.add(raws(0, 2), [], now_s=1.0)
    assert gathered
    assert list(gathered.take(3)) == [([], 2)]
    gathered.add(raws(9, 10), read(9), now_s=7.0)
    assert (gathered.start, gathered.waited_s(7.0)) == (9, 0.0)
