"""Asks the sources beside the two towers what they nominate for the drafts of a batch, each within its time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infra.platform.settings import Serving
from models.ranking.ranking_batch import FRESH, SIMILAR, TRENDING
from serving.request.draft import ResponseDraft
from serving.request.retrieval import Ids, Query
from serving.request.selection import seed_of
from serving.request.sources import NOBODY, Nominees, Wanted, ask, fresh_for, similar_of, trending_for
from serving.state.views import Views

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Sources:
    """What is needed to ask them at one moment."""

    views: Views
    settings: Serving
    may_be_shown: Wanted
    now_ms: int

    def ask(self, drafts: Sequence[ResponseDraft], similar: Sequence[Ids]) -> dict[str, list[Nominees]]:
        """By source: what it nominates for each draft. `similar` is what was found for the vectors after their last
        watches along with the candidates, empty where nothing was."""
        settings = self.settings
        found: dict[str, list[Nominees]] = {}
        if settings.trending:
            found[TRENDING] = ask(TRENDING, drafts, self._trending, settings.source_s)
        if settings.similar:
            found[SIMILAR] = self._similar(drafts, similar)
        if settings.fresh and len(self.views.catalogue.fresh):
            found[FRESH] = ask(FRESH, drafts, self._fresh, settings.source_s)
        return found

    def _trending(self, draft: ResponseDraft) -> Nominees:
        return trending_for(draft, self.views.trending, self.settings.trending, self.may_be_shown)

    def _fresh(self, draft: ResponseDraft) -> Nominees:
        seed = seed_of(draft.asked.request.request_id, 0)
        most = self.settings.fresh
        return fresh_for(draft, self.views.catalogue.fresh, most, self.may_be_shown, now_ms=self.now_ms, seed=seed)

    def _similar(self, drafts: Sequence[ResponseDraft], similar: Sequence[Ids]) -> list[Nominees]:
        if len(similar) != len(drafts):
            return [NOBODY] * len(drafts)
        found = iter(similar)

        def nominate(draft: ResponseDraft) -> Nominees:
            mine = next(found)
            has_completed = any(watch.completed for watch in draft.history.watches)
            return similar_of(draft, mine, self.settings.similar, self.may_be_shown) if has_completed else NOBODY

        return ask(SIMILAR, drafts, nominate, self.settings.source_s)


def queries_of(drafts: Sequence[ResponseDraft], vectors: Floats, limit: int) -> list[Query]:
    """What is searched for each draft: `limit` items under the request's own filter."""
    return [Query(vector, limit, draft.asked.filter) for draft, vector in zip(drafts, vectors, strict=True)]
