"""The sequential sample-ratio check: by hand, silent when all is well, loud when viewers are missing."""

import math

import numpy as np
import pytest

from models.experiments.sample_ratio import ALPHA, CONCENTRATION, is_off, log_bayes_factor


def test_the_first_viewer_tells_nothing():
    """One viewer of the control: both explain it alike, (100 * .5) / 100 over .5; a second one of the same a little."""
    assert log_bayes_factor([0, 0], [0.5, 0.5]) == 0
    assert log_bayes_factor([1, 0], [0.5, 0.5]) == pytest.approx(0, abs=1e-9)
    half = CONCENTRATION / 2
    two = half / CONCENTRATION * (half + 1) / (CONCENTRATION + 1)
    assert log_bayes_factor([2, 0], [1, 1]) == pytest.approx(math.log(two / 0.25))


def test_of_good_experiments_hardly_any_is_ever_found_off_at_any_look():
    rng, off = np.random.default_rng(3), 0
    for _ in range(400):
        counts = np.cumsum(rng.multinomial(200, [0.2, 0.3, 0.5], 25), axis=0)
        off += any(is_off(look.tolist(), [0.2, 0.3, 0.5]) for look in counts)
    assert off / 400 <= ALPHA + 0.01


@pytest.mark.parametrize("lost", [0.05, 0.2])
def test_viewers_that_are_missing_from_one_variant_are_found(lost: float):
    rng = np.random.default_rng(4)
    viewers = 60_000 if lost < 0.1 else 6_000
    control = rng.binomial(viewers, 0.5)
    assert is_off([int(control), int((viewers - control) * (1 - lost))], [0.5, 0.5])
