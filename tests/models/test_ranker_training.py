import numpy as np
import polars as pl
import pytest
import torch

from infra.settings import Model
from models.bundle import Bundle
from models.features import FEATURES
from models.ranker import CAP_S, Ranker
from models.ranker_training import (
    LEAST_ROWS,
    Exposures,
    exposure_features,
    running_statistics,
    train_ranker,
    unseen_gaps,
)
from tests.models.samples import SETTINGS, small_exposures, small_log, small_source


def exposures_of_small(rows: int = 3000) -> Exposures:
    return small_exposures(small_log(rows))[0]


def fit(features: np.ndarray, watch_s: np.ndarray, settings: Model) -> Ranker:
    size = len(watch_s)
    everyone = np.zeros(size, np.int64)
    exposures = Exposures(everyone, everyone, everyone, watch_s.astype(np.float32), watch_s > 18, watch_s >= 0)
    catalogue = small_source().catalogue
    return train_ranker(features, exposures, np.arange(size), catalogue=catalogue, settings=settings)


def predict(ranker: Ranker, features: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return np.exp(ranker.net(torch.from_numpy(ranker.quantiles.encode(features))).numpy())


def test_the_odds_are_the_mean_watch_time_of_each_kind_of_impression(monkeypatch: pytest.MonkeyPatch):
    """Half of the impressions last 2 s on average, half 20 s, each watched at all in half of the cases."""
    rng = np.random.default_rng(1)
    kind = rng.integers(0, 2, 1000)
    watch_s = np.where(rng.random(1000) < 0.5, 0, np.where(kind == 1, 40.0, 4.0))
    features = np.full((1000, len(FEATURES)), np.nan, np.float32)
    features[:, 0] = kind
    monkeypatch.setattr("models.ranker_training.RATE", 0.03)
    ranker = fit(features, watch_s, Model(ranker_hidden=(8,), ranker_epochs=20))
    predicted = predict(ranker, features)
    for which in (0, 1):
        np.testing.assert_allclose(predicted[kind == which].mean(), watch_s[kind == which].mean(), rtol=0.1)


def test_it_starts_at_the_mean_watch_time():
    watch_s = np.full(LEAST_ROWS, 500.0)
    features = np.zeros((LEAST_ROWS, len(FEATURES)), np.float32)
    few_steps = fit(features, watch_s, Model(ranker_hidden=(8,), ranker_epochs=1))
    np.testing.assert_allclose(predict(few_steps, features), 500, rtol=0.3)


def test_the_same_seed_gives_the_same_ranker():
    exposures = exposures_of_small(600)
    features = np.random.default_rng(1).normal(size=(600, len(FEATURES))).astype(np.float32)
    one, other = (fit(features, exposures.watch_s, SETTINGS).to_arrays() for _ in range(2))
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


def test_too_few_rows_train_nothing():
    few = LEAST_ROWS - 1
    assert not fit(np.zeros((few, len(FEATURES)), np.float32), np.ones(few), SETTINGS).trained


def test_statistics_before_a_row_are_those_computed_by_hand():
    exposures = exposures_of_small(200)
    running = running_statistics(exposures)
    for row in (0, 17, 199):
        before = np.flatnonzero(exposures.rows[:row] == exposures.rows[row])
        by_hand = [
            len(before),
            exposures.watch_s[before].sum(),
            exposures.completed[before].sum(),
            row,
            exposures.watch_s[:row].sum(),
            exposures.completed[:row].sum(),
        ]
        np.testing.assert_allclose([column[row] for column in running], by_hand, rtol=1e-5)


def test_a_row_of_unknown_length_is_history_but_no_statistic():
    exposures, catalogue = small_exposures(small_log(300).with_columns(watch_s=None))
    assert (exposures.watch_s == 18).all()
    assert not exposures.timed.any()
    assert all((column == 0).all() for column in running_statistics(exposures))
    features = exposure_features(exposures, np.arange(300), catalogue)
    assert features[:, FEATURES.index("history_watches")].max() > 0


def test_a_very_long_watch_is_capped_as_a_target_and_whole_in_a_history():
    exposures, catalogue = small_exposures(small_log(300).with_columns(watch_s=5000.0, user_id=pl.lit("only")))
    features = exposure_features(exposures, np.arange(300), catalogue)
    assert features[-1, FEATURES.index("history_mean_s")] == 5000
    assert features[-1, FEATURES.index("item_mean_s")] == CAP_S
    assert (exposures.target_s == CAP_S).all()


def test_a_retrieval_score_is_given_only_to_rows_that_the_model_has_not_seen(bundle: Bundle):
    exposures = exposures_of_small()
    chosen = np.arange(1000, 3000)
    gap = unseen_gaps(bundle.model, exposures, chosen, since=2700)
    assert np.isnan(gap[:1700]).all()
    assert (gap[1700:] <= 0).all()
    completed = exposures.completed[chosen[1700:]]
    assert gap[1700:][completed].mean() > gap[1700:][~completed].mean()


@pytest.mark.parametrize("name", ["ranker_mae_s", "ranker_predicted_over_watched"])
def test_the_manifest_tells_how_the_ranker_did_on_rows_it_had_not_seen(bundle: Bundle, name: str):
    assert np.isfinite(bundle.manifest.metrics[name])
    assert bundle.manifest.metrics["ranker_mae_s"] < bundle.manifest.metrics["mean_mae_s"]
