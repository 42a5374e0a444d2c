"""Statistics as a server reads them: decayed to the moment, parts added up, forgotten rows gone."""

import numpy as np
import pytest

from models.ranking.item_statistics import MOST_FACTOR, PRIOR_S, ItemStatistics

HOUR_MS = 3_600_000


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
    assert len(statistics._rows["item"]) == 1


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
