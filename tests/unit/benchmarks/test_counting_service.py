"""The service that counts knows what it was told, shows nobody what they have watched, and explores what it should."""

from __future__ import annotations

import numpy as np
import pytest

from tests.benchmarks.selection.counting_service import (
    DAY_MS,
    NEW_MS,
    Arm,
    Belief,
    CountingService,
    Posterior,
    Stock,
    thompson_of_new,
    ucb_of_new,
)
from tests.benchmarks.selection.selection_newcomers import DRAWN, IN_DAYS, Month, found_in_time
from tests.benchmarks.selection.selection_scene import NOW_MS
from tests.benchmarks.selection.selection_service import K

USERS, STOCK = np.arange(30), Stock(400, 10)


def test_an_item_that_brings_what_was_expected_stays_average_and_one_that_brings_more_rises() -> None:
    service = CountingService(1, STOCK, days=1)
    service.promised_s[:2] = 600.0
    service.brought_s[:2] = 600.0, 1200.0
    average, better, unknown = service.posterior().mean()[:3]
    assert (average, unknown) == (1.0, 1.0)
    assert better == pytest.approx((2 + 1200 / 60) / (2 + 600 / 60))
    assert service.posterior().above(1.0)[1] > 0.95 > service.posterior().above(1.0)[0]


def test_what_is_shown_is_counted_and_never_shown_to_who_has_watched_it() -> None:
    service = CountingService(1, STOCK, days=1)
    for hour in range(6):
        watched = [set(service.memory.watched(user)) for user in USERS.tolist()]
        at = service._candidates(USERS, NOW_MS + hour)
        assert not any(known & set(own) for known, own in zip(watched, at.tolist(), strict=True))
        lists = service.serve(USERS, NOW_MS + hour, Arm())
        assert (lists.value_s > 0).all() and not lists.given.any()
    assert service.shown.sum() == 6 * len(USERS) * K
    assert sum(len(service.memory.watched(user)) for user in USERS.tolist()) > 30
    assert service.brought_s.sum() > 0 and not service.shown[STOCK.old :].any()  # nothing that is not out yet


def test_what_is_drawn_among_new_items_alone_is_new() -> None:
    now_ms = NOW_MS + DAY_MS
    plain, drawn = (CountingService(2, STOCK, days=1) for _ in range(2))
    plain.serve(USERS, now_ms, Arm())
    assert drawn.serve(USERS, now_ms, Arm(DRAWN, new_only=True)).given.mean() == pytest.approx(0.1)
    old = now_ms - drawn.videos.published_ms >= NEW_MS
    assert (drawn.shown[old] <= plain.shown[old]).all()
    assert drawn.shown[~old].sum() > plain.shown[~old].sum()


@pytest.mark.parametrize("belief", [thompson_of_new, ucb_of_new])
def test_what_is_not_new_is_believed_as_it_is_known(belief: Belief) -> None:
    posterior = Posterior(np.array([3.0, 3.0]), np.array([6.0, 6.0]))
    old, new = belief(posterior, np.array([False, True]), np.random.default_rng(1))
    assert old == 0.5 != new


def test_the_prior_is_what_the_counts_say() -> None:
    service = CountingService(3, Stock(3000, 10), days=1)
    rng = np.random.default_rng(3)
    truth, service.promised_s = rng.gamma(4, 1 / 4, len(service.shown)), np.full(len(service.shown), 2000.0)
    watches = rng.poisson(0.5 * truth * 2000 / 50)
    service.brought_s, service._squares = 50.0 * watches, 2500.0 * watches.sum()
    service.fit_prior()
    assert service.prior.watch_s == pytest.approx(50)
    assert service.prior.scale == pytest.approx(0.5, rel=0.05)
    assert service.prior.shape == pytest.approx(4, rel=0.25)


def test_good_items_are_found_in_time_or_not_at_all() -> None:
    days = IN_DAYS + 1
    quality, found = np.zeros(days * 20), np.ones(days * 20)  # the 20 of the first day have had IN_DAYS
    quality[:4], found[:4] = 1.0, [2.0, IN_DAYS, IN_DAYS + 1, np.inf]
    in_time = found_in_time(Month(np.zeros(days), np.zeros(days), found, found, quality))
    assert in_time.tolist() == [2.0, IN_DAYS, np.inf, np.inf]


def test_a_posterior_of_nothing_is_the_prior() -> None:
    rate = np.array([3.0, 6.0])
    posterior = Posterior(np.array([3.0, 3.0]), rate)
    assert posterior.mean().tolist() == [1.0, 0.5]
    assert posterior.of(np.array([1])).rate.tolist() == [6.0]
