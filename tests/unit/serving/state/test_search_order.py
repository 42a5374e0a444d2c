"""Who goes first: the size at the start, then who has been quicker; and who has failed is left alone for a while."""

import pytest

from serving.state.breaker import Breaker
from serving.state.search_order import INDEX, MIRROR, RECENT, SMALL, SearchOrder


@pytest.mark.parametrize(("first", "is_mirror"), [("index", False), ("mirror", True)])
def test_what_the_settings_say_holds_whatever_was_measured(first: str, is_mirror: bool) -> None:
    order = SearchOrder(first)
    order.add(INDEX, 1.0 if first == "index" else 0.0, 1)
    order.add(MIRROR, 0.1, 1)
    assert order.is_mirror_first(10) is order.is_mirror_first(10**9) is is_mirror


def test_until_both_were_timed_the_size_decides() -> None:
    order = SearchOrder("auto")
    order.add(MIRROR, 9.0, 1)
    assert order.is_mirror_first(SMALL)
    assert not order.is_mirror_first(SMALL + 1)


def test_the_order_changes_only_when_the_other_is_clearly_quicker_and_one_slow_call_changes_nothing() -> None:
    order = SearchOrder("auto")
    for _ in range(RECENT):
        order.add(MIRROR, 0.004, 1)
        order.add(INDEX, 0.003, 1)
    assert order.is_mirror_first(10), "not clearly"
    for _ in range(RECENT):
        order.add(INDEX, 0.016, 8)
    order.add(INDEX, 5.0, 1)
    assert not order.is_mirror_first(10), "two milliseconds a query"
    for _ in range(RECENT):
        order.add(INDEX, 0.005, 1)
    assert not order.is_mirror_first(10), "it stays"
    for _ in range(RECENT):
        order.add(INDEX, 0.009, 1)
    assert order.is_mirror_first(10)


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
