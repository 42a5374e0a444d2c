"""The demo's scene about a session: three watches of one channel, and what they do to the list that is shown.

Forty people watch three videos of a channel drawn for them; forty others watch nothing. Counted is what stands in the
shown list of that channel, or of its companions: the nine channels (of some hundred) that its watchers watched most
beyond everybody's share in the world's past. The past is counted here, no model is asked.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

import numpy as np
import polars as pl
from rich.table import Table

from infra.simulation.demo_context import SHOWN, TWO_SIDED, Claims, DemoContext
from models.evaluation.comparison import mean
from nextwatch_client import RecommendReply

VIEWERS, WATCHED = 40, 3
LEAST = 4  # of the shown, of the channel or its companions
LEAST_VIDEOS, LEAST_WATCHES = 10, 300  # of a channel that somebody watches, in the past
LEAST_HISTORY = 3
COMPANIONS, LEAST_SHARE = 9, 0.002  # the channels with the largest lift, of those with such a share of all watches
SETTLED_S = 1.0


class Visit(NamedTuple):
    """A viewer, a channel, and the shown lists before and after a second in which the channel was watched, or not."""

    viewer: str
    channel: str
    before: list[str]
    after: list[str]


def a_session_moves_the_list(demo: DemoContext, claims: Claims) -> None:
    """Claim that the shown lists follow, and that only those of people who watched something do."""
    console, channel_of = claims.console, demo.channels()
    console.rule("1. three watches of a channel change the list", align="left")
    companions = companions_of(demo.past, channel_of)
    chosen = _viewers(demo, sorted(companions))
    watchers, idle = chosen[:VIEWERS], chosen[VIEWERS:]
    visits, still = _visit(demo, watchers, channel_of, watch=True), _visit(demo, idle, channel_of, watch=False)
    first = visits[0]
    console.print(f"{first.viewer} watches three well-known videos of [bold]{first.channel}[/]; a second later:")
    console.print(_beside(first, channel_of, companions[first.channel]))
    had, have = (_counts(visits, channel_of, companions, at) for at in ("before", "after"))
    theirs_had, theirs_have = (_counts(still, channel_of, companions, at) for at in ("before", "after"))
    few = sum(count < LEAST for count in have)
    console.print(
        f"of the {SHOWN} shown, of the channel or of what its watchers watch: {mean(had).value:.1f} before, "
        f"{mean(have).value:.1f} after; of {len(still)} who watched nothing {mean(theirs_had).value:.1f} and "
        f"{mean(theirs_have).value:.1f}",
        highlight=False,
    )
    console.print(
        f"places that changed hands: {_changed(visits):.1f} of {SHOWN}, of those who watched nothing "
        f"{_changed(still):.1f}",
        highlight=False,
    )
    average = mean(have)
    reach = TWO_SIDED * average.se
    claims.check(
        average.value + reach >= LEAST,
        f"on average at least {LEAST} of {SHOWN}, or no fewer that could be told from it: {average.value:.1f} "
        f"[{average.value - reach:.1f}, {average.value + reach:.1f}] for {len(visits)} random viewers, "
        f"{len(visits) - few} of whom have as many",
    )
    more = np.array(have) - np.array(had)
    gain = mean(more)
    claims.check(
        gain.value > TWO_SIDED * gain.se, f"more than before by {gain.value:.1f} (standard error {gain.se:.1f})"
    )


def companions_of(past: pl.DataFrame, channel_of: Mapping[str, str | None]) -> dict[str, set[str]]:
    """By channel that people watch: itself, and those that its watchers watched most beyond everybody else's share.

    `past`: user_id, item_id. A channel counts when it has enough videos that were watched often enough."""
    names = pl.DataFrame({"item_id": list(channel_of), "channel": list(channel_of.values())})
    watches = past.select("user_id", "item_id").join(names, on="item_id").drop_nulls()
    everybody = dict(watches["channel"].value_counts(normalize=True).iter_rows())
    videos, counts = Counter(channel_of.values()), dict(watches["channel"].value_counts().iter_rows())
    found = {}
    for channel, count in counts.items():
        if videos[channel] >= LEAST_VIDEOS and count >= LEAST_WATCHES:
            its_users = watches.filter(pl.col("channel") == channel).select("user_id").unique()
            shares = watches.join(its_users, on="user_id")["channel"].value_counts(normalize=True).iter_rows()
            lift = {name: share / everybody[name] for name, share in shares if everybody[name] >= LEAST_SHARE}
            others = sorted((name for name in lift if name != channel and lift[name] > 1), key=lift.__getitem__)
            found[channel] = {channel, *others[-COMPANIONS:]}
    return found


def _viewers(demo: DemoContext, channels: Sequence[str]) -> list[tuple[str, str]]:
    """People with some history, each with a channel drawn from these."""
    rng = np.random.default_rng([demo.seed, 1])
    watches = Counter(demo.past["user_id"].to_list())
    viewers = [user for user in dict.fromkeys(demo.world.visitors(20 * VIEWERS)) if watches[user] >= LEAST_HISTORY]
    drawn = rng.choice(len(channels), 2 * VIEWERS)
    return [(viewer, channels[at]) for viewer, at in zip(viewers, drawn.tolist(), strict=False)]


def _visit(
    demo: DemoContext, chosen: Sequence[tuple[str, str]], channel_of: Mapping[str, str | None], *, watch: bool
) -> list[Visit]:
    viewers = [viewer for viewer, _ in chosen]
    before, watches = _lists(demo, viewers), Counter(demo.past["item_id"].to_list())
    most_watched = sorted(channel_of, key=lambda item_id: -watches[item_id])
    if watch:
        for (viewer, channel), list_ in zip(chosen, before, strict=True):
            videos = [item_id for item_id in most_watched if channel_of[item_id] == channel and item_id not in list_]
            demo.traffic.watch(viewer, *videos[:WATCHED])
    time.sleep(SETTLED_S)
    after = _lists(demo, viewers)
    return [Visit(*each) for each in zip(viewers, (channel for _, channel in chosen), before, after, strict=True)]


def _lists(demo: DemoContext, viewers: Sequence[str]) -> list[list[str]]:
    replies: list[RecommendReply] = demo.ask_many(viewers, SHOWN)
    return [[item.item_id for item in reply.items] for reply in replies]


def _counts(
    visits: Sequence[Visit],
    channel_of: Mapping[str, str | None],
    companions: Mapping[str, AbstractSet[str]],
    moment: str,
) -> list[int]:
    """By visit: how many of the shown are of the channel or of its companions."""
    return [
        sum(channel_of.get(item_id) in companions[visit.channel] for item_id in getattr(visit, moment))
        for visit in visits
    ]


def _changed(visits: Sequence[Visit]) -> float:
    """The mean number of places that hold another item than before."""
    pairs = [sum(a != b for a, b in zip(visit.before, visit.after, strict=False)) for visit in visits]
    return float(np.mean(pairs))


def _beside(visit: Visit, channel_of: Mapping[str, str | None], companions: AbstractSet[str]) -> Table:
    """The top ten before and after, the channel and its companions marked."""
    table = Table("rank", "before", "after", "was", box=None, pad_edge=False)
    was = {item_id: place for place, item_id in enumerate(visit.before, start=1)}

    def name(item_id: str) -> str:
        channel = channel_of.get(item_id) or ""
        mark = "bold green" if channel == visit.channel else "green" if channel in companions else "default"
        return f"[{mark}]{item_id}  {channel}[/]"

    pairs = zip(visit.before[:10], visit.after[:10], strict=False)
    for place, (old, new) in enumerate(pairs, start=1):
        table.add_row(str(place), name(old), name(new), str(was.get(new, "new")))
    return table
