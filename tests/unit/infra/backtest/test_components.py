"""What a ranker earns by each component: every feature is of one, and exchanging what matters costs."""

import numpy as np
import pytest
import torch

from infra.backtest.components import COMPONENTS, earned, exchanged
from infra.platform.settings import Ranker
from models.ranking.features import FEATURES, numbers_of
from models.ranking.ranker_training import train_ranker
from tests.unit.models.samples import made_examples, scratch

ROWS = 600


def test_every_feature_is_of_exactly_one_component() -> None:
    named = [name for features in COMPONENTS.values() for name in features]
    assert sorted(named) == sorted(feature.name for feature in FEATURES)


def test_the_values_of_a_component_are_those_of_other_impressions_together_and_all_else_stays() -> None:
    names = ("duration_s", "length_mean_s", "hour", "age_h")
    values = {name: np.arange(50.0) + 100 * at for at, name in enumerate(names)}
    channels = [(f"c{row}",) for row in range(50)]
    examples = made_examples([1.0] * 50, [True] * 50, numbers=values, ids={"channel": channels})
    other = exchanged(examples, ("duration_s", "length_mean_s", "hour", "channel"), seed=1)
    columns = [feature.name for feature in numbers_of("impression")]
    duration, mean, age = (other.numbers["impression"][:, columns.index(name)] for name in names[:2] + names[3:])
    assert sorted(duration) == list(range(50)) and (duration != np.arange(50)).any()
    np.testing.assert_array_equal(duration + 100, mean)
    np.testing.assert_array_equal(other.ids["channel"].codes[:, 0] - 1, duration)
    np.testing.assert_array_equal(age, np.arange(50.0) + 300)
    hours = other.numbers["query"][:, [feature.name for feature in numbers_of("query")].index("hour")]
    assert sorted(hours) == list(np.arange(50.0) + 200) and (hours != np.arange(50.0) + 200).any()
    np.testing.assert_array_equal(examples.numbers["impression"][:, columns.index("duration_s")], np.arange(50))


@pytest.fixture
def one_thread() -> None:
    """Matrices this small are slower on several threads."""
    torch.set_num_threads(1)


@pytest.mark.usefixtures("one_thread")
def test_what_decides_earns_and_what_says_nothing_earns_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.evaluation.comparison.RESAMPLES", 50)
    rng = np.random.default_rng(2)
    good = rng.random(ROWS) < 0.5
    watched = np.where(good, 40.0, 1.0)
    ages, durations = np.where(good, 5.0, 50.0) + rng.random(ROWS), rng.uniform(50, 60, ROWS)
    examples = made_examples(watched, good, numbers={"age_h": ages, "duration_s": durations})
    settings = Ranker(hidden=(8,), members=1, epochs=1, dropout=0.0, completion=False, rate=0.01)
    ranker = train_ranker(examples, scratch(), settings=settings)
    found = earned(ranker, examples, examples)
    decides, nothing = found["statistics and age"], found["retrieval and sources"]
    assert decides["weighted_loss_user"].low > 0.1 and decides["xauc"].high < -0.1
    assert all(each.value == each.low == each.high == 0 for each in nothing.values())
    assert abs(found["length"]["weighted_loss_user"].value) < 0.05
