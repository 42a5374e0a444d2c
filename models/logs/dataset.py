"""Completed watches in order of time, and what was known of each user just before any of them.

Columns may be memory-mapped files: a batch reads what it needs and the rest stays on disk. A query holds only what came
before its row (paper section 3.4: predict the next watch, never a held-out one from the middle), so the future cannot
leak into it whoever asks.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from models.arrays import Flags, Floats, Integers, Rows
from models.logs.examples import Examples, Queries
from models.logs.skips import SkipTimeline
from models.logs.stored_searches import SearchTimeline
from models.logs.timeline import HISTORY, Timeline, first_of_pair


@dataclass(frozen=True)
class Dataset:
    """users int [N] codes, items int [N] rows of the catalogue, event_ms int64 [N], sorted by time.

    weights float32 [N]: of the watch as an example, by what its user has said of it; None: all weigh 1.
    contexts int [N, K] codes, traits float32 [N, M]: of the watch itself, as a request would carry them."""

    users: Integers
    items: Integers
    event_ms: Rows
    contexts: Integers | None = None
    traits: Floats | None = None
    searches: SearchTimeline | None = None
    skips: SkipTimeline | None = None
    weights: Floats | None = None
    timeline_file: Path | None = None  # where the timeline may lie
    timeline: Timeline = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "timeline", Timeline(self.users, self.timeline_file))

    def __len__(self) -> int:
        return len(self.users)

    def histories(self, rows: Rows) -> Rows:
        """int64 [B, H]: items watched before each row, oldest first, -1 in front."""
        windows = self.timeline.before(rows, HISTORY)
        return np.where(windows >= 0, self.items[windows].astype(np.int64), -1)

    def queries(self, rows: Rows, *, age_window_ms: float | None = None, until: int | None = None) -> Queries:
        """Return what was known just before each row. With `age_window_ms`, the age of the row against the newest one
        before `until` (paper section 3.3, "example age"), in windows, at most 1; without, it is 0 as in serving."""
        queries = self.queries_at(self.histories(rows), self.users[rows], self.event_ms[rows], rows)
        if not age_window_ms:
            return queries
        newest_ms = self.event_ms[(until or len(self)) - 1]
        age = np.clip((newest_ms - self.event_ms[rows]) / age_window_ms, 0, 1).astype(np.float32)
        return replace(queries, age=age)

    def examples(self, rows: Rows) -> Examples:
        return Examples(self.queries(rows), self.items[rows].astype(np.int64))

    def new_rows(self, until: int) -> Rows:
        """Rows before `until` that are a user's first watch of an item; serving drops the others."""
        first = first_of_pair(self.users, self.items, timeline=self.timeline)
        return np.flatnonzero(first[:until])

    def skipped(self, until: int, size: int) -> Flags:
        """bool [size]: which of the catalogue's first items anybody has left uncompleted before row `until`."""
        if self.skips is None:
            return np.zeros(size, np.bool_)
        return self.skips.items(size, self.event_ms[until] if until < len(self) else np.inf)

    def queries_at(self, histories: Rows, users: Integers, event_ms: Rows, newest: Rows) -> Queries:
        """Users as of any time: their histories int64 [B, H], and the row of their newest watch then (-1: none), whose
        context they are taken to be in."""
        size, known = len(users), newest >= 0
        there = np.where(known, newest, 0)
        context, traits = np.empty((size, 0), np.int64), np.empty((size, 0), np.float32)
        if self.contexts is not None:
            context = np.where(known[:, None], self.contexts[there], 0).astype(np.int64)
        if self.traits is not None:
            traits = np.where(known[:, None], self.traits[there], np.nan).astype(np.float32)
        age, skips = np.zeros(size, np.float32), np.empty((size, 0), np.int64)
        if self.skips is not None:
            skips = self.skips.before(users, event_ms)
        return Queries(histories, self.tokens(users, event_ms), context, traits, age, skips)

    def tokens(self, users: Integers, event_ms: Integers) -> Rows:
        """int64 [B, Q]: words searched before that, -1 for none."""
        if self.searches is None:
            return np.empty((len(users), 0), np.int64)
        tokens = self.searches.before(users, event_ms)
        return np.where(tokens > 0, tokens, -1)
