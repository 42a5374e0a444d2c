"""A service of the simulated world that knows people well and items by counts: what is left to explore is the items.

A simpler model than the product's, so that a month of lists takes seconds. What it expects of an item for a person is
what an average item of that channel and duration would bring this person, which it knows up to an error that stays (by
person and channel), times what the item has brought so far over what was expected of it: a Gamma prior around 1, and
seconds that count as so many watches of typical length. It has no towers and no trained ranker, and it forgets nothing.
The list is made by serving.request.reranking, as served.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy.special import gammaincc, gammaincinv

from infra.platform.settings import Selection
from infra.simulation.browsing_model import LOOK_ON, Memory, look_down
from infra.simulation.population import (
    HOUR_MS,
    Videos,
    affinity,
    draw_watch_s,
    make_population,
    make_videos,
    mean_watch_s,
    start_chance,
)
from models.arrays import Doubles, Flags, Floats, Rows
from serving.request.exploration import seed_of
from serving.request.reranking import Options, choose
from tests.benchmarks.selection.selection_scene import NOW_MS
from tests.benchmarks.selection.selection_service import CANDIDATES, OFF, K, values_of

DAY_MS = 24 * HOUR_MS
USERS, CHANNELS = 800, 96
NEW_MS = 7 * DAY_MS  # how long an item is new
ERROR = 0.5  # deviation of what is expected of a person and a channel, in log seconds
OPTIMISM = 0.9  # UCB goes by this quantile of the posterior


class Prior(NamedTuple):
    """Of what items bring over what was expected: Gamma with mean 1 and this `shape`; `watch_s` seconds tell as much as
    one watch, and `scale` is what all items together have brought over what was expected."""

    shape: float = 2.0
    watch_s: float = 60.0
    scale: float = 1.0


class Posterior(NamedTuple):
    """Gamma of each of N items."""

    shape: Doubles
    rate: Doubles

    def of(self, rows: Rows) -> Posterior:
        return Posterior(self.shape[rows], self.rate[rows])

    def mean(self) -> Doubles:
        return self.shape / self.rate

    def above(self, bar: float) -> Doubles:
        """The chance that an item brings more than so much of what was expected."""
        return np.asarray(gammaincc(self.shape, bar * self.rate))


# The factor of each candidate (its posterior, whether it is new) in the score that it is chosen by.
Belief = Callable[[Posterior, Flags, np.random.Generator], Doubles]


def mean(posterior: Posterior, new: Flags, rng: np.random.Generator) -> Doubles:
    return posterior.mean()


def thompson_of_new(posterior: Posterior, new: Flags, rng: np.random.Generator) -> Doubles:
    return np.where(new, rng.gamma(posterior.shape) / posterior.rate, posterior.mean())


def ucb_of_new(posterior: Posterior, new: Flags, rng: np.random.Generator) -> Doubles:
    return np.where(new, gammaincinv(posterior.shape, OPTIMISM) / posterior.rate, posterior.mean())


@dataclass(frozen=True)
class Arm:
    """A way to explore; `new_only`: the little shown that are drawn are new ones."""

    selection: Selection = OFF
    belief: Belief = mean
    new_only: bool = False


class Stock(NamedTuple):
    """Items: those that are there at the beginning, and how many come each day."""

    old: int
    new_a_day: int


class Lists(NamedTuple):
    """Of B lists: true expected seconds, and the share of their places that are not of the K best by expectation."""

    value_s: Doubles  # [B]
    given: Doubles  # [B]


class CountingService:
    """One way to explore, in its own copy of the world; what it counts of its N items, those to come included."""

    def __init__(self, seed: int, stock: Stock, days: int) -> None:
        population = make_population(seed, USERS, CHANNELS)
        rng = np.random.default_rng([seed, 2])
        count = stock.old + stock.new_a_day * days
        published = NOW_MS + ((np.arange(count) + 1 - stock.old) * DAY_MS) // stock.new_a_day
        self.stock = stock
        self.videos = make_videos(population, rng, published)
        self.plain: Videos = replace(  # an average item of that channel and duration
            self.videos, quality=np.zeros_like(self.videos.quality), latent=np.zeros_like(self.videos.latent)
        )
        self.errors = np.exp(rng.normal(0, ERROR, (USERS, CHANNELS)))
        self.memory, self.prior = Memory(USERS), Prior()
        self.shown, self.brought_s, self.promised_s = (np.zeros(count) for _ in range(3))
        self._squares = 0.0  # of the seconds of each watch
        self._rng, self._own_rng = (np.random.default_rng([seed, stream]) for stream in (3, 4))

    def posterior(self) -> Posterior:
        shape, watch_s, scale = self.prior
        return Posterior(shape + self.brought_s / watch_s, shape + scale * self.promised_s / watch_s)

    def fit_prior(self) -> None:
        """Take the prior from what was counted so far, by moments: of the items that were expected to bring a typical
        watch at least."""
        watch_s, scale = self._squares / self.brought_s.sum(), self.brought_s.sum() / self.promised_s.sum()
        expected = scale * self.promised_s / watch_s
        known = expected >= 1
        ratio = self.brought_s[known] / watch_s / expected[known]
        spread = max(0.1, float(ratio.var() - (1 / expected[known]).mean()))
        self.prior = Prior(1 / spread, watch_s, scale)

    def serve(self, users: Rows, now_ms: int, arm: Arm) -> Lists:
        """Show B people, all different, a list each, and count what they watch of it."""
        candidates = self._candidates(users, now_ms)  # [B, C]
        each_s = self._expected_s(users, candidates, now_ms)
        posterior, new = self.posterior().of(candidates), now_ms - self.videos.published_ms[candidates] < NEW_MS
        scores = (each_s * arm.belief(posterior, new, self._own_rng)).astype(np.float32)
        shown = np.where(new, self.shown[candidates], np.inf) if arm.new_only else self.shown[candidates]
        at = np.array(
            [
                _chosen(*of_list, seed_of(f"{user}/{now_ms}", 1), arm.selection)
                for user, *of_list in zip(users.tolist(), scores, shown, strict=True)
            ]
        )
        best = np.argsort(-each_s * posterior.mean(), axis=1)[:, :K]
        rows = np.take_along_axis(candidates, at, 1)
        value_s = self._show(users, rows, np.take_along_axis(each_s, at, 1), now_ms)
        given = np.array([np.isin(mine, theirs, invert=True).mean() for mine, theirs in zip(at, best, strict=True)])
        return Lists(value_s, given)

    def _candidates(self, users: Rows, now_ms: int) -> Rows:
        """The rows that each person would like most, of what is out and they have not watched. [B, C]"""
        liking = affinity(self.plain, users, np.full(len(users), now_ms)) + np.log(self.posterior().mean())  # [B, N]
        liking[:, self.videos.published_ms > now_ms] = -np.inf
        for own, user in zip(liking, users.tolist(), strict=True):
            own[self.memory.watched(user)] = -np.inf
        return np.asarray(np.argpartition(-liking, CANDIDATES, axis=1)[:, :CANDIDATES])

    def _expected_s(self, users: Rows, rows: Rows, now_ms: int) -> Doubles:
        """Seconds that an average item in the place of each would bring, as far as the service knows. [B, C]"""
        who, what, when = _flat(users, rows, now_ms)
        started = start_chance(self.plain, who, what, when, self.memory.times_passed(who, what))
        each_s = started * mean_watch_s(self.plain, who, what, when) * self.errors[who, self.videos.channel[what]]
        return each_s.reshape(rows.shape)

    def _show(self, users: Rows, rows: Rows, each_s: Doubles, now_ms: int) -> Doubles:
        """Count what is watched; the true expected seconds of each list. rows, each_s [B, K] -> [B]"""
        who, what, when = _flat(users, rows, now_ms)
        chance = start_chance(self.videos, who, what, when, self.memory.times_passed(who, what)).reshape(rows.shape)
        value_s = values_of(chance, mean_watch_s(self.videos, who, what, when).reshape(rows.shape))
        looked, started = (flags.ravel() for flags in look_down(self._rng, chance))
        self.memory.pass_over(who[looked & ~started], what[looked & ~started])
        self.memory.watch(who[started], what[started])
        seconds = draw_watch_s(self.videos, self._rng, who[started], what[started], when[started])
        np.add.at(self.brought_s, what[started], seconds)
        np.add.at(self.promised_s, what, (each_s * LOOK_ON ** np.arange(1, K + 1)).ravel())
        np.add.at(self.shown, what, 1)
        self._squares += float((seconds**2).sum())
        return value_s


def _chosen(scores: Floats, shown: Doubles, seed: int, selection: Selection) -> Rows:
    """The candidates of one list, by serving.request.reranking. [K]"""
    options = Options(scores, np.zeros(len(scores), np.int64), shown, np.zeros(len(scores), np.float32))
    return np.array([each.row for each in choose(options, K, selection, seed).items])


def _flat(users: Rows, rows: Rows, now_ms: int) -> tuple[Rows, Rows, Rows]:
    """Each pair of a person and a row, and the moment. [B, C] -> [B * C] three times"""
    return np.repeat(users, rows.shape[1]), rows.ravel(), np.full(rows.size, now_ms)
