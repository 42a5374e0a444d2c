"""The ranker's features: one definition for training and serving, for all candidates of all requests at once.

A feature reads what was known at `now_ms`: the viewer's history, the item's facts, the item's statistics up to then.
Missing is NaN and stays its own value. The hash of the names and of the encoding goes into the bundle, and a server
refuses a bundle whose features it would compute differently.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.catalogue import Catalogue
from models.viewer import Viewer

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

HISTORY = 50  # watches of any length that are looked at

FEATURES = (
    "item_mean_s",  # seconds per impression, smoothed: the item-only estimate of the target
    "item_completion",  # share of impressions watched to completion, smoothed
    "item_log_share",  # log share of impressions: popularity that does not grow with the log
    "item_duration_s",  # no watch is expected to be longer
    "item_age_h",  # freshness (paper section 3.3, here of the item)
    "channel_watches",  # past with this channel: "the most important signals" (paper section 4.1)
    "channel_watch_s",
    "channel_since_s",
    "topic_watches",  # past with this topic
    "topic_watch_s",
    "item_watches",  # the item itself was watched, not to completion
    "since_last_s",  # a running session or a return
    "history_watches",  # how much is known of the viewer
    "history_mean_s",  # how long this viewer watches
    "retrieval_gap",  # retrieval score below the request's best: the scores' level differs between viewers
    "hour",  # of the day, UTC
)
SCHEMA_HASH = hashlib.sha256(f"{FEATURES}/x,x2,sqrt,missing/{HISTORY}".encode()).hexdigest()[:16]

SMOOTHING = 20.0  # impressions' worth of the overall mean in an item's statistics


@dataclass(frozen=True)
class Histories:
    """Of B requests: each viewer's newest watches, oldest first, padded in front. [B, H]; `there` marks entries."""

    rows: Rows  # catalogue rows, -1 for items it does not know
    event_ms: Rows
    watch_s: Floats
    there: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Statistics:
    """Per candidate: impressions, watched seconds and completions of its item, and of all items, up to now. [N]"""

    impressions: npt.NDArray[np.float64]
    seconds: npt.NDArray[np.float64]
    completions: npt.NDArray[np.float64]
    all_impressions: npt.NDArray[np.float64]
    all_seconds: npt.NDArray[np.float64]
    all_completions: npt.NDArray[np.float64]


def read_histories(viewers: Sequence[Viewer], catalogue: Catalogue) -> Histories:
    """The newest watches of each viewer as arrays."""
    rows = np.full((len(viewers), HISTORY), -1, np.int64)  # [B, H]
    event_ms = np.zeros((len(viewers), HISTORY), np.int64)
    watch_s = np.zeros((len(viewers), HISTORY), np.float32)
    there = np.zeros((len(viewers), HISTORY), np.bool_)
    for at, viewer in enumerate(viewers):
        newest = viewer.watches[-HISTORY:]
        if newest:
            last = slice(HISTORY - len(newest), None)
            rows[at, last] = catalogue.rows(watch.item_id for watch in newest)
            event_ms[at, last] = [watch.event_ms for watch in newest]
            watch_s[at, last] = [watch.watch_s for watch in newest]
            there[at, last] = True
    return Histories(rows, event_ms, watch_s, there)


def compute_features(
    catalogue: Catalogue,
    histories: Histories,
    *,
    now_ms: Rows,
    request: Rows,
    rows: Rows,
    statistics: Statistics,
    gap: Floats,
) -> Floats:
    """Features of N candidates of B requests.

    now_ms int64 [B]: time of each request; request int64 [N]: which request a candidate belongs to; rows int64 [N]: its
    catalogue row, -1 for unknown; gap float32 [N]: see `retrieval_gap`. Returns float32 [N, F], NaN for missing.
    """
    viewer = _viewer_features(histories, now_ms)
    columns = {
        **_item_features(catalogue, rows, statistics, now_ms[request]),
        **_past_features(catalogue, histories, now_ms, request, rows),
        **{name: values[request] for name, values in viewer.items()},
        "retrieval_gap": gap,
    }
    return np.stack([columns[name] for name in FEATURES], axis=1).astype(np.float32)


def retrieval_gap(scores: Floats) -> Floats:
    """[C]: each score below the best of its request; NaN where there is no score."""
    finite = np.isfinite(scores)
    if not finite.any():
        return np.full(len(scores), np.nan, np.float32)
    return np.where(finite, scores - scores[finite].max(), np.nan).astype(np.float32)


def _item_features(
    catalogue: Catalogue, rows: Rows, known: Statistics, now_ms: Rows
) -> dict[str, npt.NDArray[np.floating]]:
    shown = known.impressions + SMOOTHING
    mean_s = known.all_seconds / np.maximum(known.all_impressions, 1)
    completion = known.all_completions / np.maximum(known.all_impressions, 1)
    return {
        "item_mean_s": (known.seconds + SMOOTHING * mean_s) / shown,
        "item_completion": (known.completions + SMOOTHING * completion) / shown,
        "item_log_share": np.log((known.impressions + 1) / (known.all_impressions + len(catalogue) + 1)),
        "item_duration_s": catalogue.duration_s(rows),
        "item_age_h": np.maximum(0, now_ms - catalogue.published_ms(rows)) / 3_600_000,
    }


def _past_features(
    catalogue: Catalogue, histories: Histories, now_ms: Rows, request: Rows, rows: Rows
) -> dict[str, npt.NDArray[np.floating]]:
    channels, topics = catalogue.channel_codes(rows)[:, None], catalogue.topic_codes(rows)[:, None]  # [N, 1]
    same_channel = (catalogue.channel_codes(histories.rows)[request] == channels) & (channels > 0)  # [N, H]
    same_topic = (catalogue.topic_codes(histories.rows)[request] == topics) & (topics > 0)  # [N, H]
    same_item = (histories.rows[request] == rows[:, None]) & (rows[:, None] >= 0)  # [N, H]
    watch_s = histories.watch_s[request]  # [N, H]
    past_s = (now_ms[:, None] - histories.event_ms)[request] / 1000  # [N, H]
    return {
        "channel_watches": same_channel.sum(axis=1),
        "channel_watch_s": (same_channel * watch_s).sum(axis=1),
        "channel_since_s": _newest(past_s, same_channel),
        "topic_watches": same_topic.sum(axis=1),
        "topic_watch_s": (same_topic * watch_s).sum(axis=1),
        "item_watches": same_item.sum(axis=1),
    }


def _viewer_features(histories: Histories, now_ms: Rows) -> dict[str, npt.NDArray[np.floating]]:
    count = histories.there.sum(axis=1)  # [B]
    past_s = (now_ms[:, None] - histories.event_ms) / 1000  # [B, H]
    return {
        "since_last_s": _newest(past_s, histories.there),
        "history_watches": count,
        "history_mean_s": np.where(count > 0, histories.watch_s.sum(axis=1) / np.maximum(count, 1), np.nan),
        "hour": now_ms / 3_600_000 % 24,
    }


def _newest(past_s: npt.NDArray[np.floating], chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.floating]:
    """The smallest of the chosen entries of each row, at least 0; NaN where none is chosen."""
    smallest = np.where(chosen, past_s, np.inf).min(axis=1)
    return np.where(np.isinf(smallest), np.nan, np.maximum(smallest, 0))
