"""The ranker's features: one definition, for training and for serving, for all candidates of all requests at once.

A feature is declared where it is computed: its kind (one id, several ids, a number), its scope (of the query: once per
request; of the impression: per candidate), its id space, and in its docstring the paper's section or the reason. It is
a function of a RankingBatch and of nothing else, so it can only know what was known then. Missing is NaN, and stays a
value of its own. The hash of all declarations goes into bundle and impressions: a server refuses a bundle whose
features it would compute differently, and training passes over impressions of other features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from models.arrays import Array, Doubles, Flags, Floats
from models.ranking.ranking_batch import (
    COMPLETIONS,
    DAY_MS,
    HISTORY,
    IMPRESSIONS,
    LENGTHS,
    MOST_TOPICS,
    SECONDS,
    SHOWN,
    WATCHES,
    Codes,
    RankingBatch,
    id_names,
    newest,
)

Scope = Literal["query", "impression"]

REVISION = 1  # to be raised when a feature is computed differently; test_features.py holds golden values
SMOOTHING = 20.0  # impressions' worth of the overall mean in what is known of an item, a channel, a topic
OLDEST_H = 24.0 * 7  # an item is not told to be older: an age that grows for ever is a date, and dates do not recur
FEW = 8.0  # watches' worth of everybody's mean in a user's own
RECENT = 10  # newest watches of a session, about
RAREST = 1e-6  # share of the impressions


@dataclass(frozen=True)
class Feature:
    """`space` of ids: those of one space share an embedding (paper section 4.1). `many`: averaged."""

    name: str
    scope: Scope
    compute: Callable[[RankingBatch], Any]
    space: str | None = None
    many: bool = False

    @property
    def is_number(self) -> bool:
        return self.space is None

    @property
    def kind(self) -> str:
        return "continuous" if self.is_number else "multivalent id" if self.many else "univalent id"

    @property
    def reason(self) -> str:
        return self.compute.__doc__ or ""


FEATURES: list[Feature] = []


def number(scope: Scope) -> Callable[[Callable[[RankingBatch], Any]], Callable[[RankingBatch], Any]]:
    """Declare a continuous feature: [B] for a query, [N] for an impression, NaN for missing."""

    def declare(compute: Callable[[RankingBatch], Any]) -> Callable[[RankingBatch], Any]:
        FEATURES.append(Feature(compute.__name__, scope, compute))
        return compute

    return declare


def ids(
    scope: Scope, space: str, *, many: bool = False
) -> Callable[[Callable[[RankingBatch], Codes]], Callable[[RankingBatch], Codes]]:
    """Declare a feature of ids: Codes with codes [B] or [N], and one axis more where there are `many`."""

    def declare(compute: Callable[[RankingBatch], Codes]) -> Callable[[RankingBatch], Codes]:
        FEATURES.append(Feature(compute.__name__, scope, compute, space, many))
        return compute

    return declare


# --- ids of the query ------------------------------------------------------------------------------------------------


@ids("query", "item", many=True)
def last_watched(batch: RankingBatch) -> Codes:
    """Videos watched last: section 4.1's "last N videos the user has watched", in the space of the candidates."""
    return Codes(batch.requests.watch_rows + 1, batch.catalogue.item_ids, first=1)


@ids("query", "language")
def language(batch: RankingBatch) -> Codes:
    """User language (section 4.1, Figure 7)."""
    return _context(batch, "language")


@ids("query", "region")
def region(batch: RankingBatch) -> Codes:
    """The country: what is watched, and for how long, differs between countries (section 3.3 of candidates)."""
    return _context(batch, "region")


@ids("query", "device")
def device(batch: RankingBatch) -> Codes:
    """The device: television sessions are longer (section 3.3 of candidates)."""
    return _context(batch, "device")


@ids("query", "surface")
def surface(batch: RankingBatch) -> Codes:
    """The page that asks: scores are predictions for a page, and people behave differently on each (section 4)."""
    return _context(batch, "surface")


