"""Leave one out: of each user the last watch is the test, the one before it validates, the rest is learnt from.

The protocol of most published figures. It needs an order and no times, and so it lets a model learn from watches that
other users made later: its figures compare models with each other, and do not tell what a live system will reach.

Rows stand in parts (learnt from, validation, test) and not in time: a row's number says which part it is of, so that
the walks of a cut in time serve here too. Within a user the order is the log's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from models.arrays import Doubles, Rows
from models.catalogue.context import ContextVocabulary
from models.catalogue.item_frame import catalogue_of
from models.evaluation.comparison import hits
from models.evaluation.eval_queries import EvalQuery, History, Stream
from models.evaluation.split import BacktestError, Split
from models.logs.dataset import Dataset
from models.logs.log import items_from_frame
from models.logs.sequences import Sequences
from models.logs.training_set import TrainingSet

LEAST = 3  # watches of a user who is asked about: something to learn from, validation, test


@dataclass(frozen=True)
class HeldOut:
    """`history` of all rows, in parts; `training_set` of the same rows, without times. `parts.cut` is where the test
    begins and `parts.validation` where validation does."""

    training_set: TrainingSet
    history: History
    parts: Split
    user_ids: pl.Series  # [U]
    item_ids: pl.Series  # [C]

    @property
    def catalogue(self) -> int:
        return len(self.item_ids)

    def asked(self) -> EvalQuery:
        """The test: each user's last watch; a repeat is no case."""
        return self.history.next_unseen(self.parts.cut)


def hold_out(sequences: Sequences) -> HeldOut:
    """Raises BacktestError when no user has LEAST watches."""
    left = _left(sequences.users)
    long_enough = np.bincount(sequences.users)[sequences.users] >= LEAST
    part = np.where(long_enough, 2 - np.minimum(left, 2), 0)  # 0 learnt from, 1 validation, 2 test
    order = np.argsort(part, kind="stable")
    validation, cut = np.searchsorted(part[order], [1, 2]).tolist()
    if cut == len(order):
        raise BacktestError(f"leave one out: no user has {LEAST} watches, one each to learn from, validate and test")
    users, items = sequences.users[order], sequences.items[order]
    no_times = np.zeros(len(order), np.int64)
    stream = Stream(users, items, no_times)
    return HeldOut(
        _training_set(stream, sequences.item_ids),
        History(stream),
        Split(validation, cut, len(order)),
        pl.Series("user_id", sequences.user_ids, pl.String),
        pl.Series("item_id", sequences.item_ids, pl.String),
    )


def discounted_gain(ranks: Rows, k: int) -> Doubles:
    """float64 [n]: NDCG@k of each query, which has one good item: 1 / log2(2 + rank) among the first k, 0 behind."""
    return hits(ranks, k) / np.log2(2.0 + np.maximum(ranks, 0))


def _left(users: Rows) -> Rows:
    """int64 [N]: how many of the user's watches follow."""
    order = np.argsort(users, kind="stable")
    counts = np.bincount(users)
    ends = np.cumsum(counts)[users[order]]
    left = np.empty(len(users), np.int64)
    left[order] = ends - 1 - np.arange(len(users))
    return left


def _training_set(stream: Stream, item_ids: list[str]) -> TrainingSet:
    items = items_from_frame(pl.DataFrame({"item_id": item_ids})).with_columns(ids=pl.lit(None))
    rows, since = np.arange(len(item_ids)), np.zeros(len(item_ids), np.int64)
    dataset = Dataset(stream.users, stream.items, stream.event_ms)
    return TrainingSet(dataset, catalogue_of(items), ContextVocabulary(), since, since, np.arange(len(stream)), rows)
