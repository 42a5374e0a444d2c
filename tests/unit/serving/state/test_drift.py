"""The gauges of drift: silent until enough is known, and each release is its own measure."""

import numpy as np
import pytest
from prometheus_client import REGISTRY

from serving.state.drift import EVERY, EXPECTED, TWO_TOWERS, AnswerDrift

RNG = np.random.default_rng(2)
CANDIDATES = 500


def batches(drift: AnswerDrift, version: str, mean: float, seconds: float, count: int = 30) -> None:
    for _ in range(count):
        scores = [RNG.normal(mean, 1, CANDIDATES).astype(np.float32) for _ in range(4)]
        expected_s = [np.full(CANDIDATES, seconds, np.float32)] * 4
        drift.observe(version, [*scores, np.zeros(0, np.float32)], expected_s)
    drift.show()


def gauge(name: str, score: str) -> float | None:
    return REGISTRY.get_sample_value(f"nextwatch_score_{name}", {"score": score})


@pytest.fixture
def drift() -> AnswerDrift:
    return AnswerDrift(first=30 * 4 * CANDIDATES // EVERY, recent=2000)


def test_scores_that_move_after_the_release_went_live_are_seen(drift):
    batches(drift, "v1", 0.0, 20.0)
    assert gauge("drift_psi", TWO_TOWERS) is None, "there is nothing to compare with the first ones yet"
    batches(drift, "v1", 0.0, 20.0)
    assert gauge("drift_psi", TWO_TOWERS) < 0.05
    assert gauge("drift_psi", EXPECTED) < 0.05
    batches(drift, "v1", 2.0, 20.0, count=200)
    assert gauge("drift_psi", TWO_TOWERS) > 0.25
    assert gauge("shift_deviations", TWO_TOWERS) == pytest.approx(2, abs=0.2)
    assert gauge("drift_psi", EXPECTED) < 0.05, "the ranker's have not moved"


def test_another_release_is_measured_by_its_own_first_scores(drift):
    batches(drift, "v1", 0.0, 20.0)
    batches(drift, "v1", 9.0, 20.0)
    batches(drift, "v2", 9.0, 60.0)
    assert gauge("drift_psi", TWO_TOWERS) is None and gauge("shift_deviations", EXPECTED) is None
    batches(drift, "v2", 9.0, 60.0)
    assert gauge("drift_psi", TWO_TOWERS) < 0.05
