"""Which examples a trainer passes over that cannot keep up."""

from __future__ import annotations

import numpy as np
import pytest

from streams.trainer.sampling import LEAST_SHARE, is_kept, share_kept

PLACES = 20_000


def test_a_trainer_that_keeps_up_learns_everything():
    """Its batches are not full, however old their examples look; or they are young."""
    assert share_kept(1e9, 600.0, is_full=False) == 1.0
    assert share_kept(600.0, 600.0, is_full=True) == share_kept(-5.0, 600.0, is_full=True) == 1.0
    assert all(is_kept(0, offset, 1.0) for offset in range(PLACES))


@pytest.mark.parametrize(("age_s", "share"), [(1200.0, 1 / 2), (6000.0, 1 / 10), (1e9, LEAST_SHARE)])
def test_of_examples_so_many_times_too_old_one_in_so_many_is_kept(age_s: float, share: float):
    assert share_kept(age_s, 600.0, is_full=True) == pytest.approx(share)
    kept = sum(is_kept(0, offset, share) for offset in range(PLACES)) / PLACES
    assert kept == pytest.approx(share, abs=4 * (share / PLACES) ** 0.5)


def test_the_same_examples_are_kept_at_every_reading_and_a_greater_share_keeps_them_too():
    kept = [{offset for offset in range(PLACES) if is_kept(0, offset, share)} for share in (0.1, 0.1, 0.3)]
    assert kept[0] == kept[1] < kept[2]


def test_the_sample_is_blind_to_what_comes_in_turns_and_to_the_partition():
    """A producer that writes items in turn has none of them left out, nor two partitions the same ones."""
    kept = np.array([is_kept(0, offset, 0.25) for offset in range(PLACES)])
    for period in (2, 3, 4, 7, 10, 16, 100):
        shares = [kept[first::period].mean() for first in range(period)]
        assert np.abs(np.array(shares) - 0.25).max() < 5 * (0.25 * 0.75 * period / PLACES) ** 0.5, period
    other = np.array([is_kept(1, offset, 0.25) for offset in range(PLACES)])
    assert (kept & other).mean() == pytest.approx(0.25**2, abs=0.01)


def test_shares_of_items_stay_as_they_are():
    rng = np.random.default_rng(1)
    items = (10 * rng.random(PLACES) ** 2).astype(int)
    kept = np.array([is_kept(0, offset, 0.2) for offset in range(PLACES)])
    whole, sample = (np.bincount(each, minlength=10) / len(each) for each in (items, items[kept]))
    assert sample == pytest.approx(whole, abs=0.03)
