"""From drafts to what is sent: the replies, and the impressions that put on record what was shown and why."""

from __future__ import annotations

from collections.abc import Sequence

from serving.request.draft import Answered, ResponseDraft, Stages
from serving.request.ranking import record_query, record_shown
from serving.request.sources import scores_by_source
from streams.messages import Impression, Recommended, RecommendReply, Shown

MarksTold = dict[str, tuple[int, ...]]  # by topic the next offset of each partition that had not been read


def compose(
    drafts: Sequence[ResponseDraft], stages: Stages, marks: MarksTold, *, version: str, now_ms: int, served_by: str
) -> list[Answered]:
    """A reply for each draft, and an impression where something is shown."""
    with stages("reply"):
        items = [tuple(draft.items) for draft in drafts]
        impressions = [
            impress(draft, marks, version, now_ms, served_by) if is_shown(draft) else None for draft in drafts
        ]
    return [
        Answered(_reply_of(draft, shown, stages.ms, version, served_by), impression)
        for draft, shown, impression in zip(drafts, items, impressions, strict=True)
    ]


def is_shown(draft: ResponseDraft) -> bool:
    return bool(draft.items) and draft.asked.request.record


def impress(draft: ResponseDraft, marks: MarksTold, version: str, now_ms: int, served_by: str) -> Impression:
    """The record of what was shown, and of what the ranker was fed."""
    request = draft.asked.request
    row_of = {item_id: row for row, item_id in enumerate(draft.found.item_ids)}
    rows = [row_of.get(item.item_id) for item in draft.items]
    shown = tuple(_shown(item, draft, row) for item, row in zip(draft.items, rows, strict=True))
    if draft.fed is not None:
        shown = record_shown(shown, draft.fed, rows)
    plain = Impression(
        request.request_id, request.user_id, now_ms, served_by, version, shown, context=draft.history.context
    )
    return plain if draft.fed is None else record_query(plain, draft.fed, marks)


def _shown(item: Recommended, draft: ResponseDraft, row: int | None) -> Shown:
    """`row`: the item's place among the candidates; None for one that was none."""
    return Shown(
        item.item_id,
        item.rank,
        item.source,
        item.score,
        item.expected_watch_s,
        sources={} if row is None else scores_by_source(draft.found, row),
        probability=item.probability,
    )


def _reply_of(
    draft: ResponseDraft, items: tuple[Recommended, ...], stages_ms: dict[str, float], version: str, served_by: str
) -> RecommendReply:
    watches = draft.history.watches
    return RecommendReply(
        request_id=draft.asked.request.request_id,
        items=items,
        version=version,
        served_by=served_by,
        stages_ms={"wait": round(draft.asked.wait_ms, 3), **stages_ms},
        degraded=tuple(draft.degraded),
        history_watches=len(watches),
        history_event_ms=watches[-1].event_ms if watches else None,
    )
