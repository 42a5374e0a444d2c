"""Ranks the candidates of a batch in one forward pass, as far as there is time for it (paper section 4).

Nothing here loops over candidates: queries, features, codes and network take all candidates of all requests at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import structlog

from infra.platform.settings import Serving
from models.ranking.item_statistics import ItemStatistics
from models.ranking.ranker import ItemParts
from models.ranking.ranking_request import RankingQuery, places_of, ranking_batch_of
from models.threads import in_parts
from serving.request.candidate_sources import take
from serving.request.item_parts import slots_of
from serving.request.preranking import Preranker, Rows
from serving.request.response_draft import RankerInputs, Ranking, ResponseDraft
from serving.state.release import LiveRelease
from serving.state.views import StatisticsView
from streams.experiments import Plan

log = structlog.get_logger(__name__)

REQUESTS_OF_A_PART = 4  # ranked by one thread, of a batch that is ranked by two: fewer are not worth a second one
FORGET = 0.8  # of the time that the ranker took before
RECOVER = 0.7  # of what is expected of it, each time that it was not asked: it is tried again


class LatencyEstimate:
    """The time that the ranker takes for a request, from what it took lately."""

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


def drop_late(
    drafts: list[ResponseDraft], spent_s: float, latency: LatencyEstimate, settings: Serving, later: int = 0
) -> list[ResponseDraft]:
    """The drafts whose clients still wait when the rankers are done, by what they took lately; `later` rankings of the
    same batch are to come."""
    in_time, rankings = [], [rankings_of(draft.plan) if draft.candidates.item_ids else 0 for draft in drafts]
    for draft, wanted in zip(drafts, rankings, strict=True):
        if draft.context.left_s(settings.deadline_s) - spent_s >= (sum(rankings) + later) * latency.expected_s:
            in_time.append(draft)
        elif wanted:
            draft.degrade("unranked", "no time is left for the ranker")
    if drafts and not in_time:
        latency.skipped()
    return in_time


def by_ranker(drafts: Sequence[ResponseDraft], live: LiveRelease) -> list[tuple[LiveRelease, list[ResponseDraft]]]:
    """The live release or a rival of it, and the drafts that are ranked by its ranker: a draft stands with two of them
    where they draw up its list together, and with none where no ranker is asked."""
    groups: dict[str, tuple[LiveRelease, list[ResponseDraft]]] = {}
    for draft in drafts:
        if draft.candidates.item_ids:
            asked = (live.with_ranker(plan.release) for plan in draft.plan.ranking)
            for release in {each.ranked_by: each for each in asked}.values():
                groups.setdefault(release.ranked_by, (release, []))[1].append(draft)
    return list(groups.values())


def rankings_of(plan: Plan) -> int:
    """How often the candidates are ranked."""
    return len({each.release for each in plan.ranking})


def rank(
    drafts: Sequence[ResponseDraft],
    live: LiveRelease,
    statistics: StatisticsView,
    latency: LatencyEstimate,
    preranker: Preranker,
    now_ms: int,
) -> None:
    """Write into the drafts the expected watch seconds of the candidates that the pre-ranker has chosen; these are then
    all that there are. `live`, or a rival of it: whose ranker is asked."""
    if not drafts or not live.ranker.trained:
        return
    try:
        with latency.watch(len(drafts)):
            chosen = preranker.choose(drafts, live, statistics, now_ms)
            queries = [query_of(draft, rows, now_ms) for draft, rows in zip(drafts, chosen, strict=True)]
            ranked = score_candidates(queries, live, statistics, now_ms=now_ms)
    except Exception as error:  # whatever a ranker dies of, the retrieval order is still a good answer
        log.exception("the ranker failed", version=live.ranker_version)
        for draft in drafts:
            draft.degrade("unranked", f"the ranker failed: {type(error).__name__}")
        return
    for draft, rows, ranking in zip(drafts, chosen, ranked, strict=True):
        if not np.isfinite(ranking.expected_s).all():
            draft.degrade("unranked", "the ranker gave a value that is not finite")
            continue
        draft.rankings[live.ranked_by] = ranking
        if rows is None:
            preranker.audit(draft, ranking.expected_s, live)
        else:
            draft.candidates = take(draft.candidates, rows)


def query_of(draft: ResponseDraft, rows: Rows | None, now_ms: int) -> RankingQuery:
    """The question to the ranker about these rows of the candidates; their places are those among all of them."""
    candidates = draft.candidates
    ranks, best = places_of(candidates.scores)
    if rows is not None:
        candidates, ranks = take(candidates, rows), ranks[rows]
    item_ids, scores, nominations = candidates
    return RankingQuery(draft.history, now_ms, item_ids, scores, ranks, best, nominations)


def score_candidates(
    queries: Sequence[RankingQuery], live: LiveRelease, statistics: StatisticsView, *, now_ms: int
) -> list[Ranking]:
    """A ranking for each query, by the rolling calibration of the ranker's version."""
    item_ids = [item_id for query in queries for item_id in query.item_ids]
    rows = live.catalogue.rows(item_ids)
    slots = slots_of(item_ids, rows, live, statistics)
    ends = np.cumsum([len(query.item_ids) for query in queries])
    known_ms, rows_of = statistics.known_ms, np.split(rows, ends[:-1])
    own = [replace(query, rows=mine, known_ms=known_ms) for query, mine in zip(queries, rows_of, strict=True)]

    def score(some: slice) -> list[Ranking]:
        first = int(ends[some.start - 1]) if some.start else 0
        items = live.known.parts(slots[first : ends[some.stop - 1]])
        return _score_together(own[some], items, live, statistics.statistics, now_ms)

    return [each for part in in_parts(score, len(queries), REQUESTS_OF_A_PART) for each in part]


def _score_together(
    queries: Sequence[RankingQuery], items: ItemParts, live: LiveRelease, statistics: ItemStatistics, now_ms: int
) -> list[Ranking]:
    batch = ranking_batch_of(queries, live.catalogue, [live.statistics, statistics])
    ranked = live.ranker.rank(batch, items)
    factor = statistics.factor(live.ranker_version, now_ms, live.ranker.cap_s)
    raw = ranked.expected_s
    expected_s = np.where(np.isfinite(raw), np.minimum(raw * np.float32(factor), np.float32(live.ranker.cap_s)), raw)
    scored, first = [], 0
    for number, query in enumerate(queries):
        rows = slice(first, first + len(query.item_ids))
        best = float(batch.candidates.best[number])
        spread = None if ranked.spread is None else ranked.spread[rows]
        ranks, shown = batch.candidates.rank[rows], items.shown[rows]
        inputs = RankerInputs(ranked, number, first, ranks, best, factor, shown, spread, query.known_ms)
        scored.append(Ranking(expected_s[rows], inputs))
        first = rows.stop
    return scored
