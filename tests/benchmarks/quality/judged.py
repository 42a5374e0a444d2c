"""What the benchmarks of quality share: KuaiRand cut in time, and ranks compared on the same cases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from infra.platform.settings import Model
from models.arrays import Rows
from models.evaluation.comparison import paired, recall
from models.evaluation.eval_queries import History, Stream
from models.logs.stored_log import store_frame
from models.logs.stored_searches import StoredSearches, store_searches
from models.logs.training_set import NO_WEIGHTS, TrainingSet, prepare
from tests.benchmarks.ranking.ranking_ground import scratch
from tests.harness import kuairand

CUTOFFS = (10, 50, 100, 500)
COMPLETED_S = 18.0


@dataclass(frozen=True)
class Ground:
    """A data set with its cases, and the rows of it that carry real stamps."""

    source: TrainingSet
    history: History
    stamped: Rows

    def row_at(self, share: float) -> int:
        """The row at which this share of the stamped ones has passed."""
        return int(self.stamped[int(len(self.stamped) * share)])


def kuairand_ground(*, skips: int = Model().skips) -> Ground:
    """The log with what was not watched long, of which the towers may read so many `skips`. Raises FileNotFoundError
    where the data is absent."""
    log, items = kuairand.read_kuairand(skips=True)
    return ground_of(log, items, skips=skips)


def ground_of(
    log: pl.DataFrame,
    items: pl.DataFrame,
    searches: pl.DataFrame | None = None,
    *,
    skips: int = 0,
    signals: Mapping[str, float] = NO_WEIGHTS,
) -> Ground:
    stored = store_frame(log, scratch(), completed_s=COMPLETED_S)
    words: StoredSearches | None = None
    if searches is not None:
        words = store_searches(searches.select("user_id", "query", "event_ms"), stored, buckets=65_536)
    source = prepare(stored, items, searches=words, skips=skips, signals=signals)
    dataset = source.dataset
    columns = (np.asarray(column, np.int64) for column in (dataset.users, dataset.items, dataset.event_ms))
    stamped = np.flatnonzero(~np.isnan(stored.watch_s[source.completed]))
    return Ground(source, History(Stream(*columns)), stamped)


def recalls(ranks: Rows, clusters: Rows | None = None) -> dict[str, float]:
    return {f"R@{k}": round(recall(ranks, k, clusters).value, 4) for k in CUTOFFS}


def differences(name: str, ranks: Rows, other: str, others: Rows, clusters: Rows | None = None) -> dict[str, str]:
    """By cutoff: the paired difference and its 95 % interval, a star where 0 lies outside."""
    found = {}
    for k in CUTOFFS:
        difference = paired((name, ranks), (other, others), k, clusters)
        found[f"d@{k}"] = f"{difference}{' *' if difference.is_significant else ''}"
    return found
