"""A user's state that goes to another partition: nothing of it passes for handled, corrected or counted there."""

import pytest

from streams.history.rules import Outcome, apply_watch
from streams.join.item_statistics import ItemStatistics
from streams.join.rules import advance
from streams.join.rules import apply_watch as join_watch
from streams.messages import JoinState, RankingExample, Source, StatisticsRow, UserHistory, Watch, decode, encode
from streams.partitions.moved_states import moved_history, moved_state
from tests.unit.streams.join.test_rules import GRACE_MS, HOME, RULES, Stream, watch

THERE = HOME + 1
CLOSED_MS = 10_000  # windows that are closed there


def moved(stream: Stream, closed_ms: int = CLOSED_MS, before: int = HOME) -> JoinState:
    state = moved_state(stream.state, before, closed_ms, RULES)
    assert state is not None
    return state


def counted_there(*tallies, mark: int = CLOSED_MS) -> float:
    """How much these add to a row of the partition that has counted up to a mark."""
    statistics = ItemStatistics(THERE, 1e9)
    statistics.restore(StatisticsRow("item", "a", THERE, 0, 0.0, 0.0, 0.0, 0.0, 0.0, (mark, -1)))
    for tally in tallies:
        statistics.count(tally)
    return sum(row.impressions + row.watches for row in statistics.publish(closed_ms=mark + 1) if row.id == "a")


def test_a_watch_at_a_small_offset_of_the_new_partition_is_no_replay():
    history = UserHistory("u", (Watch("a", 1, 20.0, None, True, "e", 70),), watch_offset=70)
    found = moved_history(history)
    assert found is not None and found.watches[0].event_id == "e"
    first = apply_watch(found, watch("b", 5), Source(THERE, 0, 0), keep=5, completed_s=18.0)
    assert first.outcome is Outcome.KEPT and first.example is not None and len(first.example.watches) == 1
    again = apply_watch(found, watch("a", 1, event_id="e"), Source(THERE, 0, 0), keep=5, completed_s=18.0)
    assert again.outcome is Outcome.DUPLICATE, "what its state held and its group had not committed comes again"


def test_of_a_user_who_was_erased_nothing_is_moved():
    assert moved_history(UserHistory("u", since_ms=9, watch_offset=3)) is None
    assert moved_state(JoinState("u", watch_offset=3, impression_offset=4), HOME, 0, RULES) is None


@pytest.mark.parametrize("compact", [True, False])
def test_a_correction_takes_the_place_of_the_example_that_was_made_before(compact):
    stream = Stream()
    stream.show("r", 0, "ab", offset=50)
    stream.watch(watch("a", 10, "r"), offset=70)
    stream.until(110)
    state = decode(JoinState, encode(moved(stream), compact=compact))
    step = join_watch(state, watch("b", 20, "r"), 0, watermark_ms=CLOSED_MS, partition=THERE, rules=RULES)
    (correction,) = (decode(RankingExample, encode(each)) for each in step.examples)
    (first,) = stream.examples
    assert (correction.partition, correction.offset) == (first.partition, first.offset) == (HOME, 50)
    assert correction.revision > first.revision
    assert [each.watched_s for each in correction.outcomes] == [20.0, 20.0]


def test_an_impression_that_is_moved_twice_keeps_where_it_was_read():
    stream = Stream()
    stream.show("r", 0, "a", offset=50)
    stream.state = moved(stream)
    assert moved(stream, before=THERE).impressions[0].partition == HOME


def test_a_window_that_is_open_is_counted_where_later_ones_are_closed_already():
    stream = Stream()
    stream.show("r", 0, "a", offset=50)
    step = advance(moved(stream), watermark_ms=CLOSED_MS + 1, partition=THERE, rules=RULES)
    assert counted_there(*step.tallies) == 1.0 and step.examples[0].partition == HOME
    before = advance(stream.state, watermark_ms=CLOSED_MS + 1, partition=THERE, rules=RULES)
    assert counted_there(*before.tallies) == 0.0, "as it was it would pass for counted"


def test_what_changed_within_the_grace_is_counted_where_later_ones_are_settled_already():
    stream = Stream()
    stream.show("r", 0, "a", offset=50)
    stream.until(110)
    stream.watch(watch("a", 20, "r"), offset=71)
    state = moved(stream)
    assert state.impressions[0].closes_ms + GRACE_MS > CLOSED_MS
    step = advance(state, watermark_ms=CLOSED_MS + 1, partition=THERE, rules=RULES)
    assert counted_there(*step.tallies) == 1.0


def test_what_is_due_later_than_what_is_closed_there_stays_as_it_is():
    stream = Stream()
    stream.show("r", CLOSED_MS, "a", offset=50)
    state = moved(stream)
    assert state.impressions[0].closes_ms == stream.state.impressions[0].closes_ms
    assert (state.watch_offset, state.impression_offset) == (-1, -1)
