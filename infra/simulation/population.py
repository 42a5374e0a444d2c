"""The people, channels and videos of the simulated world, and what is true of them at any moment.

Everything here is a pure function of seed, row numbers and time: a taste is not stored and updated, it is computed for
the moment that is asked for. Three things make a person choose a video, all of them needed to predict it: its
popularity, which rises and decays; the topics they like, which stay; and a few favourite channels, which come and go.
So the last watches tell what the older ones cannot, and recent popularity alone is not enough either.

Whether a video that is shown gets started has one cause more, how often this person has passed it over. One time is
worth an e-fold of the odds: with half of that, a boosted-tree ranker on 300,000 exposures could hardly find it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from models.arrays import Doubles, Floats, Rows

TOPICS = (
    "Cooking", "Chess", "Football", "Astronomy", "Guitar", "Gardening",
    "History", "Cycling", "Cinema", "Robotics", "Travel", "Woodwork",
)  # fmt: skip
KINDS = ("Daily", "Lab", "with Ana", "Stories", "Explained", "Club", "Basics", "Weekly", "with Tom", "Live", "Notes")
DEVICES = ("phone", "tv", "computer")
SURFACES = ("home", "watch-next", "search")
REGIONS = (("GB", "en"), ("DE", "de"), ("FR", "fr"), ("ES", "es"))

HOUR_MS = 3_600_000
SESSION_MS = HOUR_MS // 3  # mood and device of a person hold this long
LATENT = 8
# A favourite channel holds for this long, then another takes its place; the first one stays for good.
FAVOURITE_MS = np.array([10**15, 120 * HOUR_MS, 24 * HOUR_MS, 6 * HOUR_MS])
FAVOURITE_WEIGHT = np.array([1.6, 1.6, 1.6, 1.6], np.float32)
MOOD_WEIGHT = 1.2  # of the favourite that this session is about
TOPIC_WEIGHT = 0.7
LATENT_WEIGHT = 0.6
POPULARITY_HALF_LIFE_MS = 18 * HOUR_MS
LEAVE_S = (1.0, 8.0)  # who leaves at once does so within this
CONCENTRATION = 6.0  # of the watched share around its mean
PASSED_WEIGHT = 1.0  # less likely to be started, in logits, for each time it was passed over
MOST_PASSED = 3  # times that count
EVERGREEN = 0.06  # share of its first-day popularity that a video keeps


@dataclass(frozen=True)
class Population:
    """The world's people and channels: U users and C channels, T topics, L latent dimensions."""

    seed: int
    channel_names: tuple[str, ...]
    channel_topics: Floats  # [C, T], rows of unit length
    channel_size: Floats  # [C], log of how often a channel is chosen
    channel_s: Floats  # [C], its typical duration
    user_topics: Floats  # [U, T], rows of unit length
    user_latent: Floats  # [U, L]
    user_activity: Doubles  # [U], chances, sum 1
    channel_cdf: Doubles  # [U, C], how a user finds a new favourite channel


@dataclass(frozen=True)
class Videos:
    """Columns over N videos of a population's channels; row n is the video `v<n>`."""

    population: Population
    channel: Rows
    latent: Floats  # [N, L]
    quality: Floats  # log scale
    duration_s: Floats
    published_ms: Rows
    burst_ms: Rows  # when it goes viral
    burst: Floats  # log of how much

    def __len__(self) -> int:
        return len(self.channel)

    def join(self, more: Videos) -> Videos:
        columns: dict[str, Any] = {
            f.name: np.concatenate([getattr(self, f.name), getattr(more, f.name)]) for f in fields(Videos)[1:]
        }
        return Videos(self.population, **columns)


def make_population(seed: int, users: int, channels: int) -> Population:
    rng = np.random.default_rng([seed, 1])
    main = np.arange(channels) % len(TOPICS)
    topics = rng.random((channels, len(TOPICS)), np.float32) * 0.4
    topics[np.arange(channels), main] = 1
    size = rng.normal(0, 0.7, channels).astype(np.float32)
    likes = _unit(rng.gamma(0.25, 1, (users, len(TOPICS))))
    topics = _unit(topics)
    found = np.exp(3 * likes @ topics.T + size)  # [U, C]
    activity = rng.lognormal(0, 0.8, users)
    return Population(
        seed=seed,
        channel_names=tuple(_channel_name(c) for c in range(channels)),
        channel_topics=topics,
        channel_size=size,
        channel_s=np.exp(rng.normal(4.3, 0.8, channels)).astype(np.float32),
        user_topics=likes,
        user_latent=rng.normal(0, 1, (users, LATENT)).astype(np.float32),
        user_activity=activity / activity.sum(),
        channel_cdf=np.cumsum(found, axis=1) / found.sum(axis=1, keepdims=True),
    )


