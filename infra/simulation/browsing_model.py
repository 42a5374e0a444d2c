"""Lists that people are shown, and what they make of them: those of the simulated world, in its past and live.

A person looks down a list from its top and may stop at every step, so what stands low is often not seen at all: the
effect of position is real, and it has nothing to do with the video. They start what they like, a few at most. What they
have looked at and passed over they are less likely to start the next time, a little less each time. What they never
looked at leaves no trace in them; that a log cannot tell the two apart is what makes it worth learning from.

The recommender of the past is a plain one: it draws lists by popularity and half-known taste for channels, and explores
with a share of its places, so that videos of every kind have been shown to people of every kind. It shows over a
fifth of its videos to the same person again, because that is how one learns that what was passed over sinks.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from infra.simulation.population import (
    Videos,
    channel_affinity,
    draw_watch_s,
    log_popularity,
    mean_watch_s,
    start_chance,
)
from models.arrays import Doubles, Flags, Floats, Rows

LOOK_ON = 0.9  # chance to look at the next position of a list
MOST_ANSWERS = 3  # watches out of one list
PLAIN_TASTE, PLAIN_POPULARITY = 0.75, 1.5  # how the recommender of the past weighed them; over 1 it repeats itself
EXPLORED = 0.2  # share of its places that went to any video
TINY = np.float32(1e-30)


class Memory:
    """Videos that each user has watched, and how often they have passed over one. Users and videos: rows, both [E]."""

    def __init__(self, users: int) -> None:
        self._watched: list[list[int]] = [[] for _ in range(users)]
        self._passed: list[dict[int, int]] = [{} for _ in range(users)]

    def watched(self, user: int) -> list[int]:
        return self._watched[user]

    def watch(self, users: Rows, rows: Rows) -> None:
        for user, row in _pairs(users, rows):
            self._watched[user].append(row)

    def pass_over(self, users: Rows, rows: Rows) -> None:
        for user, row in _pairs(users, rows):
            self._passed[user][row] = self._passed[user].get(row, 0) + 1

    def times_passed(self, users: Rows, rows: Rows) -> Rows:
        return np.array([self._passed[user].get(row, 0) for user, row in _pairs(users, rows)], np.int64)

    def has_watched(self, users: Rows, rows: Rows) -> Flags:
        return np.array([row in self._watched[user] for user, row in _pairs(users, rows)], np.bool_)


def show_lists(
    videos: Videos, memory: Memory, rng: np.random.Generator, users: Rows, at_ms: Rows, length: int
) -> pl.DataFrame:
    """Show B people, all different, a list each, and remember what they made of it.

    A row per video shown: list (row of `users`), user, row, position (from 1), event_ms (of being shown), watch_s (0:
    not started), true_s (what it could expect at that moment, if looked at).
    """
    rows = _plain_lists(videos, memory, rng, users, at_ms, length)  # [B, L], -1 for none
    lists, places = np.nonzero(rows >= 0)
    who, what, when = users[lists], rows[lists, places], at_ms[lists]  # [E]
    chance = np.zeros(rows.shape)
    chance[lists, places] = start_chance(videos, who, what, when, memory.times_passed(who, what))
    looked, started = (flags[lists, places] for flags in look_down(rng, chance))
    memory.pass_over(who[looked & ~started], what[looked & ~started])
    memory.watch(who[started], what[started])
    watch_s = np.zeros(len(what))
    watch_s[started] = draw_watch_s(videos, rng, who[started], what[started], when[started])
    return pl.DataFrame(
        {
            "list": lists,
            "user": who,
            "row": what,
            "position": places + 1,
            "event_ms": when,
            "watch_s": watch_s.round(2),
            "true_s": chance[lists, places] * mean_watch_s(videos, who, what, when),
        }
    )


def look_down(rng: np.random.Generator, chance: Doubles) -> tuple[Flags, Flags]:
    """Draw which places of B lists are looked at, and which are started; `chance` to start each when looked at. [B, L]

    Who has started MOST_ANSWERS looks no further."""
    looked = np.cumprod(rng.random(chance.shape) < LOOK_ON, axis=1, dtype=np.int64) == 1
    wanted = looked & (rng.random(chance.shape) < chance)
    looked &= np.cumsum(wanted, axis=1) - wanted < MOST_ANSWERS
    return looked, wanted & looked


def first_of(race: Floats, most: int) -> Rows:
    """The `most` smallest of each row, smallest first. [B, N] -> [B, most]"""
    first = np.argpartition(race, most - 1, axis=1)[:, :most]
    order = np.argsort(np.take_along_axis(race, first, 1), axis=1, kind="stable")
    return np.asarray(np.take_along_axis(first, order, 1), np.int64)


def without_repeats(users: Rows, most: int) -> Iterator[slice]:
    """Runs of at most so many neighbours, in each of which nobody comes twice: what a list changes in a person is known
    before their next one."""
    start, there = 0, set[int]()
    for at, user in enumerate(users.tolist()):
        if user in there or len(there) == most:
            yield slice(start, at)
            start, there = at, set()
        there.add(user)
    if there:
        yield slice(start, len(users))


def _plain_lists(
    videos: Videos, memory: Memory, rng: np.random.Generator, users: Rows, at_ms: Rows, length: int
) -> Rows:
    """Lists as the recommender of the past drew them, without replacement; -1 where nothing is left. [B, L]"""
    weight = PLAIN_TASTE * channel_affinity(videos.population, users, at_ms)[:, videos.channel]  # [B, N]
    weight += PLAIN_POPULARITY * log_popularity(videos, int(at_ms[-1]))
    weight[videos.published_ms[None, :] > at_ms[:, None]] = -np.inf
    for session, user in enumerate(users.tolist()):
        weight[session, memory.watched(user)] = -np.inf
    there = np.isfinite(weight)
    chance = np.where(there, np.exp(np.where(there, weight, 0)), 0)
    shares = [each / np.maximum(each.sum(1, keepdims=True), TINY) for each in (chance, there)]
    shown = (1 - EXPLORED) * shares[0] + EXPLORED * shares[1]  # [B, N]
    race = np.full(shown.shape, np.inf, np.float32)
    race[there] = (rng.standard_exponential(int(there.sum()), np.float32) + TINY) / shown[there]
    first = first_of(race, min(length, race.shape[1]))
    return np.where(np.isfinite(np.take_along_axis(race, first, 1)), first, -1)


def _pairs(users: Rows, rows: Rows) -> Iterator[tuple[int, int]]:
    return zip(users.tolist(), rows.tolist(), strict=True)
