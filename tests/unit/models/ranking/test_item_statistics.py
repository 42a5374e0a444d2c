"""Statistics as a server reads them: decayed to the moment, parts added up, forgotten rows gone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.ranking.item_statistics import MOST_FACTOR, PRIOR_S, ItemStatistics

HOUR_MS = 3_600_000
PARTS = 5
ROW_BYTES = 44
CHANGES = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.integers(0, PARTS - 1),
        st.integers(1, 50 * HOUR_MS),
        st.none() | st.tuples(*[st.floats(0.0, 1e6)] * 4),
    ),
    max_size=40,
)


def at(statistics: ItemStatistics, *names: str, now_h: float = 0.0) -> list[list[float]]:
    return statistics.at("item", names, np.full(len(names), round(now_h * HOUR_MS))).tolist()


def test_parts_are_decayed_each_from_its_own_time_and_added_up():
    statistics = ItemStatistics(10 * HOUR_MS, parts=2)
    statistics.set("item", "a", 0, 0, (8.0, 4.0, 80.0, 2.0))
    statistics.set("item", "a", 1, 10 * HOUR_MS, (1.0, 1.0, 10.0, 1.0))
    assert at(statistics, "a", "b", now_h=10) == [[5.0, 3.0, 50.0, 2.0], [0.0] * 4]


def test_what_is_moved_decays_from_then_on_and_what_was_never_set_stays_so():
    statistics = ItemStatistics(10 * HOUR_MS, parts=2)
    statistics.set("item", "a", 1, HOUR_MS, (8.0, 4.0, 80.0, 2.0))
    statistics.move(99 * HOUR_MS)
    assert at(statistics, "a", now_h=110) == [[4.0, 2.0, 40.0, 1.0]]
    assert [row[2:4] for row in statistics.rows()] == [(1, 100 * HOUR_MS)]


def test_a_removed_row_leaves_nothing_and_its_room_is_used_again():
    statistics = ItemStatistics(10 * HOUR_MS, parts=2)
    for part in (0, 1):
        statistics.set("item", "a", part, 1, (1.0, 0.0, 0.0, 0.0))
    statistics.remove("item", "a", 0)
    assert at(statistics, "a")[0][0] == pytest.approx(1.0)
    statistics.remove("item", "a", 1)
    statistics.remove("item", "never", 1)
    assert list(statistics.rows()) == []
    statistics.set("item", "b", 0, 1, (7.0, 0.0, 0.0, 0.0))
    assert at(statistics, "a", "b")[1][0] == pytest.approx(7.0)
    assert at(statistics, "a")[0] == [0.0] * 4
    assert statistics.nbytes == ROW_BYTES


@given(CHANGES)
def test_whatever_comes_in_which_order_the_numbers_are_those_of_all_parts_in_their_order(changes):
    """To the bit, as if each id had a place for each part."""
    statistics, known = ItemStatistics(10 * HOUR_MS, parts=PARTS), {}
    for name, part, as_of_ms, sums in changes:
        if sums is None:
            statistics.remove("item", name, part)
            known.pop((name, part), None)
        else:
            statistics.set("item", name, part, as_of_ms, sums)
            known[name, part] = as_of_ms, sums
    now_ms = np.full(3, 60 * HOUR_MS)
    total = np.zeros((3, 4))
    for part in range(PARTS):
        rows = [known.get((name, part), (0, (0.0,) * 4)) for name in "abc"]
        decay = np.exp2(-(now_ms - np.array([as_of_ms for as_of_ms, _ in rows])) / (10 * HOUR_MS))
        total += np.array([sums for _, sums in rows]) * decay[:, None]
    assert np.array_equal(statistics.at("item", "abc", now_ms), total)
    told = {(name, part): (as_of_ms, tuple(sums)) for _, name, part, as_of_ms, sums in statistics.rows()}
    assert told == known


@pytest.mark.parametrize("parts", [4, 64])
def test_memory_is_that_of_the_rows_and_not_of_the_partitions(parts):
    statistics = ItemStatistics(10 * HOUR_MS, parts=parts)
    for number in range(1000):
        statistics.set("item", f"item-{number}", number % parts, 1, (1.0, 0.0, 0.0, 0.0))
    assert statistics.nbytes == 1000 * ROW_BYTES


def test_an_item_that_is_forgotten_in_most_partitions_takes_no_more_than_it_needs_there():
    statistics = ItemStatistics(10 * HOUR_MS, parts=64)
    for part in range(64):
        statistics.set("item", "a", part, 1, (float(part), 0.0, 0.0, 0.0))
    assert statistics.nbytes == 64 * ROW_BYTES
    for part in range(63):
        statistics.remove("item", "a", part)
        assert statistics.nbytes < ROW_BYTES * 4 * (63 - part) and at(statistics, "a")[0][0] > 0
    assert statistics.nbytes == ROW_BYTES and list(statistics.rows()) == [("item", "a", 63, 1, [63.0, 0.0, 0.0, 0.0])]


def test_the_factor_is_watched_over_expected_within_bounds():
    statistics = ItemStatistics(10 * HOUR_MS)
    assert statistics.factor("v", 0) == 1.0
    statistics.set("calibration", "v", 0, 0, (1.0, 1.0, 3 * PRIOR_S, PRIOR_S))
    assert statistics.factor("v", 0) == pytest.approx(2.0)
    statistics.set("calibration", "v", 0, 0, (1.0, 1.0, 1e9, 0.0))
    assert statistics.factor("v", 0) == MOST_FACTOR


def test_a_part_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="no statistics of 'item' in part 3"):
        ItemStatistics(1.0, parts=2).set("item", "a", 3, 0, (0.0,) * 4)
