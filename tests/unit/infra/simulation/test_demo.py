"""The demo's choices and the arithmetic of its scene about ranking, by hand; that it holds is what running it says."""

import numpy as np
import pytest

from infra.simulation.demo import LEAST_VIDEOS, LEAST_WATCHES, watched_channels
from infra.simulation.demo_ranking import SHOWN, Measured, gain_of, over_other, over_retrieval, two_orders
from streams.messages import Recommended


def candidates(scores: list[float]) -> list[Recommended]:
    return [Recommended(f"i{n}", n, "two_tower", score, 1.0) for n, score in enumerate(scores, start=1)]


def test_both_orders_are_of_the_same_candidates() -> None:
    true_s = np.concatenate([np.full(SHOWN, 6.0), np.full(SHOWN, 2.0)])
    best_first = candidates([float(-n) for n in range(2 * SHOWN)])
    best_last = candidates([float(n) for n in range(2 * SHOWN)])
    half = candidates([float(n % SHOWN) for n in range(2 * SHOWN)])
    assert two_orders(best_first, true_s) == Measured(6.0, 6.0)
    assert two_orders(best_last, true_s) == Measured(6.0, 2.0)
    assert two_orders(half, true_s) == Measured(6.0, 4.0)


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


def test_two_rankers_are_compared_on_the_viewers_that_both_answered() -> None:
    first = {"a": Measured(2.0, 1.0), "b": Measured(4.0, 2.0), "slow": Measured(90.0, 1.0)}
    second = {"b": Measured(5.0, 2.0), "a": Measured(4.0, 1.0)}
    assert over_retrieval(second).value == pytest.approx(2.0)
    assert over_other(second, first).value == pytest.approx(0.5)
    assert over_other(second, first).viewers == 2


def test_without_an_answer_there_is_no_gain_to_speak_of() -> None:
    with pytest.raises(ValueError, match="no viewer's answer was ranked"):
        over_retrieval({})


def channel_with(videos: int, watches: int, name: str) -> tuple[dict[str, str | None], dict[str, int]]:
    item_ids = [f"{name}-{n}" for n in range(videos)]
    return dict.fromkeys(item_ids, name), {item_ids[0]: watches}


def test_a_channel_counts_as_watched_with_enough_videos_and_enough_watches_of_them() -> None:
    channel_of: dict[str, str | None] = {"alone": None}
    watches = {"alone": 10 * LEAST_WATCHES, "gone": 7}
    for name, videos, watched in (
        ("liked", LEAST_VIDEOS, LEAST_WATCHES),
        ("small", LEAST_VIDEOS - 1, LEAST_WATCHES),
        ("ignored", LEAST_VIDEOS, LEAST_WATCHES - 1),
    ):
        more, counts = channel_with(videos, watched, name)
        channel_of, watches = channel_of | more, watches | counts
    assert watched_channels(channel_of, watches) == {"liked"}
