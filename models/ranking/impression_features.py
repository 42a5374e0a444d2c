"""The features of an impression: of a candidate, alone and beside what its user has watched and was shown."""

from __future__ import annotations

import numpy as np

from models.arrays import Doubles, Floats
from models.ranking.feature import ids, number
from models.ranking.ranking_batch import (
    COMPLETIONS,
    IMPRESSIONS,
    LENGTHS,
    SECONDS,
    WATCHES,
    Codes,
    RankingBatch,
    each,
    id_names,
    mean_of,
)

SMOOTHING = 20.0  # impressions' worth of the overall mean in what is known of an item, a channel, a topic
OLDEST_H = 24.0 * 7  # an item is not told to be older: an age that grows for ever is a date, and dates do not recur
RAREST = 1e-6  # share of the impressions


@ids("impression", "item", of_item=True)
def candidate(batch: RankingBatch) -> Codes:
    """Video id of the impression (section 4.1, Figure 7)."""
    return Codes(batch.candidates.rows + 1, batch.catalogue.item_ids, first=1)


@ids("impression", "channel", of_item=True)
def channel(batch: RankingBatch) -> Codes:
    """The owner of the video: section 4.1 describes a video by its channel."""
    return Codes(batch.channels.astype(np.int64), id_names(batch.catalogue, "channel"))


@ids("impression", "topic", many=True, of_item=True)
def topics(batch: RankingBatch) -> Codes:
    """Its subjects: section 4.1 describes a video by its topic."""
    return Codes(batch.topics.astype(np.int64), id_names(batch.catalogue, "topic"))


@ids("impression", "length", of_item=True)
def length(batch: RankingBatch) -> Codes:
    """Videos about as long: watch time is compared within them (duration-based quantiles, D2Q, KDD 2022)."""
    return Codes(batch.lengths, LENGTHS)


@ids("impression", "source", many=True)
def sources(batch: RankingBatch) -> Codes:
    """The sources that have nominated it: section 4.1, "which sources nominated this video candidate?"."""
    return batch.candidates.sources


# --- numbers of the impression: the past with its channel and its topics ---------------------------------------------


@number("impression")
def channel_watches(batch: RankingBatch) -> Floats:
    """Watches of this channel: "how many videos has the user watched from this channel?" (section 4.1)."""
    return batch.of_channel.count()


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
    return batch.of_topic.count()


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
    return batch.of_any_topic.count()


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
    return batch.mean_watched_s(batch.of_topic)


@number("impression")
def like_duration_share(batch: RankingBatch) -> Floats:
    """The share that this user watches of videos about as long: patience is for a length."""
    return mean_of(each(batch.watched_share, batch.request), batch.of_like_duration)


@number("impression")
def item_watches(batch: RankingBatch) -> Floats:
    """Watches of the very item: it was begun before."""
    return batch.of_item.count()


# --- numbers of the impression: shown before -------------------------------------------------------------------------


@number("impression")
def item_shown(batch: RankingBatch) -> Floats:
    """Previous impressions of this item to this user: shown and not watched sinks (section 4.1, "churn")."""
    return batch.shown_item.count()


@number("impression")
def since_item_shown_s(batch: RankingBatch) -> Floats:
    """Time since the item was shown to this user (section 4.1, Figure 7: "# previous impressions" and recency)."""
    return batch.since_shown_s(batch.shown_item)


@number("impression")
def channel_shown(batch: RankingBatch) -> Floats:
    """Previous impressions of this channel to this user: beside its watches, how often it was passed over."""
    return batch.shown_channel.count()


@number("impression")
def since_channel_shown_s(batch: RankingBatch) -> Floats:
    """Time since this channel was shown to this user."""
    return batch.since_shown_s(batch.shown_channel)


# --- numbers of the impression: the item itself ----------------------------------------------------------------------


@number("impression", of_item=True)
def duration_s(batch: RankingBatch) -> Floats:
    """Its length: no watch is expected to be longer."""
    return batch.durations_s


