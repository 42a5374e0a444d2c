"""A clock that jumps: nothing has passed, and no stamp is ahead of its time for it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.clock import LEAP_MS, Clock
from streams.join.watermark import IDLE_MS, Watermark

NOW_MS = 1_000_000_000
HOUR_MS = 3_600_000


def test_time_that_passes_passes():
    clock = Clock(NOW_MS)
    assert clock.look(NOW_MS + 700).look(NOW_MS + 1500).passed_ms == 1500
    assert clock.latest_ms == NOW_MS + 1500


def test_an_hour_forward_is_no_time_that_passed():
    clock = Clock(NOW_MS)
    clock.look(NOW_MS + 1000).look(NOW_MS + 1000 + HOUR_MS).look(NOW_MS + 2000 + HOUR_MS)
    assert clock.passed_ms == 2000
    assert clock.latest_ms == NOW_MS + 2000 + HOUR_MS


def test_an_hour_back_the_latest_time_goes_on_from_where_it_was():
    clock = Clock(NOW_MS)
    clock.look(NOW_MS - HOUR_MS).look(NOW_MS - HOUR_MS + 1000)
    assert clock.passed_ms == 1000
    assert clock.latest_ms == NOW_MS + 1000


@given(st.lists(st.integers(-2 * HOUR_MS, 2 * HOUR_MS)))
def test_nothing_goes_back_whatever_the_clock_does(steps):
    clock, now_ms = Clock(NOW_MS), NOW_MS
    before = clock.passed_ms, clock.latest_ms
    for step in steps:
        now_ms += step
        clock.look(now_ms)
        assert 0 <= clock.passed_ms - before[0] <= LEAP_MS
        assert clock.latest_ms >= max(before[1], now_ms)
        before = clock.passed_ms, clock.latest_ms


@pytest.mark.parametrize("jump_ms", [HOUR_MS, -HOUR_MS])
def test_a_jump_closes_no_window_and_holds_none_open(jump_ms: int):
    """Event time is where the events are, and goes on in silence at the pace of the clock, not by its jump."""
    watermark = Watermark(("shown", "watched"), NOW_MS)
    for topic in ("shown", "watched"):
        watermark.observe(topic, NOW_MS - 500, NOW_MS)
    now_ms = NOW_MS + jump_ms
    assert watermark.advance(("shown", "watched"), now_ms) == NOW_MS - 500, "there is more to read: it waits for that"
    assert watermark.advance((), now_ms) == NOW_MS - 500, "nobody has been silent yet"
    for second in range(1, 11):
        watermark.advance((), now_ms + 1000 * second)
    assert watermark.value_ms == NOW_MS - 500 + 10_000
    for topic in ("shown", "watched"):  # stamped by clocks that did not jump
        watermark.observe(topic, NOW_MS + 11_000, now_ms + 11_000)
    assert watermark.advance((), now_ms + 11_000 + IDLE_MS // 2) == NOW_MS + 11_000
