"""The paper's weighted loss and calibration of one impression, by hand."""

import math

import pytest

from infra.platform import metrics
from streams.join.metrics import RECENT, RankingQuality
from streams.messages import Impression, Outcome, RankingExample, Shown


def example(*items: tuple[float | None, float]) -> RankingExample:
    """Pairs of expected and watched seconds, top first."""
    shown = tuple(Shown(f"i{n}", n, "retrieval", expected_watch_s=expected) for n, (expected, _) in enumerate(items, 1))
    outcomes = tuple(Outcome(f"i{n}", watched, watched >= 18) for n, (_, watched) in enumerate(items, 1))
    return RankingExample(Impression("r", "u", 0, "s", "v", shown), outcomes, 0, 0, 0)


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
    RankingQuality().observe(example(*items))
    assert [now - then for now, then in zip(counted(), before, strict=True)][:2] == [all_s, misordered_s]


def counted() -> list[float]:
    pairs = [metrics.RANKING_PAIRS.labels(what)._value.get() for what in ("all", "misordered")]
    return [*pairs, metrics.RANKING_EXPECTED._value.get(), metrics.RANKING_WATCHED._value.get()]


def test_impressions_are_counted_as_far_as_they_were_ranked_and_videos_up_to_the_cap():
    before, quality = counted(), RankingQuality()
    quality.observe(example((10, 700), (20, 0), (None, 50)))
    quality.observe(example((None, 50), (None, 0)))
    assert [now - then for now, then in zip(counted(), before, strict=True)] == pytest.approx([600, 600, 30, 600])
    assert metrics.RANKING_LOSS._value.get() == 1 and metrics.RANKING_CALIBRATION._value.get() == pytest.approx(0.05)


def test_the_gauges_forget_old_impressions():
    quality = RankingQuality()
    quality.observe(example((1, 30), (2, 0)))  # wrong
    for _ in range(RECENT):
        quality.observe(example((20, 30), (2, 0)))  # right
    others = sum(math.exp(-n / RECENT) for n in range(RECENT))
    assert metrics.RANKING_LOSS._value.get() == pytest.approx(math.exp(-1) / (math.exp(-1) + others))
    assert metrics.RANKING_CALIBRATION._value.get() == pytest.approx(22 / 30, rel=0.01)
