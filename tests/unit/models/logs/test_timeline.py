from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.logs.timeline import Timeline, first_of_pair


def test_a_window_holds_the_users_own_earlier_rows_oldest_first():
    timeline = Timeline(np.array([7, 3, 7, 7, 3, 7]))
    windows = timeline.before(np.array([5, 0, 4, 3]), 3)
    assert windows.tolist() == [[0, 2, 3], [-1, -1, -1], [-1, -1, 1], [-1, 0, 2]]


def test_the_first_of_each_pair_is_no_repeat():
    first = first_of_pair(np.array([1, 1, 2, 1, 2]), np.array([5, 6, 5, 5, 5]))
    assert first.tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("on_disk", [False, True])
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5) | st.just(2**31 - 1), st.integers(0, 6)), max_size=80),
    st.integers(1, 9),
    st.integers(1, 6),
)
def test_small_chunks_and_files_do_not_change_a_window(
    on_disk: bool, pairs: list[tuple[int, int]], chunk: int, length: int
) -> None:
    users, items = (np.array([pair[n] for pair in pairs], np.int64) for n in (0, 1))
    with TemporaryDirectory() as place:
        timeline = Timeline(users, Path(place) / "timeline.npy" if on_disk else None, chunk=chunk)
        windows = timeline.before(np.arange(len(users)), length)
        for row, window in enumerate(windows.tolist()):
            mine = [earlier for earlier in range(row) if users[earlier] == users[row]][-length:]
            assert window == [-1] * (length - len(mine)) + mine
        expected = [pair not in pairs[:row] for row, pair in enumerate(pairs)]
        assert first_of_pair(users, items).tolist() == expected
        assert first_of_pair(users, items, timeline=timeline).tolist() == expected
        visited = [rows.tolist() for rows in timeline.by_user()]
        assert sorted(row for rows in visited for row in rows) == list(range(len(users)))
        assert all(len(rows) <= chunk or len(set(users[rows].tolist())) == 1 for rows in visited)


def test_columns_of_32_bits_and_maps_are_taken_as_they_are(tmp_path: Path) -> None:
    users, items = np.full(3, 2**31 - 1, np.int32), np.full(3, 2**31 - 1, np.int32)
    np.save(tmp_path / "users.npy", users)
    mapped = np.load(tmp_path / "users.npy", mmap_mode="r")
    assert first_of_pair(mapped, items).tolist() == [True, False, False]
    assert Timeline(mapped, tmp_path / "timeline.npy").before(np.array([2]), 2).tolist() == [[0, 1]]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=40), st.integers(1, 5), st.sampled_from([1, 4]))
def test_windows_are_the_newest_counted_rows_of_the_user_before_any_row(
    log: list[tuple[int, bool]], length: int, chunk: int
) -> None:
    users, counted = (np.array([each[n] for each in log], int) for n in (0, 1))
    timeline = Timeline(users.astype(np.int32), counts=lambda rows: counted[rows] > 0, chunk=chunk)
    found = timeline.before(np.arange(len(users)), length).tolist()
    rows = [row for part in timeline.by_user() for row in part.tolist()]
    assert rows == [row for _, row in sorted((user, row) for row, (user, counts) in enumerate(log) if counts)]
    asked, before = (grid.ravel() for grid in np.meshgrid(np.arange(5), np.arange(len(log) + 1)))
    which, past = timeline.all(asked, before)
    newest = timeline.newest(asked, before, length)
    for place, (user, row) in enumerate(zip(asked.tolist(), before.tolist(), strict=True)):
        mine = [n for n in range(row) if counted[n] and users[n] == user]
        window = [-1] * (length - len(mine[-length:])) + mine[-length:]
        assert past[which == place].tolist() == mine
        assert timeline.count(asked, before)[place] == len(mine)
        assert newest[place].tolist() == window
        assert row == len(log) or users[row] != user or found[row] == window
