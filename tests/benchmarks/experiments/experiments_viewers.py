"""Viewers of the simulated world, and what two rankers bring them: each by a list of its own, and by one that they
share.

A ranker's order is the true expectation of the seconds of each candidate, times noise of its own; the better ranker has
less noise, as much less as makes the wanted difference. What is watched of a list is drawn by the world's browsing
model, so viewers differ as they do there; what the better ranker brings is then brought to the wanted difference
exactly, by a factor near 1, since luck is left in any number of viewers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from infra.simulation.browsing_model import LOOK_ON, MOST_ANSWERS, look_down
from infra.simulation.population import (
    HOUR_MS,
    Videos,
    draw_watch_s,
    log_popularity,
    make_population,
    make_videos,
    mean_watch_s,
    start_chance,
)
from models.arrays import Doubles, Rows
from models.experiments.interleaving import team_draft

NOW_MS = 1_700_000_000_000
CHANNELS, VIDEOS, POPULAR = 40, 1500, 400
CANDIDATES, K = 40, 10
VISITS = 2.0  # more than the first, on average, by the viewer's activity
NOISE = 1.2  # of the worse ranker, in log seconds


class Visits(NamedTuple):
    """L lists that are asked for by U viewers: whose [L]; candidates, the chance to start each when it is looked at,
    its mean seconds and the rankers' luck with it [L, C]; when [L]."""

    user: Rows
    rows: Rows
    chance: Doubles
    mean_s: Doubles
    luck: tuple[Doubles, Doubles]
    at_ms: Rows


class Viewers(NamedTuple):
    """Seconds watched by each viewer under the worse and under the better ranker, and of an interleaved list the better
    one's picks less the worse one's. [U] each."""

    worse_s: Doubles
    better_s: Doubles
    preferred_s: Doubles


def make_viewers(seed: int, viewers: int, effect: float) -> Viewers:
    """`effect`: what the better ranker brings more, as a share of what the worse one does."""
    rng = np.random.default_rng([seed, 7])
    videos = _videos(seed, viewers, rng)
    visits = _visits(videos, rng, viewers)
    orders = [_order(visits, 0, NOISE), _order(visits, 1, _noise_of(visits, effect))]
    seconds = [_watched(videos, rng, visits, order) for order in orders]
    shared, teams = _shared(orders, seed)
    credit = _watched(videos, rng, visits, shared) * np.where(teams == 1, 1.0, -1.0)
    of = visits.user
    worse, better, preferred = (np.bincount(of, each.sum(1), viewers) for each in (*seconds, credit))
    return Viewers(worse, better * ((1 + effect) * worse.mean() / better.mean()), preferred)


def _videos(seed: int, viewers: int, rng: np.random.Generator) -> Videos:
    published = NOW_MS - rng.integers(0, 96 * HOUR_MS, VIDEOS)
    return make_videos(make_population(seed, viewers, CHANNELS), rng, np.sort(published))


def _visits(videos: Videos, rng: np.random.Generator, viewers: int) -> Visits:
    more = rng.poisson(VISITS * viewers * videos.population.user_activity)
    user = np.repeat(np.arange(viewers), 1 + more)
    popular = np.argsort(-log_popularity(videos, NOW_MS), kind="stable")[:POPULAR]
    rows = popular[np.argsort(rng.random((len(user), POPULAR), np.float32), axis=1)[:, :CANDIDATES]]
    at_ms = NOW_MS + rng.integers(0, 24 * HOUR_MS, len(user))
    shape, pairs = rows.shape, (np.repeat(user, CANDIDATES), rows.ravel(), np.repeat(at_ms, CANDIDATES))
    chance = start_chance(videos, *pairs, np.zeros(rows.size, np.int64)).reshape(shape)
    mean_s = mean_watch_s(videos, *pairs).reshape(shape)
    return Visits(user, rows, chance, mean_s, (rng.normal(size=shape), rng.normal(size=shape)), at_ms)


def _order(visits: Visits, ranker: int, noise: float) -> Rows:
    """The best K candidates of each list, as a ranker with so much noise sees them. [L, K]"""
    score = np.log(visits.chance * visits.mean_s) + noise * visits.luck[ranker]
    return np.argsort(-score, axis=1, kind="stable")[:, :K]


def _noise_of(visits: Visits, effect: float) -> float:
    """The noise with which the second ranker brings `effect` more than the first, by bisection of true expectations."""
    wanted = (1 + effect) * _expected_s(visits, _order(visits, 0, NOISE))
    low, high = 0.0, NOISE
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if _expected_s(visits, _order(visits, 1, middle)) > wanted else (low, middle)
    return low


def _expected_s(visits: Visits, order: Rows) -> float:
    """The true expectation of the seconds watched out of a list, mean of all lists."""
    chance, mean_s = (np.take_along_axis(each, order, 1) for each in (visits.chance, visits.mean_s))
    total, started = np.zeros(len(order)), np.zeros((len(order), MOST_ANSWERS))
    started[:, 0] = 1.0
    for place in range(order.shape[1]):
        own = chance[:, place, None]
        total += LOOK_ON ** (place + 1) * started.sum(1) * own[:, 0] * mean_s[:, place]
        started = started * (1 - own) + np.c_[np.zeros(len(order)), started[:, :-1]] * own
    return float(total.mean())


def _watched(videos: Videos, rng: np.random.Generator, visits: Visits, order: Rows) -> Doubles:
    """Seconds watched of each place. [L, K]"""
    _, started = look_down(rng, np.take_along_axis(visits.chance, order, 1))
    lists, places = np.nonzero(started)
    rows = np.take_along_axis(visits.rows, order, 1)[lists, places]
    watched = np.zeros(order.shape)
    watched[lists, places] = draw_watch_s(videos, rng, visits.user[lists], rows, visits.at_ms[lists])
    return watched


def _shared(orders: list[Rows], seed: int) -> tuple[Rows, Rows]:
    """Interleaved lists of the two orders, and whose pick each place is. [L, K], [L, K]"""
    first, second = (order.tolist() for order in orders)
    picks = [
        team_draft([str(each) for each in ours], [str(each) for each in theirs], K, seed + at)
        for at, (ours, theirs) in enumerate(zip(first, second, strict=True))
    ]
    shared = [
        [(ours, theirs)[pick.team][pick.place] for pick in each]
        for each, ours, theirs in zip(picks, first, second, strict=True)
    ]
    return np.array(shared), np.array([[pick.team for pick in each] for each in picks])
