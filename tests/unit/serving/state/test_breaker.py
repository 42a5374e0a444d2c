from __future__ import annotations

from serving.state.breaker import Breaker


def test_a_failure_pauses_and_the_pause_ends() -> None:
    breaker = Breaker(wait_s=0.5)
    assert breaker.reason(1000) is None
    breaker.failed(1000, "down")
    assert breaker.reason(1499) == "down"
    assert breaker.reason(1500) is None


def test_failures_in_a_row_double_the_pause_up_to_its_bound() -> None:
    breaker = Breaker(wait_s=0.5, most_s=1.5)
    for pause_ms in (500, 1000, 1500, 1500):
        breaker.failed(0, "down")
        assert breaker.reason(pause_ms - 1) == "down"
        assert breaker.reason(pause_ms) is None


def test_a_success_starts_anew() -> None:
    breaker = Breaker(wait_s=0.5)
    breaker.failed(0, "down")
    breaker.failed(0, "down")
    breaker.succeeded()
    assert breaker.reason(0) is None
    breaker.failed(0, "down")
    assert breaker.reason(500) is None


def test_a_clock_that_is_set_back_does_not_make_the_pause_an_hour() -> None:
    breaker = Breaker(wait_s=0.5)
    breaker.failed(3_600_000, "down")
    assert breaker.reason(3_600_100) == "down"
    assert breaker.reason(100) is None
