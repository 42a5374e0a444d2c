import numpy as np

from models.retrieval.popularity import Popularity
from models.retrieval.refresh import RefreshSchedule

HALF_LIFE = 40.0  # the first refresh after 10 events


def watch(popularity: Popularity, row: int, times: int = 1, schedule: RefreshSchedule | None = None) -> None:
    popularity.add(np.full(times, row))
    if schedule is not None:
        schedule.watched(np.full(2, row))


def start() -> tuple[Popularity, RefreshSchedule]:
    popularity = Popularity.empty(30, HALF_LIFE)
    return popularity, RefreshSchedule(popularity)


def test_a_resting_row_is_due_at_doubling_ages_and_then_at_rest():
    popularity, schedule = start()
    watch(popularity, 1, schedule=schedule)
    ages = []
    for age in range(1, 6000):
        watch(popularity, 2)
        ages += [age] * int(1 in schedule.due(10))
    assert ages == [10, 20, 40, 80, 160, 320, 640]  # at 32 half-lives it matters no more: not at 1,280


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
    watch(popularity, 2, 9)
    assert 1 not in schedule.due(10)
    watch(popularity, 2)
    assert 1 in schedule.due(10)


def test_refreshes_are_limited_and_none_is_lost():
    popularity, schedule = start()
    popularity.add(np.arange(20))
    schedule.due(0)
    watch(popularity, 25, 15)
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
    watch(popularity, 2, 12)
    assert 7 in schedule.due(10)


def test_a_restart_does_not_bring_all_rows_at_once():
    popularity, _ = start()
    popularity.add(np.arange(30))
    watch(popularity, 0, 100)
    assert len(RefreshSchedule(popularity).due(1000)) == 0
