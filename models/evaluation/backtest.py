"""The walk of a backtest: recommenders are asked before each query, then told what happened, all on the same queries.

Frozen, everyone is asked once, at the cut. Live, the test part is walked in blocks: each watch is ranked by what was
learnt before its block, with the history as it was before the watch itself, and only then is the block learnt. The
whole catalogue is ranked (sampled metrics mislead, Krichene and Rendle 2020), what the user has watched struck out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from models.arrays import Floats, Rows
from models.evaluation.comparison import Estimate
from models.evaluation.coverage import Coverage
from models.evaluation.eval_queries import EvalQueries, EvalQuery, History

Lists = Callable[[EvalQueries, Rows, Floats], None]
Progress = Callable[[int, int], None]

BLOCK = 250  # positives between two learning steps of a live walk
CELLS = 30_000_000  # most scores held at once
LISTED = 500  # items of a candidate list
MISS = -1  # the rank of an item that was not known at the cut


class Recommender(Protocol):
    """A recommender under judgement. It was built from the stream's rows before the cut and keeps the stream to learn
    from."""

    @property
    def name(self) -> str: ...

    def scores(self, queries: EvalQueries) -> Floats:
        """float32 [B, C], higher is better, finite; the caller may overwrite it."""

    def learn(self, rows: slice) -> None:
        """These rows of the stream are known now: called in order, after they were ranked."""


@dataclass(frozen=True)
class Entrant:
    """A recommender as of the test's cut, its settings, what validation said of the settings tried (mean log2 rank),
    and what a reader should know."""

    recommender: Recommender
    settings: dict[str, Any] = field(default_factory=dict)
    tried: list[tuple[dict[str, Any], Estimate]] = field(default_factory=list)
    note: str = ""

    @property
    def name(self) -> str:
        return self.recommender.name


@dataclass(frozen=True)
class Walk:
    """The outcome: who was asked, and by recommender the rank of what was watched, int64 [n] from 0, MISS where the
    item was unknown; and what was shown, where lists were made."""

    asked: EvalQuery
    ranks: dict[str, Rows]
    coverage: dict[str, Coverage]

    def __len__(self) -> int:
        return len(self.asked)


def walk_frozen(
    recommenders: Sequence[Recommender],
    history: History,
    *,
    cut: int,
    catalogue: int,
    asked: EvalQuery | None = None,
    lists: Lists | None = None,
    coverage: bool = True,
    progress: Progress = lambda done, total: None,
) -> Walk:
    """Each warm user's next unseen watch after the first `cut` rows, from what was known at the cut; `learn` is never
    called.

    The first `catalogue` items are ranked. `lists(queries, items, scores)` receives the first recommender's candidates
    (int64 and float32 [B, K], -1 and -inf where there are fewer). `coverage`: look at what is shown, too; `asked`: who
    is asked, where that is not every warm user.
    """
    asked = history.next_unseen(cut) if asked is None else asked
    shown = {r.name: Coverage(history.log_shares(cut, catalogue)) for r in recommenders if coverage}
    blocks = [np.empty((len(recommenders), 0), np.int64)]
    for queries in _batches(history, asked, catalogue):
        ranks = np.empty((len(recommenders), len(queries)), np.int64)
        for place, recommender in enumerate(recommenders):
            scores = score(recommender, queries, catalogue)
            ranks[place] = judge(scores, queries)  # strikes out what was seen
            if coverage:
                shown[recommender.name].add(top_items(scores, LISTED)[0])
            if lists is not None and place == 0:
                lists(queries, *top_items(scores, LISTED))
        blocks.append(ranks)
        progress(sum(block.shape[1] for block in blocks), len(asked))
    return Walk(asked, _by_name(recommenders, blocks), shown)


def list_candidates(
    recommender: Recommender, history: History, users: Rows, lists: Lists, *, cut: int, catalogue: int
) -> None:
    """Give `lists` the candidates of users of whom nothing is asked, as walk_frozen does those of the others."""
    nothing = EvalQuery(users, np.full(len(users), cut), np.full(len(users), -1))
    for queries in _batches(history, nothing, catalogue):
        scores = score(recommender, queries, catalogue)
        judge(scores, queries)
        lists(queries, *top_items(scores, LISTED))


def walk_live(
    recommenders: Sequence[Recommender],
    history: History,
    *,
    cut: int,
    catalogue: int,
    block: int = BLOCK,
    progress: Progress = lambda done, total: None,
) -> Walk:
    """Every watch after the first `cut` rows that is no repeat, of a user who has watched before: ranked, then learnt
    with its block of `block` rows. Changes the recommenders."""
    asked = history.unseen_since(cut)
    end = len(history.stream)
    blocks = [np.empty((len(recommenders), 0), np.int64)]
    for start in range(cut, end, block):
        rows = slice(start, min(start + block, end))
        mine = asked.between(rows)
        for queries in _batches(history, mine, catalogue):
            ranks = [judge(score(recommender, queries, catalogue), queries) for recommender in recommenders]
            blocks.append(np.stack(ranks))
        for recommender in recommenders:
            recommender.learn(rows)
        progress(rows.stop - cut, end - cut)
    return Walk(asked, _by_name(recommenders, blocks), {})


def score(recommender: Recommender, queries: EvalQueries, catalogue: int) -> Floats:
    """float32 [B, C]. Raises ValueError for scores of another shape or not finite: NaN would rank as a hit."""
    scores = recommender.scores(queries)
    if scores.shape != (len(queries), catalogue):
        raise ValueError(f"{recommender.name}: scores of shape {scores.shape}, not {(len(queries), catalogue)}")
    if not np.isfinite(scores).all():
        raise ValueError(f"{recommender.name}: scores that are not finite")
    return scores


def judge(scores: Floats, queries: EvalQueries) -> Rows:
    """int64 [B]: rank of each target from 0 among all items but those seen before; equal scores share the middle, MISS
    for unknown targets. scores float32 [B, C] is overwritten with -inf where seen."""
    catalogue = scores.shape[1]
    targets = np.where(queries.targets < catalogue, queries.targets, MISS)
    inside = queries.seen_item < catalogue
    return target_ranks(scores, targets, queries.seen_query[inside], queries.seen_item[inside])


def target_ranks(scores: Floats, targets: Rows, seen_query: Rows, seen_item: Rows) -> Rows:
    """int64 [B]: rank of each target from 0 among all items but the seen ones, MISS for a negative target; equal scores
    share the middle. scores float32 [B, N] (overwritten where seen); targets int64 [B]; seen_query, seen_item [K]."""
    known = targets >= 0
    own = scores[np.arange(len(targets)), np.where(known, targets, 0)][:, None]  # [B, 1], before it is struck out
    scores[seen_query, seen_item] = -np.inf
    above = (scores > own).sum(axis=1)
    equal = (scores == own).sum(axis=1)
    return np.where(known, above + np.maximum(equal - 1, 0) // 2, MISS)


def top_items(scores: Floats, most: int) -> tuple[Rows, Floats]:
    """The best `most` items of each row, best first: items int64 [B, K] (-1 behind the last one that is not struck
    out) and their scores."""
    most = min(most, scores.shape[1])
    items = np.argpartition(scores, -most, axis=1)[:, -most:]
    items.sort(axis=1)  # equal scores in the order of rows
    values = np.take_along_axis(scores, items, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    items, values = np.take_along_axis(items, order, axis=1), np.take_along_axis(values, order, axis=1)
    return np.where(np.isfinite(values), items, -1), values


def _batches(history: History, asked: EvalQuery, catalogue: int) -> Iterator[EvalQueries]:
    size = rows_at_once(catalogue)
    for start in range(0, len(asked), size):
        yield history.queries(asked[start : start + size])


def rows_at_once(catalogue: int) -> int:
    """Return how many users can be scored against all items together, in bounded memory."""
    return max(1, min(1024, CELLS // max(1, catalogue)))


def _by_name(recommenders: Sequence[Recommender], blocks: list[Rows]) -> dict[str, Rows]:
    ranks = np.concatenate(blocks, axis=1)
    return {recommender.name: ranks[place] for place, recommender in enumerate(recommenders)}
