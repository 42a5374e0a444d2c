"""The paper's weighted loss and calibration of one impression, by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.platform import metrics
from models.evaluation.ranking_metrics import pair_loss
from streams.join.metrics import RECENT, RankingQuality, pairs_of
from streams.join.rules import Tally
from streams.messages import ImpressionOutline, Outcome, ShownOutline


def closing(*items: tuple[float | None, float], ranked_by: str = "") -> Tally:
    """Pairs of expected and watched seconds, top first."""
    shown = tuple(
        ShownOutline(f"i{n}", n, "retrieval", expected_watch_s=expected) for n, (expected, _) in enumerate(items, 1)
    )
    outcomes = tuple(Outcome(f"i{n}", watched, watched >= 18) for n, (_, watched) in enumerate(items, 1))
    return Tally(ImpressionOutline("r", "u", 0, "s", "v", shown, ranked_by=ranked_by), outcomes, None, 0)


@pytest.mark.parametrize(
    ("items", "all_s", "misordered_s"),
    [
        ([(9, 30), (8, 0), (7, 0)], 30, 0),  # in order
        ([(7, 30), (8, 0), (9, 0)], 30, 30),
        ([(8, 30), (7, 0), (9, 0)], 30, 15),  # below one of two
        ([(8, 30), (8, 0)], 30, 15),  # a tie is half
        ([(5, 30), (6, 20), (5.5, 0)], 50, 30),  # the longer watch weighs more
        ([(5, 30), (9, 4)], 30, 30),  # who leaves at once has not watched
        ([(1, 30), (9, 20)], 0, 0),  # two watched items are no pair
        ([(1, 0), (9, 0)], 0, 0),
    ],
)
def test_seconds_of_the_watched_item_are_lost_where_an_unwatched_one_was_expected_to_hold_longer(
    items, all_s, misordered_s
):
    before = counted()
    RankingQuality().observe(closing(*items))
    assert [now - then for now, then in zip(counted(), before, strict=True)][:2] == [all_s, misordered_s]


def counted() -> list[float]:
    pairs = [metrics.RANKING_PAIRS.labels(what)._value.get() for what in ("all", "misordered")]
    return [*pairs, metrics.RANKING_EXPECTED._value.get(), metrics.RANKING_WATCHED._value.get()]


def test_impressions_are_counted_as_far_as_they_were_ranked_and_videos_up_to_the_cap():
    before, quality = counted(), RankingQuality()
    quality.observe(closing((10, 700), (20, 0), (None, 50)))
    quality.observe(closing((None, 50), (None, 0)))
    assert [now - then for now, then in zip(counted(), before, strict=True)] == pytest.approx([600, 600, 30, 600])
    assert metrics.RANKING_LOSS._value.get() == 1 and metrics.RANKING_CALIBRATION._value.get() == pytest.approx(0.05)


def test_the_order_of_a_rival_is_not_the_live_rankers():
    before = counted()
    RankingQuality().observe(closing((7, 30), (8, 0), ranked_by="v2"))
    assert counted() == before


def test_the_gauges_forget_old_impressions():
    quality = RankingQuality()
    quality.observe(closing((1, 30), (2, 0)))  # wrong
    for _ in range(RECENT):
        quality.observe(closing((20, 30), (2, 0)))  # right
    others = sum(math.exp(-n / RECENT) for n in range(RECENT))
    assert metrics.RANKING_LOSS._value.get() == pytest.approx(math.exp(-1) / (math.exp(-1) + others))
    assert metrics.RANKING_CALIBRATION._value.get() == pytest.approx(22 / 30, rel=0.01)


seconds = st.floats(0, 600) | st.sampled_from([0.0, 5.0, 20.0])


@given(st.lists(st.tuples(seconds, seconds, st.booleans()), max_size=20))
def test_the_loss_of_a_list_is_that_of_the_models_evaluation(ranked):
    columns = zip(*ranked, strict=True) if ranked else ((), (), ())
    expected_s, watched_s, watched = (np.array(column) for column in columns)
    loss = pair_loss(np.zeros(len(ranked), np.int64), expected_s, watched_s, watched.astype(bool))
    assert pairs_of(ranked) == pytest.approx((loss.weight.sum(), loss.misordered.sum()))
