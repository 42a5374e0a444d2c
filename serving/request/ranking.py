"""Ranks the candidates of a batch, and puts on record what the ranker was fed: features as served train the next one.

Nothing here loops over candidates: queries, features, codes and network take all candidates of all requests at once.
Only what is shown, a few items of each request, is written down item by item.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.ranking.features import SCHEMA_HASH
from models.ranking.item_statistics import ItemStatistics
from models.ranking.ranker import Ranked, id_strings
from models.ranking.ranking_batch import IMPRESSIONS
from models.ranking.ranking_examples import CAP_S
from models.ranking.ranking_request import Nominations, RankingQuery, ranking_batch_of
from models.threads import in_parts
from serving.state.release import LiveRelease
from streams.messages import Impression, Shown, UserHistory

Floats = NDArray[np.float32]
Asked = tuple[UserHistory, Sequence[str], Floats, Nominations | None]

REQUESTS_OF_A_PART = 4  # ranked by one thread, of a batch that is ranked by two: fewer are not worth a second one
FORGET = 0.8  # of the time that the ranker took before
RECOVER = 0.7  # of what is expected of it, each time that it was not asked: it is tried again


class LatencyEstimate:
    """How long the ranker takes for a request, from what it took lately."""

    def __init__(self) -> None:
        self.expected_s = 0.0

    def skipped(self) -> None:
        """It was thought to be too slow and not asked."""
        self.expected_s *= RECOVER

    @contextmanager
    def watch(self, requests: int) -> Iterator[None]:
        """Its work for so many requests together."""
        began = time.perf_counter()
        try:
            yield
        finally:
            took_s = (time.perf_counter() - began) / requests
            self.expected_s = max(took_s, FORGET * self.expected_s + (1 - FORGET) * took_s)


class RankerInputs(NamedTuple):
    """What the ranker was fed of one request: its row among the queries, its first candidate's row; ranks [C] by
    retrieval score; `shown` [C] decayed impressions of each candidate and `spread` [C] of what the members say."""

    ranked: Ranked
    query: int
    first: int
    ranks: Floats
    best: float
    factor: float
    shown: NDArray[np.float64]
    spread: Floats | None


def score_candidates(
    asked: Sequence[Asked],
    live: LiveRelease,
    statistics: ItemStatistics,
    *,
    now_ms: int,
) -> list[tuple[Floats, RankerInputs]]:
    """Of each history with its candidates, their retrieval scores [C] and who nominated them: expected watch seconds
    float32 [C], by the rolling calibration of this version, and what the ranker was fed."""
    parts = in_parts(
        lambda some: _score_together(asked[some], live, statistics, now_ms=now_ms), len(asked), REQUESTS_OF_A_PART
    )
    return [each for part in parts for each in part]


def _score_together(
    asked: Sequence[Asked], live: LiveRelease, statistics: ItemStatistics, *, now_ms: int
) -> list[tuple[Floats, RankerInputs]]:
    queries = [
        RankingQuery(history, now_ms, item_ids, scores, nominations=nominations)
        for history, item_ids, scores, nominations in asked
    ]
    moment = ranking_batch_of(queries, live.catalogue, [live.statistics, statistics])
    ranked = live.ranker.rank(moment)
    factor = statistics.factor(live.version, now_ms)
    raw = ranked.expected_s
    expected_s = np.where(np.isfinite(raw), np.minimum(raw * np.float32(factor), np.float32(CAP_S)), raw)
    found, first = [], 0
    for query, (_, item_ids, _, _) in enumerate(asked):
        rows = slice(first, first + len(item_ids))
        best = float(moment.candidates.best[query])
        spread = None if ranked.spread is None else ranked.spread[rows]
        shown = moment.candidates.item[rows, IMPRESSIONS]
        fed = RankerInputs(ranked, query, first, moment.candidates.rank[rows], best, factor, shown, spread)
        found.append((expected_s[rows], fed))
        first += len(item_ids)
    return found


def record_shown(shown: Sequence[Shown], fed: RankerInputs, rows: Sequence[int | None]) -> tuple[Shown, ...]:
    """`rows`: each item's place among its request's candidates; None for one that was none."""
    there = [row for row in rows if row is not None]
    ids = iter(id_strings(fed.ranked.ids, "impression", [fed.first + row for row in there]))
    return tuple(
        each if row is None else _record_one(each, fed, row, next(ids)) for each, row in zip(shown, rows, strict=True)
    )


def _record_one(shown: Shown, fed: RankerInputs, row: int, ids: dict[str, tuple[str, ...]]) -> Shown:
    rank = fed.ranks[row]
    return msgspec.structs.replace(
        shown,
        retrieval_rank=None if np.isnan(rank) else int(rank),
        ids=ids,
        values=to_bytes(fed.ranked.numbers["impression"][fed.first + row]),
    )


def record_query(impression: Impression, fed: RankerInputs, marks: dict[str, Any]) -> Impression:
    [ids] = id_strings(fed.ranked.ids, "query", [fed.query])
    return msgspec.structs.replace(
        impression,
        schema_hash=SCHEMA_HASH,
        ids=ids,
        values=to_bytes(fed.ranked.numbers["query"][fed.query]),
        factor=fed.factor,
        best_score=fed.best if np.isfinite(fed.best) else None,
        marks=marks,
    )


def to_bytes(values: Floats) -> bytes:
    return values.astype("<f4").tobytes()
