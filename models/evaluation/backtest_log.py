"""A stored log as a backtest walks it: numbered users and items, positives in time, and when each item became known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from models.arrays import Rows
from models.evaluation.eval_queries import Stream
from models.logs.stored_log import BUFFER_ROWS, StoredLog
from models.logs.stored_searches import StoredSearches
from models.logs.training_set import NO_WEIGHTS, TrainingSet, prepare


@dataclass(frozen=True)
class BacktestLog:
    """`stream` and the ids behind its numbers, in the order in which items became known (models.logs.training_set); and
    `training_set`, from which our own model learns. `stored` has the watches that were not completed, too."""

    stream: Stream
    training_set: TrainingSet
    stored: StoredLog
    user_ids: pl.Series  # [U]
    item_ids: pl.Series  # [I]

    def users_since(self, time_ms: int) -> Rows:
        """int64: all users of whom the log has a row from then on, completed or not, each once."""
        log, there = self.stored, np.zeros(len(self.user_ids), np.bool_)
        for start in range(int(np.searchsorted(log.event_ms, time_ms)), len(log), BUFFER_ROWS):
            there[log.users[start : start + BUFFER_ROWS]] = True
        return np.flatnonzero(there)


def read_stream(
    log: StoredLog,
    items: pl.DataFrame | None,
    *,
    searches: StoredSearches | None = None,
    context: bool = True,
    skips: int = 0,
    content: bool = False,
    signals: Mapping[str, float] = NO_WEIGHTS,
) -> BacktestLog:
    """`items` is a catalogue as `models.logs.log.read_items` gives it; `skips`, `content` and `signals` as
    models.logs.training_set.prepare takes them."""
    training_set = prepare(
        log, items, searches=searches, context=context, skips=skips, content=content, signals=signals
    )
    dataset = training_set.dataset
    columns = (np.asarray(column, np.int64) for column in (dataset.users, dataset.items, dataset.event_ms))
    user_ids = pl.Series("user_id", log.user_ids, pl.String)
    item_ids = pl.Series("item_id", training_set.catalogue.item_ids, pl.String)
    return BacktestLog(Stream(*columns), training_set, log, user_ids, item_ids)
