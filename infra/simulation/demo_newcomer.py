"""The demo's scene about a new video: five fans of its channel watch it, and it stands higher for others of them.

Its place is that among the candidates by retrieval score, which no popularity list has a part in; who is not given it
at all has it behind all others. Compared are fans and people who do not care for the channel, none of whom watched it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from infra.simulation.demo_context import CANDIDATES, TWO_SIDED, Claims, DemoContext, retrieved
from infra.simulation.simulated_traffic import now_ms, wait_for
from models.arrays import Doubles
from nextwatch_client import RecommendReply

CROWD, COMPARED = 5, 100
LEARNT_WITHIN_S = 10.0


class Advantage(NamedTuple):
    """The chance that one of the first stands higher than one of the second, and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def a_new_video_finds_its_fans(demo: DemoContext, claims: Claims) -> None:
    """Claim that fans have the new video higher than others have it."""
    world, console = demo.world, claims.console
    channel = world.favourites(world.visitors(1)[0], now_ms())[0]
    by_liking = world.fans(channel, now_ms(), len(world.user_ids))
    crowd, fans, others = by_liking[:CROWD], by_liking[CROWD : CROWD + COMPARED], by_liking[-COMPARED:]
    console.rule(f"2. a video that did not exist finds its fans (channel {channel})", align="left")
    item = demo.traffic.publish(channel)
    for fan in crowd:
        demo.traffic.watch(fan, item.item_id)

    def places(viewers: list[str]) -> Doubles:
        found = [place_of(reply, item.item_id) for reply in demo.ask_many(viewers, CANDIDATES)]
        return np.array([CANDIDATES if at is None else at for at in found], np.float64)

    wait_for(lambda: bool((places(fans[:10]) < CANDIDATES).any()), LEARNT_WITHIN_S, every_s=0.2)
    theirs, elsewhere = places(fans), places(others)
    console.print(
        f"{item.item_id} is new; {CROWD} fans watched it. Its median place among {CANDIDATES} candidates: "
        f"{_told(theirs)} for {COMPARED} other fans, {_told(elsewhere)} for {COMPARED} who do not care for it.",
        highlight=False,
    )
    better = advantage(theirs, elsewhere)
    claims.check(better.low > 0.5, f"a fan has it higher than another with chance {better} (.5 is nothing)")


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
