from math import log2, sqrt

import numpy as np
import pytest

from models.evaluation.comparison import (
    Ratio,
    difference,
    estimate,
    even_edges,
    hits,
    log_rank,
    mean,
    paired,
    ratio_of,
    recall,
    recall_within,
    reciprocal_rank,
    short,
    signed,
)

MISS = -1


def test_a_mean_has_the_error_of_its_sample():
    found = mean([1.0, 0.0, 0.0, 1.0, 1.0])
    assert (found.value, found.n) == (0.6, 5)
    assert found.se == pytest.approx(sqrt(0.6 * 0.4 / 4))  # p (1 - p) / (n - 1)


def test_the_error_of_clusters_is_that_of_their_sums():
    # Sums of deviations from 0.5 by user: +1, -1, 0. sqrt(3/2 * 2) / 6.
    values, users = np.array([1, 1, 0, 0, 1, 0]), np.array([7, 7, 3, 3, 9, 9])
    assert mean(values, users).se == pytest.approx(sqrt(3) / 6)
    assert np.isnan(mean([1.0, 0.0], np.array([4, 4])).se), "one cluster has no error"


def test_cases_that_repeat_each_other_do_not_make_the_error_smaller():
    rng = np.random.default_rng(1)
    values = rng.random(50)
    once, thrice = mean(values), mean(np.repeat(values, 3), np.repeat(np.arange(50), 3))
    assert thrice.se == pytest.approx(once.se)
    assert mean(np.repeat(values, 3)).se < 0.6 * once.se


def test_the_interval_covers_the_truth_about_nineteen_times_in_twenty():
    rng = np.random.default_rng(3)
    users = np.repeat(np.arange(30), 4)
    covered = 0
    for _ in range(1000):
        taste = rng.normal(0, 0.8, 30)[users]
        ours, theirs = rng.normal(taste) < 0, rng.normal(taste * 0, 1) < 0  # both hit half of the cases
        found = paired(("a", np.where(ours, 0, MISS)), ("b", np.where(theirs, 0, MISS)), 1, users)
        covered += found.low <= 0 <= found.high
    assert 0.93 < covered / 1000 < 0.97


def test_recall_counts_ranks_below_k_and_a_miss_never():
    ranks = np.array([0, 9, 10, MISS, 3])
    assert hits(ranks, 10).tolist() == [1, 1, 0, 0, 1]
    assert recall(ranks, 10).value == 0.6
    assert recall(ranks, 100_000).value == 0.8
    nobody = recall(np.empty(0, np.int64), 10)
    assert np.isnan(nobody.value) and np.isnan(nobody.se) and nobody.n == 0, "no cases are no number"


def test_ranks_count_from_one_and_their_logarithm_leaves_out_what_nobody_could_rank():
    assert reciprocal_rank(np.array([0, 3, MISS])).value == pytest.approx((1 + 1 / 4) / 3)
    found = log_rank(np.array([0, 3, 7, MISS]))
    assert found.value == pytest.approx((0 + log2(4) + log2(8)) / 3)
    assert found.n == 3


def test_a_difference_is_taken_case_by_case():
    ours, theirs = np.array([0, 5, 0, 0, 50, MISS]), np.array([0, 50, 0, 50, 50, 50])
    found = paired(("ours", ours), ("theirs", theirs), 10)
    assert (found.won, found.lost, found.n, found.clusters) == (2, 0, 6, 6)
    assert found.value == pytest.approx(2 / 6)
    assert found.se == pytest.approx(sqrt((2 * (2 / 3) ** 2 + 4 * (1 / 3) ** 2) / 5 / 6))
    assert found.z == pytest.approx(2 / sqrt(2))  # McNemar
    assert found.high - found.value == pytest.approx(2.5706 * found.se, rel=1e-4)  # t, 5 degrees
    assert not found.is_significant
    with pytest.raises(ValueError, match="a has 3 queries and b 2"):
        paired(("a", np.zeros(3, int)), ("b", np.zeros(2, int)), 10)


def test_a_clear_difference_is_significant_changes_sign_with_the_order_and_there_is_none_to_oneself():
    good, bad = ("good", np.zeros(40, np.int64)), ("bad", np.where(np.arange(40) % 2, 0, MISS))
    assert paired(good, bad, 10).is_significant and paired(good, bad, 10).low > 0
    assert paired(bad, good, 10).high < 0
    found = paired(bad, bad, 10)
    assert (found.value, found.low, found.high, found.z) == (0, 0, 0, 0)
    assert not found.is_significant


def test_slices_hold_what_lies_between_their_edges():
    ranks, watched = np.array([0, MISS, 0, MISS, 0]), [1, 1, 2, 5, 9]
    slices = recall_within(ranks, 10, watched, [1, 2, 5, 9])
    assert [(part.low, part.high, part.estimate.value, part.estimate.n) for part in slices] == [
        (1, 2, 0.5, 2),
        (2, 5, 1.0, 1),
        (5, 9, 0.5, 2),  # the last edge belongs to it
    ]


def test_empty_slices_and_unknown_values_are_left_out():
    slices = recall_within(np.array([0, 0, 0]), 10, [1, np.nan, 99], [0, 2, 4, 50])
    assert [(part.low, part.estimate.n) for part in slices] == [(0, 1)]


def test_even_edges_put_as_many_into_each_slice():
    values = np.arange(101.0)
    assert even_edges(values, 4) == [0, 25, 50, 75, 100]
    assert even_edges(np.array([3.0, 3.0, np.nan]), 4)[0] == 3
    assert len(recall_within(np.zeros(3, int), 1, [3, 3, np.nan], even_edges(np.array([3.0, 3.0]), 4))) == 1
    assert even_edges(np.array([np.nan]), 4) == [] and recall_within(np.zeros(1, int), 1, [1], []) == []


def test_numbers_are_written_as_tables_of_shares_are_read():
    assert [short(0.106), short(1.0), short(-0.05), short(7.25)] == [".106", "1.000", "-.050", "7.250"]
    assert [signed(0.02), signed(-0.02)] == ["+.020", "-.020"]


def ratio(above: list[float], below: list[float], scale: float = 1.0) -> Ratio:
    return Ratio(np.array(above, float), np.array(below, float), scale)


def test_the_parts_of_a_user_are_added_up():
    found = ratio_of(3, np.array([2, 0, 2]), np.array([1.0, 5.0, 2.0]), np.array([2.0, 5.0, 4.0]))
    assert (found.above.tolist(), found.below.tolist()) == ([5, 0, 3], [5, 0, 6])
    assert found.value == 8 / 11
    assert found.users == 2
    assert np.isnan(ratio_of(2, np.zeros(0, np.int64), np.zeros(0), np.zeros(0)).value)


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
    together = estimate(ratio_of(10, users, of_user, np.ones(1000)))
    apart = estimate(ratio_of(1000, np.arange(1000), of_user, np.ones(1000)))
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