# --- ids of the impression -------------------------------------------------------------------------------------------


@ids("impression", "item")
def candidate(batch: RankingBatch) -> Codes:
    """Video id of the impression (section 4.1, Figure 7)."""
    return Codes(batch.candidates.rows + 1, batch.catalogue.item_ids, first=1)


@ids("impression", "channel")
def channel(batch: RankingBatch) -> Codes:
    """The owner of the video: section 4.1 describes a video by its channel."""
    return Codes(batch.channels.astype(np.int64), id_names(batch.catalogue, "channel"))


@ids("impression", "topic", many=True)
def topics(batch: RankingBatch) -> Codes:
    """Its subjects: section 4.1 describes a video by its topic."""
    return Codes(batch.topics.astype(np.int64), id_names(batch.catalogue, "topic"))


@ids("impression", "length")
def length(batch: RankingBatch) -> Codes:
    """Videos about as long: watch time is compared within them (duration-based quantiles, D2Q, KDD 2022)."""
    return Codes(batch.lengths, LENGTHS)


@ids("impression", "source", many=True)
def sources(batch: RankingBatch) -> Codes:
    """The sources that have nominated it: section 4.1, "which sources nominated this video candidate?"."""
    return batch.candidates.sources


# --- numbers of the query --------------------------------------------------------------------------------------------


@number("query")
def since_last_watch_s(batch: RankingBatch) -> Floats:
    """Time since the last watch (section 4.1, Figure 7): a running session or a return."""
    return newest(batch.watched_ago_s, batch.requests.there)


@number("query")
def history_entries(batch: RankingBatch) -> Floats:
    """The number of known watches: the other history features mean less when there is little."""
    return np.asarray(batch.entries, np.float32)


@number("query")
def history_mean_s(batch: RankingBatch) -> Floats:
    """Mean seconds of this user's watches: the level of every expectation."""
    return _level(batch, batch.requests.watch_s, HISTORY, SECONDS)


@number("query")
def history_completion(batch: RankingBatch) -> Floats:
    """Share of the watches that were completed: who skips much skips the next one too."""
    return _level(batch, batch.requests.completed, HISTORY, COMPLETIONS)


@number("query")
def recent_mean_s(batch: RankingBatch) -> Floats:
    """Seconds of the newest few watches: how this session goes ("up to the second" history, section 4.1)."""
    return _level(batch, batch.requests.watch_s, RECENT, SECONDS)


@number("query")
def recent_completion(batch: RankingBatch) -> Floats:
    """Share of the newest few watches that were completed."""
    return _level(batch, batch.requests.completed, RECENT, COMPLETIONS)


@number("query")
def history_share(batch: RankingBatch) -> Floats:
    """The share of a video that this user watches: mean of watched over duration, where durations are known."""
    return _mean(batch.watched_share, ~np.isnan(batch.watched_share))


@number("query")
def last_watch_s(batch: RankingBatch) -> Floats:
    """Seconds of the newest watch: how this session goes ("up to the second" history, section 4.1)."""
    return _where(batch.timed[:, -1], batch.requests.watch_s[:, -1])


@number("query")
def shown_last_hour(batch: RankingBatch) -> Floats:
    """Items shown within the last hour: how far down this session the request is."""
    recent = (batch.requests.shown_rows >= 0) & (batch.shown_ago_s < 3600)
    return _count(recent)


@number("query")
def hour(batch: RankingBatch) -> Floats:
    """Hour of the day, UTC: evenings are longer (time of day is one of Figure 7's kind of query features)."""
    return (batch.requests.now_ms % DAY_MS / 3_600_000).astype(np.float32)


