"""Who is in which variant: the same for ever, evenly, and another split for another salt."""

import numpy as np
import pytest

from models.experiments.assignment import place_of, variant_of

USERS = [f"u{number}" for number in range(20_000)]


@pytest.mark.parametrize(("user", "place"), [("ann", 0.6805657275125332), ("bob", 0.6977494648099248)])
def test_a_viewers_place_is_the_same_in_every_process_and_release(user: str, place: float):
    """Whoever computes it elsewhere gets the same: the upper 53 bits of the first eight bytes of BLAKE2b."""
    assert place_of("s", user) == place


def test_each_variant_has_its_share_and_the_rest_is_in_none():
    numbers = [variant_of("salt", user, [0.2, 0.5]) for user in USERS]
    counts = [numbers.count(number) / len(USERS) for number in (0, 1, None)]
    assert counts == pytest.approx([0.2, 0.5, 0.3], abs=0.015)


def test_another_salt_splits_independently():
    both = np.array([[variant_of(salt, user, [0.5, 0.5]) for user in USERS] for salt in ("one", "two")])
    assert abs(np.corrcoef(both)[0, 1]) < 0.03
    assert len({place_of("one", user) for user in USERS}) == len(USERS)


def test_shares_of_one_leave_nobody_out_whatever_they_round_to():
    assert all(variant_of("salt", user, [0.1] * 10) is not None for user in USERS)


@pytest.mark.parametrize("user", ["", "ü" * 256, "a/b", "\ud800"])
def test_any_id_has_a_place(user: str):
    assert 0 <= place_of("salt", user) < 1
