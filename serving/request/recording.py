"""From drafts to what is sent: the replies, and the impressions that put on record what was shown and why.

Features as served train the next ranker, so an impression holds what the ranker was given. Only what is shown, a few
items of each request, is written down item by item.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from models.ranking.features import SCHEMA_HASH
from models.ranking.ranker import id_strings
from serving.request.candidate_sources import scores_by_source
from serving.request.response_draft import Answered, Floats, RankerInputs, ResponseDraft, StageTimes
from streams.messages import Impression, Recommended, RecommendReply, Shown

OffsetsByTopic = dict[str, tuple[int, ...]]  # the next offset of each partition that had not been read


def compose(
    drafts: Sequence[ResponseDraft],
    stages: StageTimes,
    read_offsets: OffsetsByTopic,
    version: str,
    now_ms: int,
    served_by: str,
) -> list[Answered]:
    """A reply for each draft, and an impression where something is shown."""
    with stages("reply"):
        impressions = [
            impress(draft, read_offsets, version, now_ms, served_by) if is_shown(draft) else None for draft in drafts
        ]
    return [
        Answered(_reply_of(draft, stages.ms, version, served_by), impression)
        for draft, impression in zip(drafts, impressions, strict=True)
    ]


def is_shown(draft: ResponseDraft) -> bool:
    return bool(draft.items) and draft.request.record


def impress(
    draft: ResponseDraft, read_offsets: OffsetsByTopic, version: str, now_ms: int, served_by: str
) -> Impression:
    """The record of what was shown, and of what the ranker was given."""
    request, inputs = draft.request, draft.ranker_inputs
    row_of = {item_id: row for row, item_id in enumerate(draft.candidates.item_ids)}
    rows = [row_of.get(item.item_id) for item in draft.items]
    shown = tuple(_shown(item, draft, row) for item, row in zip(draft.items, rows, strict=True))
    if inputs is not None:
        shown = _with_features(shown, inputs, rows)
    plain = Impression(
        request.request_id, request.user_id, now_ms, served_by, version, shown, context=draft.history.context
    )
    return plain if inputs is None else _with_query(plain, inputs, read_offsets)


def _shown(item: Recommended, draft: ResponseDraft, row: int | None) -> Shown:
    """`row`: the item's place among the candidates; None for one that was none."""
    return Shown(
        item.item_id,
        item.rank,
        item.source,
        item.score,
        item.expected_watch_s,
        sources={} if row is None else scores_by_source(draft.candidates, row),
        probability=item.probability,
    )


def _with_features(shown: Sequence[Shown], inputs: RankerInputs, rows: Sequence[int | None]) -> tuple[Shown, ...]:
    known = [row for row in rows if row is not None]
    ids = iter(id_strings(inputs.ranked.ids, "impression", [inputs.first + row for row in known]))
    return tuple(
        each if row is None else _with_item(each, inputs, row, next(ids)) for each, row in zip(shown, rows, strict=True)
    )


def _with_item(shown: Shown, inputs: RankerInputs, row: int, ids: dict[str, tuple[str, ...]]) -> Shown:
    rank = inputs.ranks[row]
    return msgspec.structs.replace(
        shown,
        retrieval_rank=None if np.isnan(rank) else int(rank),
        ids=ids,
        values=to_bytes(inputs.ranked.numbers["impression"][inputs.first + row]),
    )


def _with_query(impression: Impression, inputs: RankerInputs, read_offsets: OffsetsByTopic) -> Impression:
    [ids] = id_strings(inputs.ranked.ids, "query", [inputs.query])
    return msgspec.structs.replace(
        impression,
        schema_hash=SCHEMA_HASH,
        ids=ids,
        values=to_bytes(inputs.ranked.numbers["query"][inputs.query]),
        factor=inputs.factor,
        best_score=inputs.best if np.isfinite(inputs.best) else None,
        marks=read_offsets,
    )


def to_bytes(values: Floats) -> bytes:
    return values.astype("<f4").tobytes()


def _reply_of(draft: ResponseDraft, stages_ms: dict[str, float], version: str, served_by: str) -> RecommendReply:
    watches = draft.history.watches
    return RecommendReply(
        request_id=draft.request.request_id,
        items=tuple(draft.items),
        version=version,
        served_by=served_by,
        stages_ms={"wait": round(draft.context.wait_ms, 3), **stages_ms},
        degraded=tuple(draft.degraded),
        history_watches=len(watches),
        history_event_ms=watches[-1].event_ms if watches else None,
    )
