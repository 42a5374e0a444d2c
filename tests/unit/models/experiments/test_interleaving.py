"""Team-draft interleaving: a list of both, fair to both."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.experiments.interleaving import credit, team_draft

ORDERS = st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=8)


def items(first: list[str], second: list[str], picks) -> list[str]:
    return [(first, second)[pick.team][pick.place] for pick in picks]


@given(first=ORDERS, second=ORDERS, most=st.integers(0, 8), seed=st.integers(0, 2**63 - 1))
def test_each_pick_is_the_teams_best_that_is_left_and_no_item_comes_twice(first, second, most, seed):
    picks = team_draft(first, second, most, seed)
    shown = items(first, second, picks)
    assert len(shown) == len(set(shown)) <= most
    for at, pick in enumerate(picks):
        order = (first, second)[pick.team]
        assert set(order[: pick.place]) <= set(shown[:at]), "what it liked better was there already"
    for round_ in range(0, len(picks) - 1, 2):
        assert picks[round_].team != picks[round_ + 1].team, "each has one pick of a round"


def test_two_equal_orders_are_that_order():
    assert items(list("abcd"), list("abcd"), team_draft(list("abcd"), list("abcd"), 4, 7)) == list("abcd")


def test_both_have_every_place_equally_often_so_orders_that_are_alike_are_credited_alike():
    teams = np.array(
        [[pick.team for pick in team_draft(list("abcdef"), list("ghijkl"), 6, seed)] for seed in range(2000)]
    )
    assert np.abs(teams.mean(axis=0) - 0.5).max() < 0.05


def test_credit_by_hand():
    assert credit(["new", "old", "", "new"], [10.0, 4.0, 99.0, 1.0], "new", "old") == 7.0
