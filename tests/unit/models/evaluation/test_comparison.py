from math import log2, sqrt

import numpy as np
import pytest

from models.evaluation.comparison import (
    even_edges,
    hits,
    log_rank,
    mean,
    paired,
    recall,
    recall_within,
    reciprocal_rank,
    short,
    signed,
    text_table,
)

MISS = -1


def test_a_mean_has_the_error_of_its_sample():
    estimate = mean([1.0, 0.0, 0.0, 1.0, 1.0])
    assert (estimate.value, estimate.n) == (0.6, 5)
    assert estimate.se == pytest.approx(sqrt(0.6 * 0.4 / 4))  # p (1 - p) / (n - 1)


def test_the_error_of_clusters_is_that_of_their_sums():
    # Sums of deviations from 0.5 by user: +1, -1, 0. sqrt(3/2 * 2) / 6.
    values, users = np.array([1, 1, 0, 0, 1, 0]), np.array([7, 7, 3, 3, 9, 9])
    assert mean(values, users).se == pytest.approx(sqrt(3) / 6)


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
        difference = paired(("a", np.where(ours, 0, MISS)), ("b", np.where(theirs, 0, MISS)), 1, users)
        covered += difference.low <= 0 <= difference.high
    assert 0.93 < covered / 1000 < 0.97


def test_recall_counts_ranks_below_k_and_a_miss_never():
    ranks = np.array([0, 9, 10, MISS, 3])
    assert hits(ranks, 10).tolist() == [1, 1, 0, 0, 1]
    assert recall(ranks, 10).value == 0.6
    assert recall(ranks, 100_000).value == 0.8


def test_reciprocal_rank_counts_from_one():
    assert reciprocal_rank(np.array([0, 3, MISS])).value == pytest.approx((1 + 1 / 4) / 3)


def test_log_rank_leaves_out_what_nobody_could_rank():
    estimate = log_rank(np.array([0, 3, 7, MISS]))
    assert estimate.value == pytest.approx((0 + log2(4) + log2(8)) / 3)
    assert estimate.n == 3


def test_no_cases_are_no_number():
    estimate = recall(np.empty(0, np.int64), 10)
    assert np.isnan(estimate.value) and np.isnan(estimate.se) and estimate.n == 0


def test_a_difference_is_taken_case_by_case():
    ours, theirs = np.array([0, 5, 0, 0, 50, MISS]), np.array([0, 50, 0, 50, 50, 50])
    difference = paired(("ours", ours), ("theirs", theirs), 10)
    assert (difference.won, difference.lost, difference.n, difference.clusters) == (2, 0, 6, 6)
    assert difference.value == pytest.approx(2 / 6)
    assert difference.se == pytest.approx(sqrt((2 * (2 / 3) ** 2 + 4 * (1 / 3) ** 2) / 5 / 6))
    assert difference.z == pytest.approx(2 / sqrt(2))  # McNemar
    assert difference.high - difference.value == pytest.approx(2.5706 * difference.se, rel=1e-4)  # t, 5 degrees
    assert not difference.is_significant


def test_a_recommender_against_itself_differs_by_nothing():
    ranks = np.arange(100)
    difference = paired(("a", ranks), ("a", ranks), 10)
    assert (difference.value, difference.low, difference.high, difference.z) == (0, 0, 0, 0)
    assert not difference.is_significant


def test_a_clear_difference_is_significant_and_changes_sign_with_the_order():
    good, bad = ("good", np.zeros(40, np.int64)), ("bad", np.where(np.arange(40) % 2, 0, MISS))
    assert paired(good, bad, 10).is_significant and paired(good, bad, 10).low > 0
    assert paired(bad, good, 10).high < 0


def test_ranks_of_other_cases_are_refused():
    with pytest.raises(ValueError, match="a has 3 queries and b 2"):
        paired(("a", np.zeros(3, int)), ("b", np.zeros(2, int)), 10)


def test_one_cluster_has_no_error():
    assert np.isnan(mean([1.0, 0.0], np.array([4, 4])).se)


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


def test_a_table_is_in_line():
    assert text_table(["name", "R@10"], [["ease", ".1"], ["popular", ".061"]]) == (
        "name     R@10\nease       .1\npopular  .061"
    )
