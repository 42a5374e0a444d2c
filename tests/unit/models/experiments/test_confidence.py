"""Confidence sequences: by hand, over all looks together, and the number of viewers that is promised."""

import math

import numpy as np
import pytest
from scipy.special import ndtri

from models.experiments.confidence import (
    LEAST,
    UNKNOWN,
    Moments,
    boundary,
    difference,
    mean,
    moments_of,
    predicted_viewers,
)

ALPHA, PLANNED = 0.05, 4000
LOOKS = range(2 * LEAST, PLANNED + 1, 100)


def test_moments_by_hand():
    assert moments_of([1, 2, 6]) == Moments(3, 3.0, 7.0)
    assert moments_of([5]) == Moments(1, 5.0, 0.0) and moments_of([]) == Moments(0, 0.0, 0.0)


def test_the_interval_by_hand():
    """n rho^2 = 2 log 20 + log(2 log 20 + 1) at the planned number; Theorem 2.2 with it, times the standard error."""
    scaled = 2 * math.log(20) + math.log(2 * math.log(20) + 1)
    wide = math.sqrt(2 * (scaled + 1) / scaled * math.log(math.sqrt(scaled + 1) * 20))
    assert boundary(PLANNED, ALPHA, PLANNED) == pytest.approx(wide) == pytest.approx(3.0352, abs=1e-4)
    found = difference(Moments(1000, 12.0, 4.0), Moments(3000, 10.0, 9.0), alpha=ALPHA, planned=PLANNED)
    width = wide * math.sqrt(4 / 1000 + 9 / 3000)
    assert found == pytest.approx((2.0, 2 - width, 2 + width))
    assert mean(Moments(PLANNED, 1.0, 16.0), alpha=ALPHA, planned=PLANNED).low == pytest.approx(
        1 - wide * 4 / math.sqrt(PLANNED)
    )


def test_below_the_least_number_of_viewers_nothing_is_said():
    few, many = Moments(LEAST - 1, 100.0, 1.0), Moments(10_000, 1.0, 1.0)
    for pair in ((few, many), (many, few)):
        assert difference(*pair, alpha=ALPHA, planned=PLANNED) == UNKNOWN
    assert not UNKNOWN.says_different


def test_it_is_wider_than_one_look_deserves_and_narrowest_relative_to_the_plan():
    widths = {planned: boundary(PLANNED, ALPHA, planned) for planned in (PLANNED // 50, PLANNED, PLANNED * 50)}
    assert min(widths, key=lambda planned: widths[planned]) == PLANNED
    assert min(widths.values()) > 1.96


def ever_different(rng: np.random.Generator, effect: float) -> tuple[bool, bool]:
    """Whether a look at growing numbers of viewers ever says so, by the sequence and by an interval for one look."""
    spread = rng.lognormal(0, 1, PLANNED)
    values = np.where(rng.random(PLANNED) < 0.3, 0.0, spread)
    variant = rng.random(PLANNED) < 0.5
    values = values * np.where(variant, 1 + effect, 1)
    ours = naive = False
    for size in LOOKS:
        own, theirs = moments_of(values[:size][variant[:size]]), moments_of(values[:size][~variant[:size]])
        found = difference(own, theirs, alpha=ALPHA, planned=PLANNED)
        ours |= found.says_different
        naive |= abs(found.value) > 1.96 * math.sqrt(own.variance / own.size + theirs.variance / theirs.size)
    return ours, naive


def test_of_variants_that_are_alike_at_most_five_in_a_hundred_ever_look_different():
    """Looked at 39 times each, of skewed seconds; intervals for one look would be wrong several times as often."""
    rng = np.random.default_rng(5)
    ours, naive = np.mean([ever_different(rng, 0.0) for _ in range(150)], axis=0)
    assert ours <= 0.05
    assert naive > 0.15


def test_a_true_difference_is_found_with_the_predicted_viewers_four_times_out_of_five():
    rng = np.random.default_rng(6)
    sample = np.where(rng.random(200_000) < 0.3, 0.0, rng.lognormal(0, 1, 200_000))
    effect = 0.25
    variances = (float((sample * (1 + effect)).var()), float(sample.var()))
    needed = predicted_viewers(effect * float(sample.mean()), variances, (0.5, 0.5), alpha=ALPHA)
    assert needed < PLANNED
    assert np.mean([ever_different(rng, effect)[0] for _ in range(60)]) >= 0.8


def test_twice_the_effect_needs_a_quarter_of_the_viewers_and_uneven_shares_need_more():
    even = predicted_viewers(1.0, (100.0, 100.0), (0.5, 0.5), alpha=ALPHA)
    assert predicted_viewers(2.0, (100.0, 100.0), (0.5, 0.5), alpha=ALPHA) == pytest.approx(even / 4, rel=0.01)
    assert predicted_viewers(1.0, (100.0, 100.0), (0.05, 0.05), alpha=ALPHA) == even, "of those who are in it"
    assert predicted_viewers(1.0, (100.0, 100.0), (0.1, 0.9), alpha=ALPHA) > 2 * even


@pytest.mark.parametrize("planned", [300, 4000, 1_000_000])
@pytest.mark.parametrize("effect", [0.3, 2.0])
def test_the_predicted_viewers_are_the_first_whose_interval_excludes_0(planned: int, effect: float):
    """By the intervals that are looked at, of the planned number; also where taking turns does not come to an end."""
    variances, power, alpha = (100.0, 60.0), 0.8, ALPHA / 3
    needed = predicted_viewers(effect, variances, (0.5, 0.5), alpha=alpha, planned=planned)
    spare = []
    for count in (needed, needed - 1):
        found = difference(
            *(Moments(count // 2, at, variance) for at, variance in zip((effect, 0.0), variances, strict=True)),
            alpha=alpha,
            planned=planned,
        )
        error = math.sqrt(sum(2 * variance / count for variance in variances))
        spare.append(effect - boundary(count, alpha, planned) * error - float(ndtri(power)) * error)
        assert found.low == pytest.approx(effect - boundary(count, alpha, planned) * error, abs=0.01)
    assert spare[0] >= 0 > spare[1]
    at_best = predicted_viewers(effect, variances, (0.5, 0.5), alpha=alpha)
    assert needed >= at_best
    assert predicted_viewers(effect, variances, (0.5, 0.5), alpha=alpha, planned=at_best) == at_best


def test_where_few_are_enough_as_many_are_predicted_as_are_looked_at():
    assert predicted_viewers(1000.0, (1.0, 1.0), (0.5, 0.5), alpha=ALPHA, planned=300) == 2 * LEAST
