"""Shares by several half-lives: by hand, and what backs off to what."""

from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.messages import Trending
from streams.trending.back_off import BACK_OFF, best_first, counts_by, decays, shares_of


def shares(*counts: tuple[float, ...], totals: tuple[float, ...] | None = None) -> list[float]:
    table = np.array(counts)
    return shares_of(table, np.array(totals) if totals else table.sum(axis=0)).tolist()


def test_a_share_is_that_of_the_fastest_smoothed_by_that_of_the_slower_and_a_quarter_of_all_time():
    m = BACK_OFF
    of_all_time = 30 / 40
    slower = (10 + m * of_all_time) / (12 + m)
    expected = 0.75 * (4 + m * slower) / (5 + m) + 0.25 * of_all_time
    assert shares((4, 10, 30), (1, 2, 10), totals=(5, 12, 40))[0] == pytest.approx(expected)


def test_with_much_to_go_by_the_present_decides_and_with_little_the_past():
    now, past = (1.0, 0.0), (0.0, 10.0)
    for scale, first in ((1000 * BACK_OFF, 0), (BACK_OFF / 1000, 1)):
        counts = np.array([(scale * now[0], 9.0), (scale * past[0] + 0.1 * scale, 10.0)])
        assert best_first(shares_of(counts, counts.sum(axis=0)), counts)[0] == first


def test_a_base_stands_in_where_all_time_is_too_little():
    counts, totals = np.array([(1.0, 1.0), (0.0, 0.0)]), np.array([1.0, 1.0])
    few = shares_of(counts, totals, np.array([0.1, 0.9]))
    many = shares_of(counts * 1e9, totals * 1e9, np.array([0.1, 0.9]))
    assert few[1] > few[0] and many[0] > many[1]


@given(st.lists(st.tuples(*[st.floats(0, 1e6)] * 3), min_size=1, max_size=20))
def test_shares_are_shares(counts):
    table = np.array([(a, a + b, a + b + c + 1) for a, b, c in counts])
    found = shares_of(table, table.sum(axis=0))
    assert (found > 0).all() and found.sum() == pytest.approx(1)


def test_equal_shares_are_told_apart_by_all_time_then_by_who_was_watched_later_then_by_who_came_later():
    counts = np.array([(0.0, 1.0, 5.0), (0.0, 2.0, 5.0), (0.0, 0.0, 6.0), (0.0, 2.0, 5.0)])
    assert best_first(np.full(4, 0.5), counts).tolist() == [2, 3, 1, 0]


def test_what_is_malformed_is_read_as_one_half_life():
    for slower, totals in (((1.0,),), (3.0, 4.0)), (((1.0, 2.0),), ()), ((), ()):
        message = Trending("global", 0, 1000, 10.0, (("a", 2.0), ("b", 1.0)), 0, (20.0,), slower, totals)
        counts, sums = counts_by(message, (10.0, 20.0, inf))
        assert counts.tolist() == [[2.0] * 3, [1.0] * 3] and sums.tolist() == [3.0] * 3


def test_of_a_watch_half_is_left_after_a_half_life_and_all_of_it_for_all_time():
    assert decays(20_000, (10.0, 20.0, inf)).tolist() == [0.25, 0.5, 1.0]
    assert decays(20_000, (0.0, inf)).tolist() == [0.0, 1.0]
