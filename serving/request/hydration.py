"""The first stages of a batch: histories are looked up, and users become vectors."""

from __future__ import annotations

import msgspec
import numpy as np

from infra.platform import metrics
from infra.platform.settings import Serving
from serving.request.filtering import banned_by
from serving.request.response_draft import RequestContext, ResponseDraft
from serving.state.release import LiveRelease
from serving.state.views import HistoryView
from streams.messages import UserHistory


def hydrate(context: RequestContext, histories: HistoryView, settings: Serving) -> ResponseDraft:
    request = context.request
    history = histories.get(request.user_id, context.partition) or UserHistory(request.user_id)
    if request.context is not None:
        history = msgspec.structs.replace(history, context=request.context)
    banned = banned_by(history, settings.shown_most)
    banned.update(request.exclude)
    return ResponseDraft(context, request.k or settings.k, history, banned)


def is_personal(draft: ResponseDraft, live: LiveRelease | None, settings: Serving) -> bool:
    """True if the towers are asked; a user without a watch gets what is trending, which is no degradation."""
    if draft.context.left_s(settings.deadline_s) < 0:
        metrics.SHED.inc()
        draft.degrade("trending", "the deadline had passed before the request was read")
    elif live is None:
        draft.degrade("trending", "no release is live yet")
    else:
        return bool(draft.history.watches)
    return False


def embed(drafts: list[ResponseDraft], live: LiveRelease, settings: Serving, now_ms: int) -> list[ResponseDraft]:
    """The drafts that have a usable user vector. All vectors come from one pass of the user tower, those after the last
    watches alone only where similar items are wanted."""
    users = [draft.history for draft in drafts]
    if settings.similar:
        users += [last_watch_alone(draft.history) for draft in drafts]
    vectors = live.model.user_vectors(users, now_ms)  # [B or 2 B, D]
    for at, draft in enumerate(drafts):
        draft.vector = vectors[at]
        if settings.similar:
            draft.last_watch_vector = np.nan_to_num(vectors[len(drafts) + at])
    for draft in drafts:
        if not np.isfinite(draft.vector).all():
            draft.degrade("trending", "the user vector is not finite")
    return [draft for draft in drafts if np.isfinite(draft.vector).all()]


def last_watch_alone(history: UserHistory) -> UserHistory:
    """A user of whom nothing is known but the last completed watch: what the towers find for this one is like it."""
    last = next((watch for watch in reversed(history.watches) if watch.completed), None)
    return UserHistory(history.user_id, () if last is None else (last,))
