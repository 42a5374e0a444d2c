"""The prequential test: the rank of each example's item before it is learnt, by three models at once.

The live model, the release as it was, and popularity are ranked over the whole catalogue, on the same examples, before
any of them learns these: test, then train. That costs in proportion to the catalogue, so a trainer ranks as many as a
fixed budget of scores pays for, whatever the catalogue's size.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from models.arrays import Flags, Rows
from models.evaluation.backtest import rows_at_once, target_ranks
from models.logs.examples import Examples
from models.retrieval.candidates import CandidateModel, with_one
from models.retrieval.incremental import IncrementalTrainer

LEAST_EXAMPLES = 16  # ranked together at least: reading the table costs as much


class Ranks(NamedTuple):
    """0-based rank of each example's item among all items but those already watched, int64 [B], before learning it.

    -1: the item is not known to that model, a miss. `counted` is False where the item was watched before: serving would
    have left it out, so it is neither hit nor miss (its ranks are -1 too).
    """

    live: Rows
    frozen: Rows
    popular: Rows
    counted: Flags


class Budget:
    """A limit to the examples of a batch that are ranked: `scores` numbers per batch are granted and saved up."""

    def __init__(self, scores: int) -> None:
        self._scores = self._saved = scores

    def grant(self, examples: int, items: int) -> int:
        """Grant some of this batch; 0 until enough is saved up for as many examples as the table is read for anyway."""
        least = min(examples, LEAST_EXAMPLES)
        granted = min(examples, self._saved // max(items, 1))
        granted = granted if granted >= least else 0
        self._saved = min(self._saved - granted * items + self._scores, self._scores + (LEAST_EXAMPLES + 1) * items)
        return granted


def rank_before(trainer: IncrementalTrainer, released: CandidateModel, examples: Examples) -> Ranks:
    """Ranks by the trainer as it is, by its release, and by the trainer's popularity counts."""
    vectors, popular = trainer.vectors(), trainer.popularity.log_share()
    frozen = released.item_vectors()
    size = rows_at_once(len(vectors))
    blocks = []
    for start in range(0, max(1, len(examples)), size):  # an empty batch is one empty block
        block = examples.take(slice(start, start + size))
        histories = block.queries.histories
        case, place = np.nonzero(histories >= 0)
        item = histories[case, place]
        old = trainer.in_release(item)
        known, skips = _released(trainer, histories), _released(trainer, block.queries.skips)
        users = with_one(released.encode(replace(block.queries, histories=known, skips=skips)))
        targets = block.targets
        ranks = (
            target_ranks(trainer.user_vectors(block.queries) @ vectors.T, targets, case, item),
            target_ranks(users @ frozen.T, _released(trainer, targets), case[old], item[old]),
            target_ranks(np.tile(popular, (len(block), 1)), targets, case, item),
        )
        repeated = block.repeated()
        blocks.append((*(np.where(repeated, -1, one) for one in ranks), ~repeated))
    return Ranks._make(np.concatenate(columns) for columns in zip(*blocks, strict=True))


def _released(trainer: IncrementalTrainer, rows: Rows) -> Rows:
    """The rows that the release has, -1 for those that it has not."""
    return np.where((rows >= 0) & trainer.in_release(np.maximum(rows, 0)), rows, -1)