@number("query")
def weekday(batch: RankingBatch) -> Floats:
    """Day of the week, UTC, Monday 0: week-ends are longer."""
    return ((batch.requests.now_ms // DAY_MS + 3) % 7).astype(np.float32)


# --- numbers of the impression: the past with its channel and its topics ---------------------------------------------


@number("impression")
def channel_watches(batch: RankingBatch) -> Floats:
    """Watches of this channel: "how many videos has the user watched from this channel?" (section 4.1)."""
    return _count(batch.of_channel)


@number("impression")
def channel_watched_s(batch: RankingBatch) -> Floats:
    """Seconds with this channel: the past with its kind predicts the future with it (section 4.1)."""
    return batch.watched_s(batch.of_channel)


@number("impression")
def since_channel_s(batch: RankingBatch) -> Floats:
    """Time since this channel: "when was the last time the user watched a video on this topic?" (section 4.1)."""
    return batch.since_watched_s(batch.of_channel)


@number("impression")
def topic_watches(batch: RankingBatch) -> Floats:
    """Watches of its first topic (section 4.1)."""
    return _count(batch.of_topic)


@number("impression")
def topic_watched_s(batch: RankingBatch) -> Floats:
    """Seconds with its first topic (section 4.1)."""
    return batch.watched_s(batch.of_topic)


@number("impression")
def since_topic_s(batch: RankingBatch) -> Floats:
    """Time since its first topic (section 4.1)."""
    return batch.since_watched_s(batch.of_topic)


@number("impression")
def any_topic_watches(batch: RankingBatch) -> Floats:
    """Watches that share any of its topics (section 4.1)."""
    return _count(batch.of_any_topic)


@number("impression")
def any_topic_watched_s(batch: RankingBatch) -> Floats:
    """Seconds of watches that share any of its topics (section 4.1)."""
    return batch.watched_s(batch.of_any_topic)


@number("impression")
def since_any_topic_s(batch: RankingBatch) -> Floats:
    """Time since a watch that shares any of its topics (section 4.1)."""
    return batch.since_watched_s(batch.of_any_topic)


@number("impression")
def topic_mean_watched_s(batch: RankingBatch) -> Floats:
    """Seconds per watch of its first topic: a user who begins many videos and leaves is not one who stays."""
    return _mean(batch.requests.watch_s[batch.request], batch.of_topic & batch.timed[batch.request])


@number("impression")
def like_duration_share(batch: RankingBatch) -> Floats:
    """The share that this user watches of videos about as long: patience is for a length."""
    return _mean(batch.watched_share[batch.request], batch.of_like_duration & batch.timed[batch.request])


@number("impression")
def item_watches(batch: RankingBatch) -> Floats:
    """Watches of the very item: it was begun before."""
    return _count(batch.of_item)


# --- numbers of the impression: shown before -------------------------------------------------------------------------


@number("impression")
def item_shown(batch: RankingBatch) -> Floats:
    """Previous impressions of this item to this user: shown and not watched sinks (section 4.1, "churn")."""
    return _count(batch.shown_item)


@number("impression")
def since_item_shown_s(batch: RankingBatch) -> Floats:
    """Time since the item was shown to this user (section 4.1, Figure 7: "# previous impressions" and recency)."""
    return batch.since_shown_s(batch.shown_item)


@number("impression")
def channel_shown(batch: RankingBatch) -> Floats:
    """Previous impressions of this channel to this user: beside its watches, how often it was passed over."""
    return _count(batch.shown_channel)


@number("impression")
def since_channel_shown_s(batch: RankingBatch) -> Floats:
    """Time since this channel was shown to this user."""
    return batch.since_shown_s(batch.shown_channel)


# --- numbers of the impression: the item itself ----------------------------------------------------------------------


@number("impression")
def duration_s(batch: RankingBatch) -> Floats:
    """Its length: no watch is expected to be longer."""
    return batch.durations_s


@number("impression")
def age_h(batch: RankingBatch) -> Floats:
    """Time since it was published, at most a week: fresh content is preferred (section 3.3)."""
    age = (batch.now_ms - batch.catalogue.published_ms(batch.candidates.rows)) / 3_600_000
    return np.clip(age, 0, OLDEST_H).astype(np.float32)


@number("impression")
def item_impression_share(batch: RankingBatch) -> Floats:
    """Log of its share of the recent impressions: how much it is shown, on a scale that does not grow."""
    return _log_share(batch, IMPRESSIONS)


@number("impression")
def item_watch_share(batch: RankingBatch) -> Floats:
    """Log of its share of the recent watches: how much it is watched."""
    return _log_share(batch, WATCHES)


@number("impression")
def item_watch_ratio(batch: RankingBatch) -> Floats:
    """Share of its recent impressions that were watched, smoothed: the pull of its thumbnail."""
    return _ratio(batch, batch.candidates.item, WATCHES, _of_length(batch, WATCHES))


@number("impression")
def item_completion(batch: RankingBatch) -> Floats:
    """Share of its recent impressions that were watched to completion, smoothed."""
    return _ratio(batch, batch.candidates.item, COMPLETIONS, _of_length(batch, COMPLETIONS))


@number("impression")
def item_mean_s(batch: RankingBatch) -> Floats:
    """Seconds per recent impression, smoothed: what is expected of anybody."""
    return _ratio(batch, batch.candidates.item, SECONDS, _of_length(batch, SECONDS))


@number("impression")
def item_lift(batch: RankingBatch) -> Floats:
    """Log of that over the same of all videos about as long: how good it is for its length (D2Q, KDD 2022)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log(item_mean_s(batch) / length_mean_s(batch)), np.float32)


@number("impression")
def length_mean_s(batch: RankingBatch) -> Floats:
    """Seconds per recent impression of videos about as long, smoothed: what stands in for a new item."""
    return _of_length(batch, SECONDS).astype(np.float32)


@number("impression")
def channel_mean_s(batch: RankingBatch) -> Floats:
    """Seconds per recent impression of its channel, smoothed: whose videos hold people."""
    return _ratio(batch, batch.candidates.channel, SECONDS, _usual(batch, SECONDS))


@number("impression")
def topic_mean_s(batch: RankingBatch) -> Floats:
    """Seconds per recent impression of its first topic, smoothed: what stands in for a new channel."""
    return _ratio(batch, batch.candidates.topic, SECONDS, _usual(batch, SECONDS))


# --- numbers of the impression: what retrieval says ------------------------------------------------------------------


@number("impression")
def retrieval_score(batch: RankingBatch) -> Floats:
    """Inner product of user and item vector: the score that the two towers gave it (section 4.1)."""
    return batch.candidates.score


@number("impression")
def retrieval_gap(batch: RankingBatch) -> Floats:
    """Score below the best of its request: the scores' level differs between users."""
    return np.asarray(batch.candidates.score - batch.candidates.best[batch.request])


@number("impression")
def retrieval_rank(batch: RankingBatch) -> Floats:
    """Place among the request's candidates by that score, from 1."""
    return batch.candidates.rank


@number("impression")
def trending_watches(batch: RankingBatch) -> Floats:
    """Decayed watches in the trending list that nominated it: section 4.1, "what scores did they assign?"."""
    return batch.candidates.trending


@number("impression")
def similar_score(batch: RankingBatch) -> Floats:
    """Likeness to a video watched last, where that nominated it: section 4.1, "what scores did they assign?"."""
    return batch.candidates.similar


# --- the schema ------------------------------------------------------------------------------------------------------


def _describe(feature: Feature) -> str:
    return f"{feature.name}:{feature.kind}:{feature.scope}:{feature.space}"


SCHEMA_HASH = hashlib.sha256(
    f"{[*map(_describe, FEATURES)]}/{REVISION}/{HISTORY}/{SHOWN}/{MOST_TOPICS}".encode()
).hexdigest()[:16]


@cache
def numbers_of(scope: Scope) -> tuple[Feature, ...]:
    """In the order in which their values travel."""
    return tuple(feature for feature in FEATURES if feature.is_number and feature.scope == scope)


@cache
def ids_of(scope: Scope) -> tuple[Feature, ...]:
    return tuple(feature for feature in FEATURES if not feature.is_number and feature.scope == scope)


def compute_numbers(batch: RankingBatch, scope: Scope) -> Floats:
    """float32 [B, F] of scope query, [N, F] of scope impression; NaN for missing, never infinite."""
    with np.errstate(invalid="ignore", over="ignore"):
        columns = [np.asarray(feature.compute(batch), np.float32) for feature in numbers_of(scope)]
        values: Floats = np.stack(columns, axis=1)
    values[~np.isfinite(values)] = np.nan
    return values


def compute_ids(batch: RankingBatch, scope: Scope) -> dict[str, Codes]:
    """By feature; codes [B, M] of scope query, [N, M] of scope impression, M 1 where there is one id."""
    found = {}
    for feature in ids_of(scope):
        named = feature.compute(batch)
        found[feature.name] = named if feature.many else Codes(named.codes[:, None], named.names, named.first)
    return found


def _context(batch: RankingBatch, field: str) -> Codes:
    nothing = Codes(np.zeros(len(batch.requests.now_ms), np.int64), [""])
    return batch.requests.contexts.get(field, nothing)


def _count(entries: Flags) -> Floats:
    return np.asarray(np.count_nonzero(entries, axis=1), np.float32)


def _where(known: Flags, values: npt.NDArray[np.floating]) -> Floats:
    return np.where(known, values, np.nan).astype(np.float32)


def _level(batch: RankingBatch, values: Array, newest_ones: int, column: int) -> Floats:
    """[B]: mean over the newest entries with FEW entries' worth of everybody's mean per watch (none of it while nothing
    is known of anybody); NaN for who has none: a level out of three watches is mostly luck."""
    chosen = batch.timed[:, -newest_ones:]
    count = chosen.sum(axis=1)
    total = np.where(chosen, values[:, -newest_ones:], np.float32(0)).sum(axis=1, dtype=np.float32)
    everything = batch.candidates.everything
    with np.errstate(divide="ignore", invalid="ignore"):
        usual = everything[:, column] / everything[:, WATCHES]
    few = np.where(np.isfinite(usual), FEW, 0.0)
    return _where(count > 0, (total + few * np.nan_to_num(usual)) / np.maximum(count + few, 1))


def _mean(values: Array, chosen: Flags) -> Floats:
    """[B, H], [B, H] -> [B]: of the chosen entries, NaN for none."""
    count = chosen.sum(axis=1)
    total = np.where(chosen, values, np.float32(0)).sum(axis=1, dtype=np.float32)
    return _where(count > 0, total / np.maximum(count, 1).astype(np.float32))


def _log_share(batch: RankingBatch, column: int) -> Floats:
    total = np.maximum(batch.candidates.everything[:, column], 1.0)[batch.request]
    return np.log(batch.candidates.item[:, column] / total + RAREST).astype(np.float32)


def _ratio(batch: RankingBatch, known: Doubles, column: int, prior: Doubles) -> Floats:
    """[N]: per impression, with SMOOTHING impressions of `prior` [N]; NaN while nothing was ever shown."""
    return ((known[:, column] + SMOOTHING * prior) / (known[:, IMPRESSIONS] + SMOOTHING)).astype(np.float32)


def _usual(batch: RankingBatch, column: int) -> Doubles:
    """[N]: per impression of anything; NaN while nothing was ever shown."""
    total = batch.candidates.everything  # [B, 4]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((total[:, column] / total[:, IMPRESSIONS])[batch.request])


def _of_length(batch: RankingBatch, column: int) -> Doubles:
    """[N]: per impression of what is about as long: with it the statistics of an item begin, since nothing tells more
    of an unknown one's seconds than how long it lasts."""
    known, usual = batch.candidates.length, _usual(batch, column)
    return np.asarray((known[:, column] + SMOOTHING * usual) / (known[:, IMPRESSIONS] + SMOOTHING))
