"""Team-draft interleaving (Radlinski, Kurup and Joachims, "How does clickthrough data reflect retrieval quality?",
CIKM 2008): two orders share one list, and what is watched of it is credited to the one whose pick it was.

In each round a coin says who picks first; each picks its best item that is not in the list yet. Both have the same
chance of every place, so a difference of what they are credited is one of the orders, and every viewer compares both:
what differs from viewer to viewer, most of an A/B test's variance, falls out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np


class Pick(NamedTuple):
    """An item of the list, by its place (from 0) in the order of the team that picked it."""

    team: int  # 0 or 1
    place: int


def team_draft(first: Sequence[str], second: Sequence[str], most: int, seed: int) -> list[Pick]:
    """At most `most` picks, top first; each item once. It ends where the one whose turn it is has nothing left."""
    rng, orders, at = np.random.default_rng(seed), (first, second), [0, 0]
    taken: set[str] = set()
    picks: list[Pick] = []
    while len(picks) < most:
        begins = int(rng.integers(2))
        for team in (begins, 1 - begins):
            while at[team] < len(orders[team]) and orders[team][at[team]] in taken:
                at[team] += 1
            if at[team] == len(orders[team]):
                return picks
            if len(picks) < most:
                picks.append(Pick(team, at[team]))
                taken.add(orders[team][at[team]])
    return picks


def credit(teams: Iterable[str], watched_s: Iterable[float], of: str, against: str) -> float:
    """The seconds watched of what one team has picked, less the other's. An item of neither counts for nobody."""
    sign = {of: 1.0, against: -1.0}
    return float(sum(sign.get(team, 0.0) * seconds for team, seconds in zip(teams, watched_s, strict=True)))
