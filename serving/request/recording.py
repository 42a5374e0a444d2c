"""From drafts to what is sent: the replies, and the impressions that put on record what was shown and why.

Features as served train the next ranker, so an impression holds what the ranker was given. Only what is shown, a few
items of each request, is written down item by item.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from msgspec.structs import replace

from models.ranking.features import SCHEMA_HASH
from models.ranking.ranker import id_strings
from serving.request.candidate_sources import scores_by_source
from serving.request.response_draft import Answered, Floats, RankerInputs, ResponseDraft, StageTimes
from streams.messages import Assigned, Impression, Recommended, RecommendReply, Shown


@dataclass(frozen=True)
class Recorder:
    """Writes what is the same for all answers of a batch. `cap_s`: what the release promises at most. `read_offsets`:
    by topic the next offset of each partition that had not been read. `title_of` an item, for people."""

    version: str
    cap_s: float
    now_ms: int
    served_by: str
    read_offsets: dict[str, tuple[int, ...]]
    title_of: Callable[[str], str]

    def compose(self, drafts: Sequence[ResponseDraft], stages: StageTimes) -> list[Answered]:
        """A reply for each draft, and an impression where something is shown."""
        with stages("reply"):
            spent_ms = stages.spent_s * 1000
            impressions = [
                self._impression(each, spent_ms) if each.items and each.request.record else None for each in drafts
            ]
        return [
            Answered(self._reply(draft, stages.ms), impression)
            for draft, impression in zip(drafts, impressions, strict=True)
        ]

    def _impression(self, draft: ResponseDraft, spent_ms: float) -> Impression:
        """The record of what was shown, and of what the ranker was given."""
        request, (ranked_by, ranking) = draft.request, draft.recorded
        shown = Impression(
            request.request_id,
            request.user_id,
            self.now_ms,
            self.served_by,
            self.version,
            shown_items(draft),
            context=draft.history.context,
            assigned=assigned_of(draft, spent_ms),
            pool=draft.pool,
            cap_s=self.cap_s,
            ranked_by=ranked_by,
        )
        if ranking is None:
            return shown
        inputs = ranking.inputs
        [ids] = id_strings(inputs.ranked.ids, "query", [inputs.query])
        values = to_bytes(inputs.ranked.numbers["query"][inputs.query])
        best = inputs.best if np.isfinite(inputs.best) else None
        known = {"ids": ids, "values": values, "factor": inputs.factor, "best_score": best, "known_ms": inputs.known_ms}
        return replace(shown, schema_hash=SCHEMA_HASH, marks=self.read_offsets, **known)

    def _titled(self, item: Recommended) -> Recommended:
        title = self.title_of(item.item_id)
        return replace(item, title=title) if title else item

    def _reply(self, draft: ResponseDraft, stages_ms: dict[str, float]) -> RecommendReply:
        watches = draft.history.watches
        return RecommendReply(
            request_id=draft.request.request_id,
            items=tuple(self._titled(item) for item in draft.items),
            version=self.version,
            served_by=self.served_by,
            stages_ms={"wait": round(draft.context.wait_ms, 3), **stages_ms},
            degraded=tuple(draft.degraded),
            history_watches=len(watches),
            history_event_ms=watches[-1].event_ms if watches else None,
            retrieved_by=draft.retrieved_by,
            history=replace(draft.history, seen=b"") if draft.request.history else None,
            experiment=draft.plan.experiment,
            variant="" if draft.plan.rival else draft.plan.variant,
            ranked_by=draft.recorded[0],
        )


def assigned_of(draft: ResponseDraft, spent_ms: float) -> Assigned | None:
    """The experiment that the list is a part of, and what its guard rails look at."""
    plan = draft.plan
    if not plan.experiment:
        return None
    took_ms = round(draft.context.wait_ms + spent_ms, 3)
    return Assigned(plan.experiment, "" if plan.rival else plan.variant, took_ms, bool(draft.degraded))


def shown_items(draft: ResponseDraft) -> tuple[Shown, ...]:
    """The items with their features, where they were candidates."""
    row_of = dict(zip(draft.candidates.item_ids, range(len(draft.candidates.item_ids)), strict=True))
    rows = [row_of[item.item_id] for item in draft.items if item.item_id in row_of]
    sources = dict(zip(rows, scores_by_source(draft.candidates, rows), strict=True))
    _, ranking = draft.recorded
    features = {} if ranking is None else features_of(ranking.inputs, rows)
    return tuple(
        [
            Shown(
                item.item_id,
                item.rank,
                item.source,
                item.score,
                item.expected_watch_s,
                sources=sources.get(row_of.get(item.item_id, -1), {}),
                probability=item.probability,
                team=draft.teams.get(item.item_id, ""),
                **features.get(row_of.get(item.item_id, -1), {}),
            )
            for item in draft.items
        ]
    )


def features_of(inputs: RankerInputs, rows: Sequence[int]) -> dict[int, dict[str, Any]]:
    """By row of its request's candidates: what the ranker was given of an item, as fields of Shown."""
    at = [inputs.first + row for row in rows]
    values, ranks = inputs.ranked.numbers["impression"][at].astype("<f4"), inputs.ranks[list(rows)].tolist()
    ids = id_strings(inputs.ranked.ids, "impression", at)
    return {
        row: {"retrieval_rank": None if math.isnan(rank) else int(rank), "ids": own, "values": numbers.tobytes()}
        for row, rank, own, numbers in zip(rows, ranks, ids, values, strict=True)
    }


def to_bytes(values: Floats) -> bytes:
    return values.astype("<f4").tobytes()
