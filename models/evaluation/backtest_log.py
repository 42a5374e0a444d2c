"""A stored log as a backtest walks it: numbered users and items, positives in time, and when each item became known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from models.arrays import Rows
from models.evaluation.eval_queries import Stream
from models.logs.stored_log import StoredLog
from models.logs.stored_searches import StoredSearches
from models.logs.training_set import TrainingSet, prepare


@dataclass(frozen=True)
class Reading:
    """`stream` and the ids behind its numbers, in the order in which items became known (models.logs.training_set); and
    `training_set`, from which our own model learns."""

    stream: Stream
    training_set: TrainingSet
    user_ids: pl.Series  # [U]
    item_ids: pl.Series  # [I]

    @property
    def known_ms(self) -> Rows:
        """int64 [I], never falls."""
        return self.training_set.known_ms

    @property
    def born_ms(self) -> Rows:
        """int64 [I]: publication, else first row of the log, else the time of the first row of all."""
        return self.training_set.born_ms

    def known_at(self, cut: int) -> int:
        """C: how many items were known just before row `cut` of the stream."""
        return self.training_set.known_at(cut)


def read_stream(
    log: StoredLog, items: pl.DataFrame | None, *, searches: StoredSearches | None = None, context: bool = True
) -> Reading:
    """`items` is a catalogue as `models.logs.log.read_items` gives it."""
    training_set = prepare(log, items, searches=searches, context=context)
    dataset = training_set.dataset
    columns = (np.asarray(column, np.int64) for column in (dataset.users, dataset.items, dataset.event_ms))
    user_ids = pl.Series("user_id", log.user_ids, pl.String)
    return Reading(
        Stream(*columns), training_set, user_ids, pl.Series("item_id", training_set.catalogue.item_ids, pl.String)
    )
