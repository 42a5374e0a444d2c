from __future__ import annotations

from serving.state.breaker import Breaker


def test_failures_in_a_row_double_the_pause_up_to_its_bound_and_a_success_starts_anew() -> None:
    breaker = Breaker(wait_s=0.5, most_s=1.5)
    assert breaker.reason(1000) is None
    for _ in range(2):
        for pause_ms in (500, 1000, 1500, 1500):
            breaker.failed(1000, "down")
            assert breaker.reason(1000 + pause_ms - 1) == "down"
            assert breaker.reason(1000 + pause_ms) is None
        breaker.failed(1000, "down")
        breaker.succeeded()
        assert breaker.reason(1000) is None


def test_a_clock_that_is_set_back_does_not_make_the_pause_an_hour() -> None:
    breaker = Breaker(wait_s=0.5)
    breaker.failed(3_600_000, "down")
    assert breaker.reason(3_600_100) == "down"
    assert breaker.reason(100) is None