def make_videos(
    population: Population, rng: np.random.Generator, published_ms: Rows, channel: int | None = None
) -> Videos:
    """New videos, one per published time; `channel` None: large channels publish more."""
    n = len(published_ms)
    chance = np.exp(0.5 * population.channel_size)
    drawn = rng.choice(len(chance), n, p=chance / chance.sum())
    rows = np.asarray(drawn if channel is None else np.full(n, channel), np.int64)
    duration_s = population.channel_s[rows] * np.exp(rng.normal(0, 0.4, n))
    viral = rng.random(n) < 0.08
    return Videos(
        population,
        channel=rows,
        latent=rng.normal(0, 1, (n, LATENT)).astype(np.float32),
        quality=rng.normal(0, 0.7, n).astype(np.float32),
        duration_s=np.clip(duration_s, 10, 1800).round(1).astype(np.float32),
        published_ms=np.asarray(published_ms, np.int64),
        burst_ms=(published_ms + rng.exponential(24 * HOUR_MS, n)).astype(np.int64),
        burst=np.where(viral, rng.uniform(1.5, 3, n), 0).astype(np.float32),
    )


def favourites(population: Population, users: Rows, at_ms: Rows) -> Rows:
    """The favourite channels of each user at each moment. [B] -> [B, F]"""
    slots = np.arange(len(FAVOURITE_MS))
    phase = _uniform(population.seed, users[:, None], slots) * FAVOURITE_MS
    turn = np.where(slots == 0, 0, (at_ms[:, None] + phase) // FAVOURITE_MS).astype(np.int64)
    draw = _uniform(population.seed, users[:, None], slots + 100, turn)  # [B, F]
    return np.asarray((population.channel_cdf[users][:, None, :] < draw[:, :, None]).sum(2), np.int64)


def devices(population: Population, users: Rows, at_ms: Rows) -> Rows:
    """Row in DEVICES. [B] -> [B]"""
    return _session_draw(population, users, at_ms, 8, len(DEVICES))


def surfaces(population: Population, users: Rows, at_ms: Rows) -> Rows:
    """Row in SURFACES. [B] -> [B]"""
    return _session_draw(population, users, at_ms, 9, len(SURFACES))


def channel_affinity(population: Population, users: Rows, at_ms: Rows) -> Floats:
    """Liking of each user for each channel at each moment, in logits. [B] -> [B, C]"""
    liking = TOPIC_WEIGHT * 3 * (population.user_topics[users] @ population.channel_topics.T)
    loved = favourites(population, users, at_ms)
    each = np.arange(len(users))
    for slot, weight in enumerate(FAVOURITE_WEIGHT):
        liking[each, loved[:, slot]] += weight
    liking[each, loved[each, _session_draw(population, users, at_ms, 7, len(FAVOURITE_MS))]] += MOOD_WEIGHT
    return np.asarray(liking, np.float32)


def affinity(videos: Videos, users: Rows, at_ms: Rows) -> Floats:
    """Liking of each user for each video, popularity apart, in logits. [B] -> [B, N]"""
    liking = channel_affinity(videos.population, users, at_ms)[:, videos.channel]
    liking += (LATENT_WEIGHT / LATENT**0.5) * (videos.population.user_latent[users] @ videos.latent.T)
    return np.asarray(liking, np.float32)


def log_popularity(videos: Videos, at_ms: int) -> Floats:
    """Popularity of each video, in logits; -inf before it is published. [N]"""
    age_ms = at_ms - videos.published_ms
    fresh = EVERGREEN + (1 - EVERGREEN) * np.exp2(-np.maximum(age_ms, 0) / POPULARITY_HALF_LIFE_MS)
    viral = videos.burst * np.exp(-np.abs(at_ms - videos.burst_ms) / (4 * HOUR_MS))
    phase = 2 * np.pi * _uniform(videos.population.seed, np.arange(len(TOPICS)), np.array(50))
    trend = 0.4 * np.sin(phase + 2 * np.pi * at_ms / (30 * HOUR_MS))  # [T]
    total = videos.quality + videos.population.channel_size[videos.channel] + np.log(fresh) + viral
    total = total + (videos.population.channel_topics @ trend)[videos.channel]
    return np.where(age_ms >= 0, total, -np.inf).astype(np.float32)


def liking_of(videos: Videos, users: Rows, rows: Rows, at_ms: Rows) -> Floats:
    """Liking of each user for one video each, in logits. [E] -> [E]"""
    # A list is one person's at one moment: their taste for channels is computed once. 2^42 ms is the year 2109.
    _, first, of = np.unique((users << 42) + at_ms, return_index=True, return_inverse=True)
    channels = channel_affinity(videos.population, users[first], at_ms[first])[of, videos.channel[rows]]
    latent = (videos.population.user_latent[users] * videos.latent[rows]).sum(1)
    return np.asarray(channels + (LATENT_WEIGHT / LATENT**0.5) * latent, np.float32)


def start_chance(videos: Videos, users: Rows, rows: Rows, at_ms: Rows, passed: Rows) -> Doubles:
    """Chance that a user who looks at a video shown to them starts it; `passed`: how often they have passed it over.
    [E] -> [E]"""
    logit = liking_of(videos, users, rows, at_ms) + 0.5 * videos.quality[rows] - 3.0
    logit = logit - PASSED_WEIGHT * np.minimum(passed, MOST_PASSED)
    return np.asarray(1 / (1 + np.exp(-logit.astype(np.float64))))


def mean_watch_s(videos: Videos, users: Rows, rows: Rows, at_ms: Rows) -> Doubles:
    """Mean seconds watched of what was started. [E] -> [E]"""
    stay, share = _inclination(videos, users, rows, at_ms)
    return np.asarray(stay * share * videos.duration_s[rows] + (1 - stay) * np.mean(LEAVE_S))


def draw_watch_s(videos: Videos, rng: np.random.Generator, users: Rows, rows: Rows, at_ms: Rows) -> Doubles:
    """Seconds watched of what was started, drawn around that mean. [E] -> [E]"""
    stay, share = _inclination(videos, users, rows, at_ms)
    stays = rng.random(len(rows)) < stay
    watched = rng.beta(CONCENTRATION * share, CONCENTRATION * (1 - share)) * videos.duration_s[rows]
    return np.asarray(np.where(stays, watched, rng.uniform(*LEAVE_S, len(rows))))


def _inclination(videos: Videos, users: Rows, rows: Rows, at_ms: Rows) -> tuple[Doubles, Doubles]:
    """Chance that who started a video does not leave within seconds, and the share of its duration that who stays is
    expected to watch: less of long videos, more on television. [E] -> [E], [E]"""
    liking, quality = liking_of(videos, users, rows, at_ms), videos.quality[rows]
    on_tv = 0.5 * (devices(videos.population, users, at_ms) == DEVICES.index("tv"))
    stay = 0.9 * liking + 0.5 * quality - 1.5
    share = 0.5 * liking + 0.4 * quality - 0.5 * np.log(videos.duration_s[rows] / 60) - 0.6 + on_tv
    chances = [(1 / (1 + np.exp(-logit))).astype(np.float32).astype(np.float64) for logit in (stay, share)]
    return chances[0], np.clip(chances[1], 0.01, 0.99)


def _session_draw(population: Population, users: Rows, at_ms: Rows, kind: int, choices: int) -> Rows:
    """One of so many choices for each user's session. [B] -> [B]"""
    phase = (_uniform(population.seed, users, np.array(kind)) * SESSION_MS).astype(np.int64)
    drawn = _uniform(population.seed, users, np.array(kind), (at_ms + phase) // SESSION_MS)
    return (drawn * choices).astype(np.int64)


def _channel_name(channel: int) -> str:
    round_, topic = divmod(channel, len(TOPICS))
    again, kind = divmod(round_, len(KINDS))
    return f"{TOPICS[topic]} {KINDS[kind]}" + (f" {again + 1}" if again else "")


def _unit(rows: Any) -> Floats:
    rows = rows + 1e-6
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def _uniform(seed: int, *keys: Any) -> Doubles:
    """Numbers in [0, 1) that depend on nothing but the keys (splitmix64), broadcast over them."""
    with np.errstate(over="ignore"):
        state = np.asarray(seed, np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        for key in keys:
            state = (state ^ np.asarray(key).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return np.asarray((state >> np.uint64(11)).astype(np.float64) * 2.0**-53)
