"""The sources of candidates beside the two towers: what is trending, what is like the last watch, what is new.

Each source has a quota and says what score it gives; one that took too long in a batch is left out for the rest of it.
The union has each item once, with all its sources and scores (they are features of the ranker, paper section 4.1), and
never more candidates than a request may have: the two towers' last ones make way for what they have not found.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from infra.platform import metrics
from infra.platform.settings import Serving
from models.ranking.ranking_batch import FRESH, SIMILAR, SOURCES, TRENDING, TWO_TOWER, nominated
from models.ranking.ranking_request import Nominations
from serving.request.exploration import seed_of
from serving.request.filtering import Flags, MayBeShown
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
    """All sources as they are at one moment."""

    views: Views
    settings: Serving
    may_be_shown: MayBeShown
    now_ms: int

    def nominate(self, drafts: Sequence[ResponseDraft]) -> dict[str, list[Nominees]]:
        """By source: what it nominates for each draft, each source within its time."""
        settings = self.settings
        sources: dict[str, Nominate] = {}
        if settings.trending:
            sources[TRENDING] = self.trending
        if settings.similar:
            sources[SIMILAR] = self.similar
        if settings.fresh and len(self.views.catalogue.fresh):
            sources[FRESH] = self.fresh
        return {name: ask(name, drafts, source, settings.source_s) for name, source in sources.items()}

    def trending(self, draft: ResponseDraft) -> Nominees:
        """Nominate what is watched now in the user's region, or everywhere; decayed watches as scores."""
        most, trending = LOOK * self.settings.trending, self.views.trending.best(draft.region)
        names = trending.item_ids[:most]
        scores = dict(zip(names, trending.watches[:most].tolist(), strict=True))
        return self._first(draft, names, scores, self.settings.trending)

    def fresh(self, draft: ResponseDraft) -> Nominees:
        """Some of the newest items, drawn by chance, so that each of them is seen by some; its age in hours as a
        score."""
        newest, most = self.views.catalogue.fresh.newest(self.now_ms), self.settings.fresh
        if len(newest) > most:
            rng = np.random.default_rng(seed_of(draft.request.request_id, 0))
            newest = [newest[at] for at in rng.permutation(len(newest))[: LOOK * most].tolist()]
        age_h = {item_id: (self.now_ms - published_ms) / HOUR_MS for published_ms, item_id in newest}
        return self._first(draft, list(age_h), age_h, most)

    def similar(self, draft: ResponseDraft) -> Nominees:
        """Nominate what a search by the last completed watch alone has found; its inner products as scores."""
        if draft.similar is None:
            return NOBODY
        item_ids, scores = draft.similar
        score_of = dict(zip(item_ids, scores.tolist(), strict=True))
        return self._first(draft, item_ids, score_of, self.settings.similar)

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
    names, place = list(item_ids), {item_id: at for at, item_id in enumerate(item_ids)}
    for nominees in others.values():
        for item_id in nominees.item_ids:
            if item_id not in place:
                place[item_id] = len(names)
                names.append(item_id)
    by = {source: np.zeros(len(names), np.bool_) for source in SOURCES[1:]}
    given = {source: np.full(len(names), np.nan, np.float32) for source in SOURCES[1:]}
    by[TWO_TOWER][: len(item_ids)], given[TWO_TOWER][: len(item_ids)] = True, scores
    for source, nominees in others.items():
        rows = [place[item_id] for item_id in nominees.item_ids]
        by[source][rows], given[source][rows] = True, nominees.scores
    nominations = Nominations(nominated(list(by.values())), given[TRENDING], given[SIMILAR])
    everything = CandidateSet(names, given[TWO_TOWER], nominations)
    return take(everything, _kept(by, most)) if len(names) > most else everything


def take(candidates: CandidateSet, rows: NDArray[np.int64]) -> CandidateSet:
    """These candidates alone, in this order."""
    old = candidates.nominations
    nominations = Nominations(old.sources[rows], old.trending[rows], old.similar[rows])
    return CandidateSet([candidates.item_ids[row] for row in rows.tolist()], candidates.scores[rows], nominations)


def scores_by_source(candidates: CandidateSet, row: int) -> dict[str, float | None]:
    """All sources that nominated a candidate, with the scores that go on record; None for one that gives none."""
    nominations = candidates.nominations
    values = {TWO_TOWER: candidates.scores[row], TRENDING: nominations.trending[row]}
    values |= {SIMILAR: nominations.similar[row], FRESH: np.nan}
    names = [SOURCES[code] for code in nominations.sources[row].tolist() if code]
    return {name: None if np.isnan(values[name]) else float(values[name]) for name in names}


def _kept(by: Mapping[str, Flags], most: int) -> NDArray[np.int64]:
    """Rows of all that others have nominated, and of the towers' best as far as there is room."""
    others = np.logical_or.reduce([mine for source, mine in by.items() if source != TWO_TOWER])
    room = max(0, most - int(np.count_nonzero(others)))
    keep = others.copy()
    keep[np.flatnonzero(~others)[:room]] = True
    return np.flatnonzero(keep)[:most]
