"""Drift of scores and of rows: the numbers are those of a hand-made case, and what has not moved says so."""

import numpy as np
import pytest

from models.evaluation.drift import BINS, FadingMean, ScoreDrift, turned_and_grown

RNG = np.random.default_rng(1)


def drift_of(first, recent, batch: int = 500):
    drift = ScoreDrift(len(first), len(recent))
    drift.observe(first)
    for at in range(0, len(recent), batch):
        drift.observe(recent[at : at + batch])
    return drift.compared()


@pytest.mark.parametrize(
    ("mean", "deviation", "shift", "least", "most"),
    [(5, 2, 0.0, 0.0, 0.01), (7, 2, 1.0, 0.5, np.inf), (5, 4, 0.0, 0.25, np.inf)],
    ids=["the same", "a mean that moved by one deviation", "a spread that doubled"],
)
def test_a_distribution_that_moved_is_found_by_its_mean_and_one_that_spread_by_the_index(
    mean, deviation, shift, least, most
):
    found = drift_of(RNG.normal(5, 2, 20_000), RNG.normal(mean, deviation, 20_000))
    assert found.shift == pytest.approx(shift, abs=0.05)
    assert least <= found.psi < most


def test_the_index_is_the_sum_over_bins_of_the_difference_times_the_logarithm():
    """Half of the recent scores are in the lowest tenth of the first ones, half in the highest."""
    first = np.arange(1000.0)
    recent = np.r_[np.zeros(500), np.full(500, 999.0)]
    found = drift_of(first, RNG.permutation(recent), batch=1000)
    by_hand = 2 * (0.5 - 0.1) * np.log(0.5 / 0.1) + (BINS - 2) * (0.001 - 0.1) * np.log(0.001 / 0.1)
    assert found.psi == pytest.approx(by_hand, rel=0.02)


def test_nothing_is_said_before_enough_is_known():
    drift = ScoreDrift(100, 1000)
    drift.observe(RNG.normal(size=60))
    assert drift.compared() is None, "the first ones are not there yet"
    drift.observe(RNG.normal(size=60))
    drift.observe(RNG.normal(size=200))
    assert drift.compared() is None, "a fifth of the recent ones"
    drift.observe(RNG.normal(size=800))
    assert drift.compared() is not None


def test_old_scores_fade():
    drift = ScoreDrift(10_000, 10_000)
    drift.observe(RNG.normal(0, 1, 10_000))
    for _ in range(20):
        drift.observe(RNG.normal(3, 1, 1000))
    assert drift.compared().shift > 2
    for _ in range(60):
        drift.observe(RNG.normal(0, 1, 1000))
    assert abs(drift.compared().shift) < 0.1


def test_scores_that_are_not_finite_or_all_alike_say_nothing_and_break_nothing():
    drift = ScoreDrift(100, 100)
    drift.observe(np.r_[np.full(50, np.nan), np.ones(100)])
    for _ in range(5):
        drift.observe([np.inf, *np.ones(100)])
    assert drift.compared() == (pytest.approx(0, abs=0.01), 0)


def test_a_row_that_turned_and_grew_is_measured_and_a_row_of_zeros_is_not():
    released = np.array([[1, 0], [1, 0], [1, 0], [0, 0]], np.float32)
    rows = np.array([[1, 0], [0, 3], [-2, 0], [5, 5]], np.float32)
    turned, grown = turned_and_grown(rows, released)
    assert turned.tolist() == [0, 1, 2, 0] and grown.tolist() == [1, 3, 2, 1]


def test_the_fading_mean_follows():
    mean = FadingMean(100)
    assert mean.value is None
    mean.observe(np.zeros(100))
    mean.observe(np.empty(0))
    mean.observe(np.ones(500))
    assert mean.value == pytest.approx(1, abs=0.01)
