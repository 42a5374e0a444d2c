"""A SIMULATED world of people who watch videos: it feeds the demo, the tests and the benchmarks, and is not real data.

Seeded, and the clock is an argument: the same seed and the same calls give the same events. Choices come in two kinds:
self-chosen watches (`past_log`, `step`), where a person picks one of all videos by popularity times taste, and answers
to what a recommender shows (`past_exposures`, `respond`), where they look down a list and start what they like (see
infra.simulation.browsing_model). How long they then watch is drawn around a known mean, so the world can tell the true
expected seconds that a ranker only estimates. Some self-chosen watches were searched for: the person asked for the
video's channel or topic just before, so a search tells something of the next watch. Live time is denser than life: a
watch is reported the moment it happens, whatever its length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from infra.simulation.browsing_model import TINY, Memory, first_of, look_down, show_lists, without_repeats
from infra.simulation.population import (
    DEVICES,
    HOUR_MS,
    REGIONS,
    SURFACES,
    TOPICS,
    affinity,
    channel_affinity,
    devices,
    draw_watch_s,
    favourites,
    log_popularity,
    make_population,
    make_videos,
    mean_watch_s,
    start_chance,
    surfaces,
)
from models.arrays import Doubles, Rows
from streams.messages import Context, Item, SearchEvent, WatchEvent

NOTICE = "simulated world: these people, channels and videos are made up"

SESSION_CHANCE = 0.25  # that a past session ends with a watch
MOST_WATCHES = 12
SESSION_WATCHES = (1 - (1 - SESSION_CHANCE) ** MOST_WATCHES) / SESSION_CHANCE  # its mean
BLOCK = 256  # sessions drawn together
SEARCH_CHANCE = 0.06  # that a self-chosen watch was searched for
SEARCHED_S = (2.0, 25.0)  # before the watch began
QUERIES = ("{}", "best {}", "{} today", "{} new videos")


@dataclass(frozen=True)
class Happened:
    """Everything that the world did since the last step, each in order of time."""

    items: list[Item]
    watches: list[WatchEvent]
    searches: list[SearchEvent]


class World:
    """`start_ms` is where the past ends and `step` begins; the catalogue of `items` was published over `catalogue_days`
    before it, and one more appears every `item_every_s` after it. Memory: what each user has watched or passed over."""

    def __init__(
        self,
        *,
        seed: int,
        start_ms: int,
        users: int = 2000,
        channels: int = 96,
        items: int = 2000,
        events_per_s: float = 100.0,
        item_every_s: float = 60.0,
        catalogue_days: float = 10.0,
    ) -> None:
        self.population = make_population(seed, users, channels)
        self.events_per_s = events_per_s
        self.user_ids = [f"u{row:05d}" for row in range(users)]
        self._rng = np.random.default_rng([seed, 2])
        self._search_rng = np.random.default_rng([seed, 3])  # its own: a log is the same whether searches are asked for
        self._shown_rng = np.random.default_rng([seed, 4])  # and whether exposures are
        published = start_ms - np.sort(self._rng.random(items) * catalogue_days * 24 * HOUR_MS)[::-1]
        self.videos = make_videos(self.population, self._rng, published.astype(np.int64))
        self._item_every_ms = round(item_every_s * 1000)
        self._memory = Memory(users)
        self._events = 0
        self._searched = 0
        self._shown = 0  # lists, in the past
        self._born = 0  # videos published since `start_ms`, `publish` apart
        self._start_ms = self._now_ms = start_ms

    # --- what is there ---------------------------------------------------------------------------------------------

    def catalogue(self, now_ms: int) -> list[Item]:
        """All videos that are published at that moment."""
        return [self._item(int(row)) for row in np.flatnonzero(self.videos.published_ms <= now_ms)]

    def items_frame(self, now_ms: int) -> pl.DataFrame:
        """The catalogue as a table: item_id, title, channel, topics, duration_s, published_ms, available."""
        names = ("item_id", "title", "channel", "topics", "duration_s", "published_ms", "available")
        items = self.catalogue(now_ms)
        return pl.DataFrame({name: [getattr(item, name) for item in items] for name in names})

    def publish(self, channel: str, now_ms: int) -> Item:
        """A new video of that channel, out now. Raises ValueError for a channel that the world does not have."""
        row = self._channel(channel)
        more = make_videos(self.population, self._rng, np.array([now_ms]), channel=row)
        self.videos = self.videos.join(more)
        return self._item(len(self.videos) - 1)

    # --- what is true ----------------------------------------------------------------------------------------------

    def expected_watch_s(self, user_id: str, item_ids: Sequence[str], now_ms: int) -> Doubles:
        """The true mean of the seconds that this person watches each video once it is started. float64 [N]

        Raises ValueError for a user or item that the world does not have.
        """
        return mean_watch_s(self.videos, *self._pairs(user_id, item_ids, now_ms))

    def start_chance(self, user_id: str, item_ids: Sequence[str], now_ms: int) -> Doubles:
        """The true chance that this person starts each video when they look at it, as of now: what they have watched
        they do not start again, and what they have passed over they are less likely to. float64 [N]"""
        return self._start_chance(*self._pairs(user_id, item_ids, now_ms))

    def expected_seconds(self, user_id: str, item_ids: Sequence[str], now_ms: int) -> Doubles:
        """The true mean of the seconds that showing each video brings, where this person looks at it. float64 [N]"""
        started = self.start_chance(user_id, item_ids, now_ms)
        return started * self.expected_watch_s(user_id, item_ids, now_ms)

    def favourites(self, user_id: str, now_ms: int) -> list[str]:
        """The channels this person loves now, without repetition."""
        loved = favourites(self.population, np.array([self._user(user_id)]), np.array([now_ms]))[0]
        return [self.population.channel_names[channel] for channel in dict.fromkeys(loved)]

    def fans(self, channel: str, now_ms: int, limit: int) -> list[str]:
        """The people who like a channel most, best first."""
        users = np.arange(len(self.user_ids))
        liking = channel_affinity(self.population, users, np.full(len(users), now_ms))[:, self._channel(channel)]
        return [self.user_ids[row] for row in np.argsort(-liking, kind="stable")[:limit]]

    def visitors(self, count: int) -> list[str]:
        """Users who open the app: drawn by how active they are."""
        return [self.user_ids[row] for row in self._draw_users(count)]

    # --- what happens ----------------------------------------------------------------------------------------------

    def past_log(self, start_ms: int, end_ms: int, events: int) -> pl.DataFrame:
        """About `events` self-chosen watches of that time as a log, in order of time: event_id, user_id, item_id,
        event_ms, watch_s, duration_s, device, surface. A watch is stamped when it ends."""
        count = max(1, round(events / SESSION_WATCHES))
        at_ms = np.sort(self._rng.integers(start_ms, end_ms, count))
        users = self._draw_users(count)
        lengths = np.minimum(self._rng.geometric(SESSION_CHANCE, count), MOST_WATCHES)
        drawn = _paced(self._self_chosen(users, at_ms, lengths))
        return self._log(drawn.filter(pl.col("event_ms") < end_ms).sort("event_ms"))

    def past_searches(self, log: pl.DataFrame, chance: float = SEARCH_CHANCE) -> pl.DataFrame:
        """Simulated searches to a log of `past_log`, in order of time: event_id, user_id, query, event_ms.

        Each watch was searched for with this `chance`, after the watch before it in its session had ended."""
        started_ms = log["event_ms"] - (1000 * log["watch_s"]).cast(pl.Int64)
        rows = log["item_id"].str.slice(1).cast(pl.Int64)
        return self._searches(log["user_id"], rows.to_numpy(), started_ms.to_numpy(), chance)

    def past_exposures(self, start_ms: int, end_ms: int, lists: int, length: int = 20) -> pl.DataFrame:
        """Lists shown in that time and what became of them, in order of time and position: user_id, item_id, event_ms
        (of being shown), watch_s (0: not started), duration_s, region, language, device, surface, request_id, position,
        and true_s, which no log has: the expected seconds at that moment, if looked at.

        Nobody is shown what they have watched already, so ask for times in their order: `past_log` of the days before.
        """
        at_ms = np.sort(self._shown_rng.integers(start_ms, end_ms, lists))
        users = self._draw_users(lists, self._shown_rng)
        return pl.concat([self._expose(users[block], at_ms[block], length) for block in without_repeats(users, BLOCK)])

    def step(self, now_ms: int) -> Happened:
        """Let the world go on; everything that happened between the last step (at first: `start_ms`) and now."""
        since_ms, self._now_ms = self._now_ms, max(self._now_ms, now_ms)
        items = self._publish_due()
        count = int(self._rng.poisson(self.events_per_s * (self._now_ms - since_ms) / 1000))
        if not count:
            return Happened(items, [], [])
        at_ms = np.sort(self._rng.integers(since_ms + 1, self._now_ms + 1, count))
        users = self._draw_users(count)
        drawn = self._self_chosen(users, at_ms, np.ones(count, np.int64))
        log = self._log(drawn)
        asked = self._searches(log["user_id"], drawn["row"].to_numpy(), drawn["event_ms"].to_numpy(), SEARCH_CHANCE)
        asked = asked.with_columns(pl.col("event_ms").clip(since_ms + 1))
        searches = [SearchEvent(*row) for row in asked.iter_rows()]
        return Happened(items, list(self.messages(log)), searches)

    def idle_until(self, now_ms: int) -> None:
        """Nobody does anything until then; items that are due by then come with the next step."""
        self._now_ms = max(self._now_ms, now_ms)

    def respond(
        self, user_id: str, item_ids: Sequence[str], now_ms: int, request_id: str | None = None
    ) -> list[WatchEvent]:
        """Watches of a person out of a list shown to them, top first: at most three, each a second after the other.
        Items that the world does not have, or that they have watched before, are passed over."""
        user = self._user(user_id)
        rows = np.array([self._known(item_id) for item_id in item_ids], np.int64)
        users = np.full(len(rows), user)
        open_ = (rows >= 0) & ~self._memory.has_watched(users, rows)
        chance = np.zeros(len(rows))
        chance[open_] = self._start_chance(users[open_], rows[open_], np.full(int(open_.sum()), now_ms))
        looked, started = (flags[0] for flags in look_down(self._rng, chance[None, :]))
        passed = rows[open_ & looked & ~started]
        self._memory.pass_over(users[: len(passed)], passed)
        chosen = rows[started]
        drawn = self._watch(users[: len(chosen)], chosen, now_ms + 1000 * np.arange(len(chosen)))
        return list(self.messages(self._log(drawn), request_id))

    def watch(self, user_id: str, item_id: str, now_ms: int, share: float | None = None) -> WatchEvent:
        """This person watches this video now: for as long as they like it, or that `share` of its duration."""
        user, row = np.array([self._user(user_id)]), self._rows([item_id])
        drawn = self._watch(user, row, np.array([now_ms]))
        if share is not None:
            drawn = drawn.with_columns(watch_s=pl.lit(round(share * float(self.videos.duration_s[row[0]]), 2)))
        return next(self.messages(self._log(drawn)))

    # --- how ---------------------------------------------------------------------------------------------------------

    def _self_chosen(self, users: Rows, at_ms: Rows, counts: Rows) -> pl.DataFrame:
        """The watches of sessions in order of time; `counts` is how many each has."""
        blocks = [slice(first, first + BLOCK) for first in range(0, len(users), BLOCK)]
        return pl.concat([self._watch(*self._choose(users[b], at_ms[b], counts[b])) for b in blocks])

    def _choose(self, users: Rows, at_ms: Rows, counts: Rows) -> tuple[Rows, Rows, Rows]:
        """Self-chosen videos of B sessions: users, video rows and moments, each [E], a session's in the order chosen.

        Chances are popularity times exp(affinity), without replacement: the smallest exponential variates divided by
        the chances are such a draw.
        """
        weight = affinity(self.videos, users, at_ms)
        weight += log_popularity(self.videos, int(at_ms[-1]))
        weight[self.videos.published_ms[None, :] > at_ms[:, None]] = -np.inf
        for session, user in enumerate(users.tolist()):
            weight[session, self._memory.watched(user)] = -np.inf
        with np.errstate(over="ignore"):
            race = (self._rng.standard_exponential(weight.shape, np.float32) + TINY) * np.exp(-weight)  # [B, N]
        most = min(int(counts.max()), race.shape[1] - 1)
        first = first_of(race, most)  # [B, most]
        taken = (np.arange(most) < counts[:, None]) & np.isfinite(np.take_along_axis(race, first, 1))
        drawn = np.repeat(np.arange(len(users)), taken.sum(1))
        return users[drawn], first[taken], at_ms[drawn]

    def _watch(self, users: Rows, rows: Rows, at_ms: Rows) -> pl.DataFrame:
        """Watch each choice for as long as it is liked; who had watched a video before does not watch it again."""
        watch_s = draw_watch_s(self.videos, self._rng, users, rows, at_ms)
        self._memory.watch(users, rows)
        return pl.DataFrame(
            {"user": users, "row": rows, "event_ms": at_ms.astype(np.int64), "watch_s": watch_s.round(2)}
        ).unique(["user", "row"], keep="first", maintain_order=True)

    def _start_chance(self, users: Rows, rows: Rows, at_ms: Rows) -> Doubles:
        passed, watched = self._memory.times_passed(users, rows), self._memory.has_watched(users, rows)
        return np.where(watched, 0.0, start_chance(self.videos, users, rows, at_ms, passed))

    def _publish_due(self) -> list[Item]:
        due = np.arange(self._born, (self._now_ms - self._start_ms) // self._item_every_ms) + 1
        if not len(due):
            return []
        self._born += len(due)
        new = make_videos(self.population, self._rng, self._start_ms + self._item_every_ms * due)
        self.videos = self.videos.join(new)
        return [self._item(row) for row in range(len(self.videos) - len(due), len(self.videos))]

    def _searches(self, user_ids: pl.Series, rows: Rows, started_ms: Rows, chance: float) -> pl.DataFrame:
        """Searches before some of E watches: the name of the video's channel, or its topic."""
        rng = self._search_rng
        chosen = np.flatnonzero(rng.random(len(rows)) < chance)
        channels = self.videos.channel[rows[chosen]]
        topics = self.population.channel_topics[channels].argmax(axis=1)
        by_name = rng.random(len(chosen)) < 0.5
        phrases = rng.integers(0, len(QUERIES), len(chosen))
        before_ms = (1000 * rng.uniform(*SEARCHED_S, len(chosen))).astype(np.int64)
        at_ms = started_ms[chosen] - before_ms
        words = [
            self.population.channel_names[channel] if named else TOPICS[topic].lower()
            for channel, topic, named in zip(channels, topics, by_name, strict=True)
        ]
        first, self._searched = self._searched + 1, self._searched + len(chosen)
        return pl.DataFrame(
            {
                "event_id": [f"sim-s-{at}-{n}" for n, at in enumerate(at_ms.tolist(), first)],
                "user_id": user_ids.gather(chosen),
                "query": [QUERIES[phrase].format(word) for phrase, word in zip(phrases, words, strict=True)],
                "event_ms": at_ms,
            },
            schema={"event_id": pl.String, "user_id": pl.String, "query": pl.String, "event_ms": pl.Int64},
        ).sort("event_ms", maintain_order=True)

    def _log(self, drawn: pl.DataFrame) -> pl.DataFrame:
        users, rows, at_ms = (drawn[name].to_numpy() for name in ("user", "row", "event_ms"))
        first, self._events = self._events + 1, self._events + len(drawn)
        return pl.DataFrame(
            {
                "event_id": [f"sim-w-{at}-{n}" for n, at in enumerate(at_ms, first)],
                "user_id": [self.user_ids[user] for user in users],
                "item_id": [_item_id(row) for row in rows],
                "event_ms": at_ms,
                "watch_s": drawn["watch_s"],
                "duration_s": self.videos.duration_s[rows].astype(np.float64).round(1),
                "device": [DEVICES[d] for d in devices(self.population, users, at_ms)],
                "surface": [SURFACES[s] for s in surfaces(self.population, users, at_ms)],
            }
        )

    def _expose(self, users: Rows, at_ms: Rows, length: int) -> pl.DataFrame:
        shown = show_lists(self.videos, self._memory, self._shown_rng, users, at_ms, length)
        first, self._shown = self._shown + 1, self._shown + len(users)
        rows, regions = shown["row"].to_numpy(), np.array(REGIONS)[shown["user"].to_numpy() % len(REGIONS)]
        lists = shown["list"].to_numpy()
        device, surface = devices(self.population, users, at_ms)[lists], surfaces(self.population, users, at_ms)[lists]
        return pl.DataFrame(
            {
                "user_id": [self.user_ids[user] for user in shown["user"]],
                "item_id": [_item_id(row) for row in rows],
                "event_ms": shown["event_ms"],
                "watch_s": shown["watch_s"],
                "duration_s": self.videos.duration_s[rows].astype(np.float64).round(1),
                "region": regions[:, 0],
                "language": regions[:, 1],
                "device": np.array(DEVICES)[device],
                "surface": np.array(SURFACES)[surface],
                "request_id": [f"sim-r-{first + at}" for at in lists.tolist()],
                "position": shown["position"],
                "true_s": shown["true_s"],
            }
        )

    def messages(self, log: pl.DataFrame, request_id: str | None = None) -> Iterator[WatchEvent]:
        """The watches of a log as events."""
        for event_id, user_id, item_id, event_ms, watch_s, duration_s, device, surface in log.iter_rows():
            region, language = REGIONS[int(user_id[1:]) % len(REGIONS)]
            context = Context(region=region, language=language, device=device, surface=surface, signed_in=True)
            yield WatchEvent(event_id, user_id, item_id, event_ms, watch_s, duration_s, request_id, context)

    def _item(self, row: int) -> Item:
        channel, topics = int(self.videos.channel[row]), self.population.channel_topics
        name = self.population.channel_names[channel]
        main, second = np.argsort(-topics[channel], kind="stable")[:2]
        return Item(
            item_id=_item_id(row),
            title=f"{name} #{row}",
            channel=name,
            topics=(TOPICS[main].lower(), TOPICS[second].lower()),
            duration_s=round(float(self.videos.duration_s[row]), 1),
            published_ms=int(self.videos.published_ms[row]),
        )

    def _draw_users(self, count: int, rng: np.random.Generator | None = None) -> Rows:
        return (rng or self._rng).choice(len(self.user_ids), count, p=self.population.user_activity)

    def _pairs(self, user_id: str, item_ids: Sequence[str], now_ms: int) -> tuple[Rows, Rows, Rows]:
        """One person, each video, one moment. [N], [N], [N]"""
        rows = self._rows(item_ids)
        return np.full(len(rows), self._user(user_id)), rows, np.full(len(rows), now_ms)

    def _user(self, user_id: str) -> int:
        row = int(user_id[1:]) if user_id[1:].isdecimal() else -1
        if not 0 <= row < len(self.user_ids) or self.user_ids[row] != user_id:
            raise ValueError(f"the simulated world has no user {user_id!r}")
        return row

    def _channel(self, channel: str) -> int:
        if channel not in self.population.channel_names:
            raise ValueError(f"the simulated world has no channel {channel!r}")
        return self.population.channel_names.index(channel)

    def _known(self, item_id: str) -> int:
        row = int(item_id[1:]) if item_id[1:].isdecimal() else -1
        return row if 0 <= row < len(self.videos) and _item_id(row) == item_id else -1

    def _rows(self, item_ids: Sequence[str]) -> Rows:
        rows = np.array([self._known(item_id) for item_id in item_ids], np.int64)
        if (rows < 0).any():
            raise ValueError(f"the simulated world has no item {item_ids[int(np.argmax(rows < 0))]!r}")
        return rows


def _paced(drawn: pl.DataFrame) -> pl.DataFrame:
    """Watches of one session follow each other, half a minute apart; a watch is stamped at its end."""
    ended_s = (pl.col("watch_s") + 30).cum_sum().over("user", "event_ms")
    return drawn.with_columns(event_ms=pl.col("event_ms") + (ended_s * 1000).cast(pl.Int64))


def _item_id(row: int) -> str:
    return f"v{row:06d}"
