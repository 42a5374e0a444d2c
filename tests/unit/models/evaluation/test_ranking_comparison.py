"""Ratios over users with their errors."""

import numpy as np
import pytest

from models.evaluation.ranking_comparison import Ratio, Totals, difference, estimate


def ratio(above: list[float], below: list[float], scale: float = 1.0) -> Ratio:
    return Ratio(np.array(above, float), np.array(below, float), scale)


def test_the_parts_of_a_user_are_added_up():
    found = Totals(3).ratio(np.array([2, 0, 2]), np.array([1.0, 5.0, 2.0]), np.array([2.0, 5.0, 4.0]))
    assert (found.above.tolist(), found.below.tolist()) == ([5, 0, 3], [5, 0, 6])
    assert found.value == 8 / 11
    assert found.users == 2
    assert np.isnan(Totals(2).ratio(np.zeros(0, np.int64), np.zeros(0), np.zeros(0)).value)


def test_the_error_is_the_one_of_a_mean_over_users():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    found = estimate(ratio(values.tolist(), [1.0] * 400))
    assert found.value == pytest.approx(values.mean())
    assert found.se == pytest.approx(2 / np.sqrt(400), rel=0.15)
    assert found.low == pytest.approx(found.value - 1.96 * found.se, abs=0.03)
    assert found.high == pytest.approx(found.value + 1.96 * found.se, abs=0.03)


def test_a_users_impressions_share_their_luck():
    """A hundred impressions of each of ten users are ten draws and not a thousand."""
    rng = np.random.default_rng(1)
    of_user = rng.normal(size=10).repeat(100)
    users = np.arange(10).repeat(100)
    together = estimate(Totals(10).ratio(users, of_user, np.ones(1000)))
    apart = estimate(Totals(1000).ratio(np.arange(1000), of_user, np.ones(1000)))
    assert together.se > 5 * apart.se


def test_what_two_rankers_share_cancels_in_their_difference():
    common = np.random.default_rng(1).normal(0.0, 10.0, 300)
    ours, theirs = (ratio((common + shift).tolist(), [1.0] * 300) for shift in (0.5, 0.0))
    found = difference(ours, theirs)
    assert found.value == pytest.approx(0.5)
    assert found.se < 1e-6 < estimate(ours).se
    assert found.is_significant
    assert not difference(ours, ours).is_significant
    with pytest.raises(ValueError, match="300 users are not the same as 2"):
        difference(ours, ratio([1, 2], [1, 1]))


def test_the_same_seed_gives_the_same_errors_and_a_scale_widens_them():
    above, below = np.random.default_rng(2).random((2, 50))
    once = estimate(ratio(above.tolist(), below.tolist()), seed=3)
    assert estimate(ratio(above.tolist(), below.tolist()), seed=3) == once
    assert estimate(ratio(above.tolist(), below.tolist(), scale=2.0), seed=3).se == pytest.approx(2 * once.se)


def test_without_anything_to_divide_by_there_is_no_number():
    for empty in (ratio([], []), ratio([0, 0], [0, 0])):
        found = estimate(empty)
        assert np.isnan([found.value, found.se, found.low, found.high]).all()
        assert not found.is_significant
    some = estimate(ratio([1, 0, 0], [1, 0, 0]))
    assert some.value == 1, "draws without anybody who counts are left out"
    assert some.se == 0
