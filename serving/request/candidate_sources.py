"""The sources of candidates beside the two towers: what is trending, what is like the last watch, what is new.

Each source has a quota and says what score it gives; one that took too long in a batch is left out for the rest of it.
The union has each item once, with all its sources and scores (they are features of the ranker, paper section 4.1), and
never more candidates than a request may have: the two towers' last ones make way for what they have not found.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from infra.platform import metrics
from infra.platform.settings import Serving
from models.ranking.ranking_batch import FRESH, SIMILAR, SOURCES, TRENDING, TWO_TOWER
from models.ranking.ranking_request import Nominations
from serving.request.exploration import seed_of
from serving.request.filtering import MayBeShown
from serving.request.response_draft import CandidateSet, Ids, ResponseDraft
from serving.state.views import Views

LOOK = 4  # times the quota is looked at, since some of it may not be shown
HOUR_MS = 3_600_000


class Nominees(NamedTuple):
    """Items of one source, best first, and the scores that it gives."""

    item_ids: Sequence[str]
    scores: Sequence[float]


Nominate = Callable[[ResponseDraft], Nominees]
NOBODY = Nominees((), ())


@dataclass(frozen=True)
class CandidateSources:
    """All sources as they are at one moment. Each draft's plan has the quotas."""

    views: Views
    settings: Serving
    may_be_shown: MayBeShown
    now_ms: int

    def nominate(self, drafts: Sequence[ResponseDraft]) -> dict[str, list[Nominees]]:
        """By source: what it nominates for each draft, each source within its time."""
        plans = [draft.plan.serving for draft in drafts]
        sources: dict[str, Nominate] = {}
        if any(plan.trending for plan in plans):
            sources[TRENDING] = self.trending
        if any(plan.similar for plan in plans):
            sources[SIMILAR] = self.similar
        if any(plan.fresh for plan in plans) and len(self.views.catalogue.fresh):
            sources[FRESH] = self.fresh
        return {name: ask(name, drafts, source, self.settings.source_s) for name, source in sources.items()}

    def trending(self, draft: ResponseDraft) -> Nominees:
        """Nominate what is watched now in the user's region, or everywhere; decayed watches as scores."""
        quota, trending = draft.plan.serving.trending, self.views.trending.best(draft.region)
        names = trending.item_ids[: LOOK * quota]
        scores = dict(zip(names, trending.watches[: LOOK * quota].tolist(), strict=True))
        return self._first(draft, names, scores, quota)

    def fresh(self, draft: ResponseDraft) -> Nominees:
        """Some of the newest items, drawn by chance, so that each of them is seen by some; its age in hours as a
        score."""
        newest, most = self._newest, draft.plan.serving.fresh
        if len(newest) > most:
            rng = np.random.default_rng(seed_of(draft.request.request_id, 0))
            drawn = rng.choice(len(newest), min(len(newest), LOOK * most), replace=False)
            newest = [newest[at] for at in drawn.tolist()]
        age_h = {item_id: (self.now_ms - published_ms) / HOUR_MS for published_ms, item_id in newest}
        return self._first(draft, list(age_h), age_h, most)

    @cached_property
    def _newest(self) -> list[tuple[int, str]]:
        return self.views.catalogue.fresh.newest(self.now_ms)

    def similar(self, draft: ResponseDraft) -> Nominees:
        """Nominate what a search by the last completed watch alone has found; its inner products as scores."""
        if draft.similar is None:
            return NOBODY
        item_ids, scores = draft.similar
        score_of = dict(zip(item_ids, scores.tolist(), strict=True))
        return self._first(draft, item_ids, score_of, draft.plan.serving.similar)

    def _first(self, draft: ResponseDraft, names: Sequence[str], scores: Mapping[str, float], most: int) -> Nominees:
        """The first `most` of these that may be shown."""
        chosen = [names[at] for at in np.flatnonzero(self.may_be_shown(draft, names))[:most].tolist()]
        return Nominees(chosen, [scores[name] for name in chosen])


def ask(source: str, drafts: Sequence[ResponseDraft], nominate: Nominate, timeout_s: float) -> list[Nominees]:
    """The nominees of a source for each draft; none for those that it is too late for."""
    began = time.perf_counter()
    nominees: list[Nominees] = []
    for draft in drafts:
        if time.perf_counter() - began > timeout_s:
            late = len(drafts) - len(nominees)
            metrics.SOURCE_LEFT_OUT.labels(source).inc(late)
            nominees += [NOBODY] * late
            break
        nominees.append(nominate(draft))
    metrics.SOURCE_TIME.labels(source).observe(time.perf_counter() - began)
    return nominees


def unite(towers: Ids, others: Mapping[str, Nominees], most: int) -> CandidateSet:
    """At most `most` candidates, each with all its sources. What the towers alone have found comes first and makes
    way first; scores of what they have not found are NaN."""
    item_ids, scores = towers
    theirs = dict.fromkeys(chain.from_iterable(nominees.item_ids for nominees in others.values()))
    shared = np.fromiter(map(theirs.__contains__, item_ids), np.bool_, len(item_ids))
    kept = np.flatnonzero(shared | (np.cumsum(~shared) <= most - len(theirs)))[:most]
    names = [item_ids[row] for row in kept.tolist()]
    place = {names[row]: row for row in np.flatnonzero(shared[kept]).tolist()}
    names += [item_id for item_id in theirs if item_id not in place][: most - len(names)]
    place.update(zip(names[len(kept) :], range(len(kept), len(names)), strict=True))
    sources = np.zeros((len(names), len(SOURCES) - 1), np.int64)
    given = {source: np.full(len(names), np.nan, np.float32) for source in SOURCES[1:]}
    sources[: len(kept), 0], given[TWO_TOWER][: len(kept)] = 1, scores[kept]
    for source, nominees in others.items():
        code, rows = SOURCES.index(source), [place.get(item_id, -1) for item_id in nominees.item_ids]
        there = [row for row in rows if row >= 0]
        sources[there, code - 1] = code
        given[source][there] = [score for row, score in zip(rows, nominees.scores, strict=True) if row >= 0]
    return CandidateSet(names, given[TWO_TOWER], Nominations(sources, given[TRENDING], given[SIMILAR]))


def take(candidates: CandidateSet, rows: NDArray[np.int64]) -> CandidateSet:
    """These candidates alone, in this order."""
    old = candidates.nominations
    nominations = Nominations(old.sources[rows], old.trending[rows], old.similar[rows])
    return CandidateSet([candidates.item_ids[row] for row in rows.tolist()], candidates.scores[rows], nominations)


def scores_by_source(candidates: CandidateSet, rows: Sequence[int]) -> list[dict[str, float | None]]:
    """Of each of these candidates all sources that nominated it, with the scores that go on record; None for one that
    gives none."""
    at, nominations = np.array(rows, np.int64), candidates.nominations
    known = {TWO_TOWER: candidates.scores, TRENDING: nominations.trending, SIMILAR: nominations.similar}
    scores = {source: values[at].tolist() for source, values in known.items()} | {FRESH: [np.nan] * len(at)}
    return [
        {SOURCES[code]: _or_none(scores[SOURCES[code]][number]) for code in codes if code}
        for number, codes in enumerate(nominations.sources[at].tolist())
    ]


def _or_none(score: float) -> float | None:
    return None if math.isnan(score) else score
