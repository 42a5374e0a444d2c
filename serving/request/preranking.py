"""Chooses which candidates the ranker is asked about: the best by what they are worth to anybody.

Among the candidates of a viewer the item itself decides most of the ranker's order (docs/serving.md has the figures),
and what an item is worth to a viewer of whom nothing is known is one number, remembered. Some requests are ranked
whole: the share of their best that the choice would have kept says whether it may be trusted, and where it loses, all
candidates are ranked until it does not any more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import structlog
from numpy.typing import NDArray

from infra.platform import metrics
from infra.platform.settings import Serving
from models.ranking.ranking_request import ranking_batch_of
from serving.request.item_parts import query_of_nobody, slots_of
from serving.request.reranking import pins_of
from serving.request.response_draft import Floats, ResponseDraft
from serving.state.release import LiveRelease
from serving.state.views import StatisticsView

log = structlog.get_logger(__name__)

Rows = NDArray[np.int64]

RECENT, ENOUGH = 200, 20  # audits that are looked at, and those without which nothing is concluded
PLACES = 5  # candidates are kept for each place of the list, at least
MOST_CHOICES = 9  # that are remembered: of our own settings, and of as many variants as an experiment may have


@dataclass
class Remembered:
    """How often the choice of so many was asked for, and the shares of the best that it would have kept."""

    asked: int = 0
    kept: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    @property
    def share(self) -> float:
        return float(np.mean(self.kept))

    def is_in_use(self, least: float) -> bool:
        """True while the choice is trusted: enough was looked at, and at least this share was kept."""
        return len(self.kept) >= ENOUGH and self.share >= least


class Preranker:
    """Remembers how well the choice was, for each ranker and each `serving.ranked` that a plan has: a variant that
    keeps too few says nothing of the others. Another release begins anew, with its first requests ranked whole."""

    def __init__(self, settings: Serving) -> None:
        self._settings = settings
        self._version = ""
        self._remembered: dict[tuple[str, int], Remembered] = {}  # the last one asked for stands last

    def choose(
        self, drafts: Sequence[ResponseDraft], live: LiveRelease, statistics: StatisticsView, now_ms: int
    ) -> list[Rows | None]:
        """For each draft the rows of the candidates that are to be ranked, in their order; None: all of them."""
        if not any(may_choose(draft) for draft in drafts):
            return [None] * len(drafts)
        if live.version != self._version and not live.is_beside:
            self._version = live.version
            self._remembered.clear()
        rows_of = [live.catalogue.rows(draft.candidates.item_ids) for draft in drafts]
        learn_worth(live, np.concatenate(rows_of), statistics, now_ms)
        return [self._choose(draft, live, live.worth.of(rows)) for draft, rows in zip(drafts, rows_of, strict=True)]

    def _choose(self, draft: ResponseDraft, live: LiveRelease, worth: Floats) -> Rows | None:
        if not may_choose(draft):
            return None
        choice = self._choice_of(draft, live)
        choice.asked += 1
        if self._is_whole(choice):
            return None
        pins = pins_of(draft.candidates.item_ids, draft.request.pinned, draft.plan.selection.pinned)
        return best_of(worth, self._most(draft), pins)

    def audit(self, draft: ResponseDraft, expected_s: Floats, live: LiveRelease) -> None:
        """Look at a draft that was ranked whole: the share of its best k that the choice would have kept."""
        most = self._most(draft)
        if not may_choose(draft) or len(expected_s) <= most:
            return
        choice, least = self._choice_of(draft, live), self._settings.audit_kept
        was_in_use = choice.is_in_use(least)
        worth = live.worth.of(live.catalogue.rows(draft.candidates.item_ids))
        kept = best_of(worth, most)
        if kept is None:  # not enough of them were known
            return
        best = np.argsort(-expected_s, kind="stable")[: draft.k]
        choice.kept.append(float(np.isin(best, kept).mean()))
        ranked, is_in_use = draft.plan.serving.ranked, choice.is_in_use(least)
        if ranked == self._settings.ranked and not live.ranked_by:  # the gauges tell of our own settings and ranker
            metrics.PRERANKED_KEPT.set(choice.share)
            if len(choice.kept) >= ENOUGH:
                metrics.PRERANKER_IN_USE.set(is_in_use)
        if was_in_use and not is_in_use:
            log.warning(
                "all candidates are ranked: too much of the best was left out", ranked=ranked, kept=choice.share
            )

    def _choice_of(self, draft: ResponseDraft, live: LiveRelease) -> Remembered:
        """What is remembered of this ranker's choice of as many as the draft's plan says; what was not asked for
        longest goes."""
        key = live.ranked_by, draft.plan.serving.ranked
        choice = self._remembered.pop(key, None) or Remembered()
        self._remembered[key] = choice
        if len(self._remembered) > MOST_CHOICES:
            del self._remembered[next(iter(self._remembered))]
        return choice

    def _is_whole(self, choice: Remembered) -> bool:
        """True if the request is ranked whole: the first ones, one in so many, and all while the choice loses."""
        share = self._settings.audit_share
        is_looked_at = bool(share and choice.asked % max(1, round(1 / share)) == 0)
        return is_looked_at or not choice.is_in_use(self._settings.audit_kept)

    def _most(self, draft: ResponseDraft) -> int:
        """Enough for the list, and for what is drawn or picked apart behind it."""
        selection = draft.plan.selection
        drawn = selection.explore_pool if selection.explore else 0
        apart = selection.diversity_pool if selection.diversity != "none" else 0
        return max(draft.plan.serving.ranked, PLACES * draft.k, draft.k + drawn, draft.k + apart)


def may_choose(draft: ResponseDraft) -> bool:
    """True where not all candidates must be ranked. An order that competes without the ranker's has them all."""
    return bool(draft.plan.serving.ranked) and draft.plan.rival is None


def learn_worth(live: LiveRelease, rows: Rows, statistics: StatisticsView, now_ms: int) -> None:
    """Ask the ranker what some of the items in these rows of the catalogue are worth, as far as it is due."""
    due = live.worth.due(rows, now_ms)
    if len(due):
        item_ids = [live.catalogue.item_ids[row] for row in due.tolist()]
        query = query_of_nobody(item_ids, due, statistics.known_ms, now_ms)
        batch = ranking_batch_of([query], live.catalogue, [live.statistics, statistics.statistics])
        items = live.known.parts(slots_of(item_ids, due, live, statistics))
        live.worth.set(due, live.ranker.rank(batch, items).expected_s, now_ms)


def best_of(worth: Floats, most: int, pins: Sequence[int] = ()) -> Rows | None:
    """Rows of the `most` that are worth most, of all whose worth is not known, and of the pins, in their order; None
    for all. worth float32 [C]."""
    unknown = np.isnan(worth)
    keep = most + int(np.count_nonzero(unknown))
    if keep >= len(worth):
        return None
    order = np.argsort(np.where(unknown, -np.inf, -worth), kind="stable")
    return np.union1d(order[:keep], np.array(pins, np.int64)) if pins else np.sort(order[:keep])
