"""A stored log as a backtest walks it: numbered users and items, positives in time, and when each item became known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from models.evaluation.eval_queries import Stream
from models.logs.stored_log import StoredLog
from models.logs.stored_searches import StoredSearches
from models.logs.training_set import TrainingSet, prepare


@dataclass(frozen=True)
class BacktestLog:
    """`stream` and the ids behind its numbers, in the order in which items became known (models.logs.training_set); and
    `training_set`, from which our own model learns."""

    stream: Stream
    training_set: TrainingSet
    user_ids: pl.Series  # [U]
    item_ids: pl.Series  # [I]


def read_stream(
    log: StoredLog, items: pl.DataFrame | None, *, searches: StoredSearches | None = None, context: bool = True
) -> BacktestLog:
    """`items` is a catalogue as `models.logs.log.read_items` gives it."""
    training_set = prepare(log, items, searches=searches, context=context)
    dataset = training_set.dataset
    columns = (np.asarray(column, np.int64) for column in (dataset.users, dataset.items, dataset.event_ms))
    user_ids = pl.Series("user_id", log.user_ids, pl.String)
    return BacktestLog(
        Stream(*columns), training_set, user_ids, pl.Series("item_id", training_set.catalogue.item_ids, pl.String)
    )
