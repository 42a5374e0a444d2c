"""What another policy would have brought, against worlds in which it is known."""

import numpy as np
import pytest

from models.experiments.policy_value import DrawnPlaces, doubly_robust, effective_places, logged_value, snips

ITEMS = 6
WORTH = np.array([1.0, 2.0, 4.0, 8.0, 3.0, 30.0])  # seconds that an item brings on average
LOGGED = np.array([0.3, 0.25, 0.2, 0.1, 0.1, 0.05])
TARGET = np.array([0.05, 0.05, 0.1, 0.2, 0.2, 0.4])
TRUTH = float(TARGET @ WORTH)


def world(seed: int, model: np.ndarray, places: int = 4000) -> DrawnPlaces:
    rng = np.random.default_rng(seed)
    shown = rng.choice(ITEMS, places, p=LOGGED)
    watched = rng.exponential(WORTH[shown])
    policy_s = np.full(places, float(TARGET @ model))
    viewer = np.arange(places) // 4
    return DrawnPlaces(LOGGED[shown], TARGET[shown], watched, model[shown], policy_s, viewer)


def test_by_hand():
    places = DrawnPlaces(
        logged=np.array([0.5, 0.25]),
        target=np.array([0.5, 0.5]),
        watched_s=np.array([3.0, 9.0]),
        model_s=np.array([2.0, 6.0]),
        policy_s=np.array([4.0, 6.0]),
        viewer=np.array([0, 1]),
    )
    assert snips(places).value == pytest.approx((1 * 3 + 2 * 9) / 3)
    assert doubly_robust(places).value == pytest.approx(5 + (1 * 1 + 2 * 3) / 3)
    assert effective_places(places) == pytest.approx(9 / 5)
    assert logged_value(places).value == 6.0


@pytest.mark.parametrize("model", [WORTH, np.full(ITEMS, 5.0)], ids=["a model that is right", "one that knows nothing"])
def test_both_estimates_find_the_truth_and_the_intervals_hold_it_as_often_as_they_say(model: np.ndarray):
    runs = [world(seed, model) for seed in range(200)]
    for estimate in (snips, doubly_robust):
        found = [estimate(run) for run in runs]
        assert np.mean([each.value for each in found]) == pytest.approx(TRUTH, rel=0.02)
        assert 0.9 <= np.mean([each.low <= TRUTH <= each.high for each in found]) <= 0.99
    assert logged_value(runs[0]).value < 0.6 * TRUTH, "the average of what was drawn says nothing of it"


def test_a_good_model_makes_the_doubly_robust_estimate_the_narrower_one():
    places = world(1, WORTH)
    ours, theirs = doubly_robust(places), snips(places)
    assert ours.high - ours.low < 0.95 * (theirs.high - theirs.low)


def test_a_viewers_places_are_one_observation():
    """The same places, told twice of each viewer, make nothing more certain."""
    places = world(2, WORTH)
    twice = DrawnPlaces(*(np.concatenate([column, column]) for column in places))
    assert snips(twice) == pytest.approx(snips(places))
    assert doubly_robust(twice) == pytest.approx(doubly_robust(places))


def test_a_policy_that_shows_nothing_of_what_was_shown_cannot_be_judged():
    places = world(3, WORTH)._replace(target=np.zeros(4000))
    assert effective_places(places) == 0
    for estimate in (snips, doubly_robust):
        with pytest.raises(ZeroDivisionError):
            estimate(places)
