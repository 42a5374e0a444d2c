"""Whether our clock is ahead is told from requests that cannot have waited, and from many of them."""

from serving.worker.clock_skew import ENOUGH, LEAST_S, ClockSkew

HOUR_MS = 3_600_000.0


def seen(*ages_ms: float, every_s: float = 0.5) -> float:
    skew = ClockSkew()
    for number, age_ms in enumerate(ages_ms):
        skew.observe(age_ms, number * every_s)
    return skew.ahead_ms


def test_a_clock_that_jumped_ahead_is_found_when_everything_looks_old():
    assert seen(*[HOUR_MS + 5] * ENOUGH) == HOUR_MS + 5


def test_a_moment_is_not_enough_to_tell():
    assert seen(*[HOUR_MS] * (ENOUGH - 1)) == 0
    assert seen(*[HOUR_MS] * ENOUGH, every_s=0.9 * LEAST_S / ENOUGH) == 0


def test_requests_that_have_waited_are_no_clock():
    """After an outage the first ones are old, those behind are not."""
    assert seen(*[60_000.0] * 5, *[4.0] * (ENOUGH - 5)) == 0
    assert seen(*[300.0] * ENOUGH) == 0, "a busy server"


def test_a_clock_that_is_right_again_is_believed_at_once():
    assert seen(*[HOUR_MS] * ENOUGH, 3.0) == 0


def test_clients_whose_clocks_are_ahead_of_ours_say_nothing():
    assert seen(*[-HOUR_MS] * ENOUGH) == 0
