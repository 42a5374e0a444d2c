import numpy as np
import pytest

from models.retrieval.popularity import Popularity
from models.retrieval.refresh import FALL, LEFT, RefreshSchedule

HALF_LIFE = 40.0


def watch(popularity: Popularity, row: int, times: int = 1, schedule: RefreshSchedule | None = None) -> None:
    popularity.add(np.full(times, row))
    if schedule is not None:
        schedule.watched(np.full(2, row))


def start() -> tuple[Popularity, RefreshSchedule]:
    popularity = Popularity.empty(30, HALF_LIFE)
    return popularity, RefreshSchedule(popularity)


def height(popularity: Popularity, row: int) -> float:
    """Log popularity, but for what all items have in common."""
    rows = np.array([row])
    return float(np.log(popularity.counts(rows) + popularity.prior(rows))[0])


@pytest.mark.parametrize("watches", [1, 5, 60])
def test_what_is_published_of_a_resting_row_is_never_off_by_more_than_a_fall_and_nearly_right_in_the_end(watches: int):
    popularity, schedule = start()
    watch(popularity, 2, 20_000)  # then what every item is granted stays much the same
    watch(popularity, 1, watches, schedule)
    published, highest, times, off = height(popularity, 1), height(popularity, 1), 0, [0.0]
    for _ in range(1000):
        watch(popularity, 2)
        if 1 in schedule.due(10):
            published, times = height(popularity, 1), times + 1
        off.append(published - height(popularity, 1))
    assert max(off) < FALL + 0.02
    assert off[-1] < LEFT + 0.05
    assert 1 <= times <= (highest - height(popularity, 1)) / FALL + 1


def test_the_first_refresh_comes_when_the_count_has_fallen_so_far():
    """A count of 1 beside a prior of 5 x 2 / 50 = .2: it falls to 1.2 exp(-.35) - .2 = .6456 in 25.3 events."""
    popularity, schedule = start()
    popularity.add(np.arange(20))
    schedule.due(10)
    watch(popularity, 25, 25)
    assert 19 not in schedule.due(100)
    watch(popularity, 25)
    assert 19 in schedule.due(100)


def test_the_schedule_is_never_longer_than_the_catalogue():
    popularity, schedule = start()
    schedule.due(10)
    for row in [1, 2, 3] * 50:
        watch(popularity, row, schedule=schedule)
    assert len(schedule._heap or ()) == 3


def test_a_row_watched_meanwhile_is_not_due_and_after_its_last_watch_it_is_again():
    popularity, schedule = start()
    for _ in range(100):
        watch(popularity, 1, schedule=schedule)
        assert len(schedule.due(10)) == 0
    watch(popularity, 2, 20)
    assert 1 not in schedule.due(10)
    watch(popularity, 2, 5)
    assert 1 in schedule.due(10)


def test_refreshes_are_limited_and_none_is_lost():
    popularity, schedule = start()
    popularity.add(np.arange(20))
    schedule.due(0)
    watch(popularity, 25, 40)
    first, rest = schedule.due(7), schedule.due(100)
    assert len(first) == 7
    assert set(first.tolist()) | set(rest.tolist()) == set(range(20))
    assert len(schedule.due(100)) == 0


def test_items_that_were_popular_before_the_release_are_due_too():
    """Their number in the index ages like any other, though no watch has passed through this schedule."""
    popularity, _ = start()
    watch(popularity, 7, 50)
    schedule = RefreshSchedule(popularity)
    assert len(schedule.due(10)) == 0
    watch(popularity, 2, 25)
    assert 7 in schedule.due(10)


def test_a_restart_does_not_bring_all_rows_at_once():
    popularity, _ = start()
    popularity.add(np.arange(30))
    watch(popularity, 0, 100)
    assert len(RefreshSchedule(popularity).due(1000)) == 0
