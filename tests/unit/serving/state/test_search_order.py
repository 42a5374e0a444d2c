"""Who goes first: the size of the catalogue at the start, then who has been quicker."""

from __future__ import annotations

import pytest

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
