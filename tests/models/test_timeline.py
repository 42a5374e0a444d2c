import numpy as np

from models.timeline import Timeline, first_of_pair


def test_a_window_holds_the_users_own_earlier_rows_oldest_first():
    timeline = Timeline(np.array([7, 3, 7, 7, 3, 7]))
    windows = timeline.before(np.array([5, 0, 4, 3]), 3)
    assert windows.tolist() == [[0, 2, 3], [-1, -1, -1], [-1, -1, 1], [-1, 0, 2]]


def test_a_window_is_cut_to_its_length():
    assert Timeline(np.zeros(10, np.int64)).before(np.array([9]), 2).tolist() == [[7, 8]]


def test_no_window_reaches_its_own_row_or_later():
    rng = np.random.default_rng(1)
    users = rng.integers(0, 5, 200)
    windows = Timeline(users).before(np.arange(200), 7)
    assert (windows < np.arange(200)[:, None]).all()
    there = windows >= 0
    assert (users[windows] == users[:, None])[there].all()


def test_the_first_of_each_pair_is_no_repeat():
    first = first_of_pair(np.array([1, 1, 2, 1, 2]), np.array([5, 6, 5, 5, 5]))
    assert first.tolist() == [True, True, True, False, False]
