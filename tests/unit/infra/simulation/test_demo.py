"""The arithmetic of the demo's scenes, by hand; that its claims hold is what running it says."""

import numpy as np
import polars as pl
import pytest

from infra.simulation.demo_context import SHOWN
from infra.simulation.demo_freshness import quantiles
from infra.simulation.demo_newcomer import Advantage, advantage, place_of, together
from infra.simulation.demo_ranking import Measured, gain_of, three_orders
from infra.simulation.demo_session import COMPANIONS, LEAST_VIDEOS, LEAST_WATCHES, companions_of
from nextwatch_client import Recommended, RecommendReply


def candidates(scores: list[float]) -> list[Recommended]:
    return [Recommended(f"i{n}", n, "two_tower", score, 1.0) for n, score in enumerate(scores, start=1)]


def test_all_orders_are_of_the_same_candidates() -> None:
    true_s = np.concatenate([np.full(SHOWN, 6.0), np.full(SHOWN, 2.0)])
    best_first = candidates([float(-n) for n in range(2 * SHOWN)])
    best_last = candidates([float(n) for n in range(2 * SHOWN)])
    alike = candidates([1.0] * (2 * SHOWN))
    alike_s = dict.fromkeys((item.item_id for item in alike), 10.0)
    last_are_longer = alike_s | {item.item_id: 1000.0 for item in alike[SHOWN:]}
    assert three_orders(best_first, alike_s, true_s) == Measured(6.0, 6.0, 6.0)
    assert three_orders(best_last, alike_s, true_s) == Measured(6.0, 2.0, 2.0)
    assert three_orders(alike, last_are_longer, true_s) == Measured(6.0, 6.0, 2.0)


def test_the_gain_is_the_ratio_of_the_means_and_its_interval_is_seeded() -> None:
    ranked, retrieved = [3.0, 6.0, 9.0], [2.0, 5.0, 5.0]
    gain = gain_of(ranked, retrieved)
    assert gain.value == pytest.approx(0.5)
    assert gain.low <= gain.value <= gain.high
    assert gain == gain_of(ranked, retrieved)
    assert str(gain).startswith("6.00 s against 4.00 s, +50% [")


def test_viewers_who_gain_alike_leave_no_doubt_however_different_they_are() -> None:
    gain = gain_of([0.12, 1.2, 12.0, 120.0], [0.1, 1.0, 10.0, 100.0])
    assert (gain.low, gain.high) == (pytest.approx(0.2), pytest.approx(0.2))


def test_the_interval_holds_zero_where_there_is_no_gain_and_shrinks_with_viewers() -> None:
    rng = np.random.default_rng(2)
    few, many = (gain_of(*rng.exponential(5, (2, viewers)).tolist()) for viewers in (50, 5000))
    assert few.low < 0 < few.high
    assert few.high - few.low > 5 * (many.high - many.low)


def test_without_an_answer_there_is_no_gain_to_speak_of() -> None:
    with pytest.raises(ValueError, match="no viewer's answer was ranked"):
        gain_of([], [])


def test_a_place_is_that_by_retrieval_score_whatever_the_ranker_says() -> None:
    filled = Recommended("filled", 9, "trending", 9.0)
    reply = RecommendReply("r", (*candidates([1.0, 3.0, 2.0]), filled))
    assert [place_of(reply, name) for name in ("i1", "i2", "i3", "filled", "other")] == [3, 1, 2, None, None]


def test_an_advantage_is_certain_or_none_or_in_between_with_an_interval_that_covers_it() -> None:
    low, high = np.arange(10.0), np.arange(10.0) + 100
    assert advantage(low, high).value == 1.0 and advantage(high, low).value == 0.0
    same = advantage(np.full(8, 500.0), np.full(9, 500.0))
    assert (same.value, same.low, same.high) == (0.5, 0.5, 0.5)
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(400):
        found = advantage(rng.normal(size=40), rng.normal(0.5, 1.0, 40))  # in truth .638
        covered += found.low <= 0.638 <= found.high
    assert 0.91 <= covered / 400 <= 0.98


def test_the_99th_of_a_hundred_delays_is_one_that_there_was() -> None:
    assert quantiles([float(n) for n in range(1, 101)]) == (50.0, 99.0)


def test_companions_are_what_the_watchers_of_a_channel_watch_beyond_everybody() -> None:
    """Fans of a and of b watch the one's videos and the other's; the rest watch c; d has too few videos."""
    channel_of = {f"{name}{n}": name for name in "abc" for n in range(LEAST_VIDEOS)} | {"d0": "d"}
    rows = [(f"fan{n % 20}", f"{name}{n % LEAST_VIDEOS}") for name in "ab" for n in range(LEAST_WATCHES)]
    rows += [(f"other{n % 20}", f"c{n % LEAST_VIDEOS}") for n in range(LEAST_WATCHES)]
    rows += [("other1", "d0")] * LEAST_WATCHES
    found = companions_of(pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row"), channel_of)
    assert set(found) == {"a", "b", "c"}
    assert found["a"] == {"a", "b"} and "a" not in found["c"] and COMPANIONS > 1


def test_several_videos_say_more_than_one() -> None:
    one = Advantage(0.6, 0.5, 0.7)
    four = together([one, one, one, one])
    assert (four.value, four.low, four.high) == pytest.approx((0.6, 0.55, 0.65))
