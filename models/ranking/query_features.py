"""The features of a query: of the user and the request, computed once for all its candidates."""

from __future__ import annotations

import numpy as np

from models.arrays import Array, Floats
from models.ranking.feature import ids, number
from models.ranking.ranking_batch import (
    COMPLETIONS,
    DAY_MS,
    HISTORY,
    SECONDS,
    WATCHES,
    Codes,
    RankingBatch,
    count_of,
    known_or_nan,
    mean_of,
    newest,
)

FEW = 8.0  # watches' worth of everybody's mean in a user's own
RECENT = 10  # newest watches of a session, about


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
    return mean_of(batch.watched_share, ~np.isnan(batch.watched_share))


@number("query")
def last_watch_s(batch: RankingBatch) -> Floats:
    """Seconds of the newest watch: how this session goes ("up to the second" history, section 4.1)."""
    return known_or_nan(batch.timed[:, -1], batch.requests.watch_s[:, -1])


@number("query")
def shown_last_hour(batch: RankingBatch) -> Floats:
    """Items shown within the last hour: how far down this session the request is."""
    recent = (batch.requests.shown_rows >= 0) & (batch.shown_ago_s < 3600)
    return count_of(recent)


@number("query")
def hour(batch: RankingBatch) -> Floats:
    """Hour of the day, UTC: evenings are longer (time of day is one of Figure 7's kind of query features)."""
    return (batch.requests.now_ms % DAY_MS / 3_600_000).astype(np.float32)


@number("query")
def weekday(batch: RankingBatch) -> Floats:
    """Day of the week, UTC, Monday 0: week-ends are longer."""
    return ((batch.requests.now_ms // DAY_MS + 3) % 7).astype(np.float32)


def _context(batch: RankingBatch, field: str) -> Codes:
    nothing = Codes(np.zeros(len(batch.requests.now_ms), np.int64), [""])
    return batch.requests.contexts.get(field, nothing)


def _level(batch: RankingBatch, values: Array, newest_ones: int, column: int) -> Floats:
    """[B]: mean over the newest entries with FEW entries' worth of everybody's mean per watch (none of it while nothing
    is known of anybody); NaN for who has none: a level out of three watches is mostly luck."""
    chosen = batch.timed[:, -newest_ones:]
    count = chosen.sum(axis=1)
    total = np.where(chosen, values[:, -newest_ones:], np.float32(0)).sum(axis=1, dtype=np.float32)
    everything = batch.known.everything
    with np.errstate(divide="ignore", invalid="ignore"):
        usual = everything[:, column] / everything[:, WATCHES]
    is_known = np.isfinite(usual)
    few, usual = np.where(is_known, FEW, 0.0), np.where(is_known, usual, 0.0)
    return known_or_nan(count > 0, (total + few * usual) / np.maximum(count + few, 1))
