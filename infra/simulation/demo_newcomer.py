"""The demo's scene about new videos: five fans of its channel watch each, and it stands higher for others of them.

Several channels, since one may be hard to tell from its neighbours. A video's place is that among the candidates by
retrieval score, which no popularity list has a part in; who is not given it at all has it behind all others. Compared
are fans and people who do not care for the channel, none of whom watched it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from infra.simulation.demo_context import CANDIDATES, TWO_SIDED, Claims, DemoContext, retrieved
from infra.simulation.simulated_traffic import now_ms, wait_for
from infra.simulation.world import World
from models.arrays import Doubles
from nextwatch_client import RecommendReply

VIDEOS, CROWD, COMPARED = 4, 5, 75
LEARNT_WITHIN_S = 10.0


class Advantage(NamedTuple):
    """The chance that one of the first stands higher than one of the second, and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def a_new_video_finds_its_fans(demo: DemoContext, claims: Claims) -> None:
    """Claim that fans have a new video higher than others have it."""
    world, console = demo.world, claims.console
    console.rule("2. videos that did not exist find their fans", align="left")
    found = list[Advantage]()
    for channel in channels_of(world, VIDEOS):
        by_liking = world.fans(channel, now_ms(), len(world.user_ids))
        crowd, fans, others = by_liking[:CROWD], by_liking[CROWD : CROWD + COMPARED], by_liking[-COMPARED:]
        item = demo.traffic.publish(channel)
        for fan in crowd:
            demo.traffic.watch(fan, item.item_id)

        def places(viewers: list[str], item_id: str = item.item_id) -> Doubles:
            given = [place_of(reply, item_id) for reply in demo.ask_many(viewers, CANDIDATES)]
            return np.array([CANDIDATES if at is None else at for at in given], np.float64)

        def is_learnt(of: list[str] = fans[:10], at: Callable[[list[str]], Doubles] = places) -> bool:
            return bool((at(of) < CANDIDATES).any())

        wait_for(is_learnt, LEARNT_WITHIN_S, every_s=0.2)
        theirs, elsewhere = places(fans), places(others)
        found.append(advantage(theirs, elsewhere))
        console.print(
            f"{item.item_id} of {channel}: {CROWD} fans watched it. Median place among {CANDIDATES} candidates: "
            f"{_told(theirs)} for {COMPARED} other fans, {_told(elsewhere)} for {COMPARED} who do not care for it; "
            f"a fan has it higher with chance {found[-1]}.",
            highlight=False,
        )
    better = together(found)
    claims.check(better.low > 0.5, f"a fan has it higher than another with chance {better} (.5 is nothing)")


def channels_of(world: World, count: int) -> list[str]:
    """The favourites of people who come by, each once."""
    loved = dict.fromkeys(world.favourites(user, now_ms())[0] for user in world.visitors(20 * count))
    return list(loved)[:count]


def together(found: Sequence[Advantage]) -> Advantage:
    """The mean of independent ones, and its interval."""
    value = sum(each.value for each in found) / len(found)
    reach = math.hypot(*(each.high - each.value for each in found)) / len(found)
    return Advantage(value, value - reach, value + reach)


def place_of(reply: RecommendReply, item_id: str) -> int | None:
    """The place, from 1, that an item has by retrieval score; None when the towers did not retrieve it."""
    scores = {item.item_id: item.score for item in retrieved(reply) if item.score is not None}
    if item_id not in scores:
        return None
    return 1 + sum(score > scores[item_id] for score in scores.values())


def advantage(first: Doubles, second: Doubles) -> Advantage:
    """Mann and Whitney's chance that a place in `first` is smaller than one in `second`, ties half, with DeLong's
    standard error."""
    wins = (first[:, None] < second[None, :]) + 0.5 * (first[:, None] == second[None, :])
    value = float(wins.mean())
    variance = wins.mean(axis=1).var(ddof=1) / len(first) + wins.mean(axis=0).var(ddof=1) / len(second)
    reach = TWO_SIDED * float(np.sqrt(variance))
    return Advantage(value, value - reach, value + reach)


def _told(places: Doubles) -> str:
    middle = float(np.median(places))
    return "not among them" if middle >= CANDIDATES else f"{middle:.0f}"