@number("impression", of_item=True)
def age_h(batch: RankingBatch) -> Floats:
    """Time since it was published, at most a week: fresh content is preferred (section 3.3)."""
    age = (batch.known_ms - batch.catalogue.published_ms(batch.candidates.rows)) / 3_600_000
    return np.clip(age, 0, OLDEST_H).astype(np.float32)


@number("impression", of_item=True)
def item_impression_share(batch: RankingBatch) -> Floats:
    """Log of its share of the recent impressions: how much it is shown, on a scale that does not grow."""
    return _log_share(batch, IMPRESSIONS)


@number("impression", of_item=True)
def item_watch_share(batch: RankingBatch) -> Floats:
    """Log of its share of the recent watches: how much it is watched."""
    return _log_share(batch, WATCHES)


@number("impression", of_item=True)
def item_watch_ratio(batch: RankingBatch) -> Floats:
    """Share of its recent impressions that were watched, smoothed: the pull of its thumbnail."""
    return _ratio(batch, batch.known.item, WATCHES, _of_length(batch, WATCHES))


@number("impression", of_item=True)
def item_completion(batch: RankingBatch) -> Floats:
    """Share of its recent impressions that were watched to completion, smoothed."""
    return _ratio(batch, batch.known.item, COMPLETIONS, _of_length(batch, COMPLETIONS))


@number("impression", of_item=True)
def item_mean_s(batch: RankingBatch) -> Floats:
    """Seconds per recent impression, smoothed: what is expected of anybody."""
    return _ratio(batch, batch.known.item, SECONDS, _of_length(batch, SECONDS))


@number("impression", of_item=True)
def item_lift(batch: RankingBatch) -> Floats:
    """Log of that over the same of all videos about as long: how good it is for its length (D2Q, KDD 2022)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log(item_mean_s(batch) / length_mean_s(batch)), np.float32)


@number("impression", of_item=True)
def length_mean_s(batch: RankingBatch) -> Floats:
    """Seconds per recent impression of videos about as long, smoothed: what stands in for a new item."""
    return _of_length(batch, SECONDS).astype(np.float32)


@number("impression", of_item=True)
def channel_mean_s(batch: RankingBatch) -> Floats:
    """Seconds per recent impression of its channel, smoothed: whose videos hold people."""
    return _ratio(batch, batch.known.channel, SECONDS, _usual(batch, SECONDS))


@number("impression", of_item=True)
def topic_mean_s(batch: RankingBatch) -> Floats:
    """Seconds per recent impression of its first topic, smoothed: what stands in for a new channel."""
    return _ratio(batch, batch.known.topic, SECONDS, _usual(batch, SECONDS))


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


def _log_share(batch: RankingBatch, column: int) -> Floats:
    total = np.maximum(batch.known.everything[:, column], 1.0)[batch.request]
    return np.log(batch.known.item[:, column] / total + RAREST).astype(np.float32)


def _ratio(batch: RankingBatch, known: Doubles, column: int, prior: Doubles) -> Floats:
    """[N]: per impression, with SMOOTHING impressions of `prior` [N]; NaN while nothing was ever shown."""
    return ((known[:, column] + SMOOTHING * prior) / (known[:, IMPRESSIONS] + SMOOTHING)).astype(np.float32)


def _usual(batch: RankingBatch, column: int) -> Doubles:
    """[N]: per impression of anything; NaN while nothing was ever shown."""
    total = batch.known.everything  # [B, 4]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((total[:, column] / total[:, IMPRESSIONS])[batch.request])


def _of_length(batch: RankingBatch, column: int) -> Doubles:
    """[N]: per impression of what is about as long: with it the statistics of an item begin, since nothing tells more
    of an unknown one's seconds than how long it lasts."""
    known, usual = batch.known.length, _usual(batch, column)
    return np.asarray((known[:, column] + SMOOTHING * usual) / (known[:, IMPRESSIONS] + SMOOTHING))
