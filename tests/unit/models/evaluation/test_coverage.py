import numpy as np
import pytest

from models.evaluation.coverage import Coverage

SHARES = np.log(np.array([0.4, 0.3, 0.2, 0.05, 0.05]))


def test_coverage_is_the_share_of_items_in_anybodys_list():
    coverage = Coverage(SHARES)
    coverage.add(np.array([[0, 1], [0, 2]]))
    coverage.add(np.array([[0, -1]]))
    estimate = coverage.coverage(10)
    assert (estimate.value, estimate.n) == (3 / 5, 3)
    # Without the first list or the second one item of five is lost, without the third none.
    lost = np.array([1, 1, 0]) / 5
    assert estimate.se == pytest.approx(np.sqrt(2 / 3 * np.square(lost - lost.mean()).sum()))


def test_an_item_of_two_lists_of_one_batch_or_of_two_is_lost_with_neither():
    together, apart = Coverage(SHARES), Coverage(SHARES)
    together.add(np.array([[0], [0]]))
    apart.add(np.array([[0]]))
    apart.add(np.array([[0]]))
    assert together.coverage(10).se == apart.coverage(10).se == 0


def test_only_the_first_k_count():
    coverage = Coverage(np.log(np.full(60, 1 / 60)))
    coverage.add(np.arange(60)[None])
    assert [round(60 * coverage.coverage(k).value) for k in (10, 50, 100)] == [10, 50, 60]


def test_popularity_is_the_mean_log_share_of_what_is_shown():
    coverage = Coverage(SHARES)
    assert coverage.coverage(10).value == 0 and coverage.coverage(10).n == 0
    assert np.isnan(coverage.popularity(10).value), "no lists are no number"
    coverage.add(np.array([[0, 1], [2, -1]]))
    first, second = (np.log(0.4) + np.log(0.3)) / 2, np.log(0.2)
    assert coverage.popularity(10).value == pytest.approx((first + second) / 2)
    assert coverage.popularity(10).se == pytest.approx(abs(first - second) / 2)
    assert coverage.top_share(10).value == 0.25  # the top of five items is item 0
