"""Predictions and what is said of them."""

import dataclasses

import numpy as np
import pytest

from models.ranking.impression_log import PAGE_MS, Delays
from models.ranking.item_statistics import MOST_FACTOR, PRIOR_S
from models.ranking.ranking_evaluation import Predictions, item_means, judge, pages_of, predict, rolling_factors
from models.ranking.ranking_examples import RankingExamples
from models.release.bundle import Bundle
from tests.unit.models.samples import START_MS, made_examples, small_exposures, small_log

HOUR_MS = 3_600_000


def shown(user: list[int], at_h: list[float], target_s: list[float], completed: list[bool]) -> RankingExamples:
    midnight_ms = START_MS - START_MS % HOUR_MS
    at_ms = midnight_ms + (HOUR_MS * np.array(at_h)).astype(np.int64)
    return dataclasses.replace(made_examples(target_s, completed), user=np.array(user), at_ms=at_ms)


def test_a_page_is_a_user_and_an_hour():
    pages = pages_of(shown([1, 1, 2, 1, 1], [0.1, 0.9, 0.2, 1.0, 24.1], [0] * 5, [False] * 5))
    assert pages[0] == pages[1]
    assert len(set(pages.tolist())) == 4
    assert PAGE_MS == HOUR_MS


def test_metrics_are_of_pages_and_of_users_by_hand():
    """User 1 has two pages; the score of the page decides there, the score of the user across them."""
    examples = shown([1, 1, 1, 2], [0.1, 0.2, 3.0, 0.1], [30, 0, 20, 5], [True, False, True, False])
    of_page, of_user = np.array([9.0, 3.0, 1.0, 5.0]), np.array([2.0, 3.0, 1.0, 5.0])
    found = judge(examples, Predictions(of_page, of_user))
    assert found["weighted_loss_page"].value == 0
    assert found["weighted_loss_user"].value == 1
    assert found["top1_s"].value == 30
    assert found["calibration"].value == pytest.approx(18 / 55)
    assert found["mae_s"].value == pytest.approx((21 + 3 + 19 + 0) / 4)
    assert found["gauc"].value == 0
    assert found["xauc"].value == pytest.approx(4 / 6)  # by seconds 30, 20, 5, 0: 20 is behind 5 and 0
    assert (found["mae_s"].users, found["weighted_loss_page"].users) == (2, 1)


def test_a_rolling_factor_knows_only_closed_impressions_by_hand():
    """A day's half-life; the window is one hour."""
    examples = shown([1, 1, 1, 1], [0, 0.5, 1.0, 24.0], [100, 600, 0, 0], [True] * 4)
    factors = rolling_factors(np.array([50.0, 50, 50, 50]), examples, Delays(HOUR_MS, 24 * HOUR_MS))
    assert factors[:3].tolist() == [1, 1, 1], "the first one closes at the third one's time, and not before it"
    age_h = np.array([24, 23.5, 23])
    weights = 2.0 ** -(age_h / 24)
    expected = (weights @ [100, 600, 0] + PRIOR_S) / (50 * weights.sum() + PRIOR_S)
    assert factors[3] == pytest.approx(expected)
    wild = rolling_factors(np.array([1e6, 50.0, 50, 50]), examples, Delays(HOUR_MS))
    assert wild[3] == 1 / MOST_FACTOR, "within the bounds of what is served"
    assert len(rolling_factors(np.zeros(0), shown([], [], [], []), Delays(HOUR_MS))) == 0


def test_the_baseline_is_the_items_mean_and_zero_where_there_is_none():
    examples = made_examples([1.0, 2.0], [True, True], numbers={"item_mean_s": [7.0, np.nan]})
    assert item_means(examples).tolist() == [7, 0]


def test_predictions_of_stored_features_are_the_same_in_blocks_of_any_size(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
):
    """Blocks cut requests in two."""
    examples = small_exposures(small_log(300, users=5, step_ms=60_000)).examples("all")
    whole = predict(bundle.ranker, examples)
    monkeypatch.setattr("models.ranking.ranking_evaluation.BLOCK", 7)
    np.testing.assert_allclose(predict(bundle.ranker, examples), whole, rtol=1e-5)
    assert np.isfinite(whole).all()
    assert len(predict(bundle.ranker, examples.take(np.arange(0)))) == 0


def test_some_examples_alone_are_predicted_as_among_all(bundle: Bundle):
    examples = small_exposures(small_log(200, users=5, step_ms=60_000)).examples("all")
    rows = np.array([3, 50, 51, 199])
    some = examples.take(rows)
    np.testing.assert_allclose(predict(bundle.ranker, some), predict(bundle.ranker, examples)[rows], rtol=1e-5)
    np.testing.assert_array_equal(some.target_s, np.asarray(examples.target_s)[rows])
    for name, named in some.ids.items():
        assert named.names is examples.ids[name].names
