"""Does order tell anything in a log? A sequence model on each user's watches as they were, and on the same shuffled.

Many logs that sequence models are compared on hardly have an order (Klenitskiy et al., RecSys 2024). The model here is
the cheapest one that sees it: items that were watched soon after each other speak for one another, the newest watch of
a history most. Learnt and asked in shuffled order it keeps all that does not hang on order, so the difference is what
order is worth to it; an encoder that keeps order may gain as much, and one that averages loses nothing where it is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from models.arrays import Doubles, Floats, Rows
from models.evaluation.backtest import walk_frozen
from models.evaluation.comparison import Estimate, Interval, hits, mean, mean_interval
from models.evaluation.eval_queries import EvalQueries, EvalQuery, History, Stream, evenly
from models.logs.pairs import KEPT, soon_after
from models.logs.timeline import first_of_pair

Progress = Callable[[int, int], None]

K = 10
SHUFFLES = 2
MOST_ROWS = 1_000_000  # the newest before the cut that are looked at
MOST_USERS = 5000  # who are asked, evenly from all
EVENNESS = 0.5  # how far popular items are held back on either side
WORTH = 0.05  # share of the recall that must be lost for order to be worth an encoder


@dataclass(frozen=True)
class OrderTest:
    """recall@K in order and shuffled, and their difference, paired by user."""

    ordered: Estimate
    shuffled: Estimate
    difference: Interval

    @property
    def lost(self) -> float:
        """The share of the recall in order that shuffling takes; NaN of none."""
        return self.difference.value / self.ordered.value if self.ordered.value else float("nan")

    @property
    def is_sequential(self) -> bool:
        return self.difference.low > 0 and self.lost >= WORTH

    def advice(self) -> str:
        """One sentence: which encoder is worth trying."""
        if not self.ordered.n:
            return "Nobody could be asked, so nothing is said of order."
        if self.is_sequential:
            return "Order tells: try model.encoder = recent and model.linear_order = true, and let validation decide."
        return "No order worth an encoder was found: the average of a history (model.encoder = average) will do."


class NextItems:
    """Items that were watched soon after those of the history, popular ones held back."""

    name = "in order"

    def __init__(self, stream: Stream, cut: int, catalogue: int) -> None:
        users, items = np.asarray(stream.users[:cut]), np.asarray(stream.items[:cut])
        new = first_of_pair(users, items) & (items < catalogue)
        counts = np.bincount(items[new], minlength=catalogue)
        held = sparse.diags_array(np.maximum(counts, 1).astype(np.float32) ** -EVENNESS)
        self._speaks = sparse.csr_array(held @ soon_after(users[new], items[new], catalogue) @ held)

    def scores(self, queries: EvalQueries) -> Floats:
        there = (queries.histories >= 0) & (queries.histories < self._speaks.shape[0])
        newer = there[:, ::-1].cumsum(axis=1)[:, ::-1] - there  # [B, H] watches that came after each
        places = np.nonzero(there)[0], queries.histories[there]
        shape = (len(queries), self._speaks.shape[0])
        weights = sparse.csr_array(((KEPT ** newer[there]).astype(np.float32), places), shape=shape)
        return np.asarray((weights @ self._speaks).toarray(), np.float32)

    def learn(self, rows: slice) -> None:
        """It is judged frozen."""


def order_test(
    stream: Stream,
    asked: EvalQuery,
    *,
    cut: int,
    catalogue: int,
    seed: int,
    progress: Progress = lambda done, total: None,
) -> OrderTest:
    """Learn from the newest rows before the cut and ask at it, in order and shuffled SHUFFLES times."""
    first = max(0, cut - MOST_ROWS)
    newest = Stream(stream.users[first:], stream.items[first:], stream.event_ms[first:])
    some = evenly(asked, MOST_USERS)
    some = EvalQuery(some.users, some.before - first, some.watched - first)
    found: list[Doubles] = []
    for number in range(SHUFFLES + 1):
        progress(number, SHUFFLES + 1)
        mine = shuffled(newest, cut - first, seed=seed + number) if number else newest
        model = NextItems(mine, cut - first, catalogue)
        walk = walk_frozen([model], History(mine), cut=cut - first, catalogue=catalogue, asked=some, coverage=False)
        found.append(hits(walk.ranks[model.name], K))
    progress(SHUFFLES + 1, SHUFFLES + 1)
    ordered, others = found[0], np.mean(found[1:], axis=0)
    return OrderTest(mean(ordered), mean(others), mean_interval(ordered - others))


def shuffled(stream: Stream, cut: int, *, seed: int) -> Stream:
    """The stream with each user's watches before the cut in random order; the rows behind it stay as they are."""
    users = np.asarray(stream.users[:cut])
    chance = np.random.default_rng([seed, 5]).random(cut)
    items: Rows = np.array(stream.items, np.int64)
    items[np.argsort(users, kind="stable")] = items[:cut][np.lexsort((chance, users))]
    return Stream(stream.users, items, stream.event_ms)
