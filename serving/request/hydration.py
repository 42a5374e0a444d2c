"""The first stages of a batch: histories are looked up, and users become vectors."""

from __future__ import annotations

from collections.abc import Set

import msgspec
import numpy as np

from infra.platform import metrics
from infra.platform.settings import Serving
from serving.request.filtering import banned_by, channel_codes, is_of
from serving.request.response_draft import RequestContext, ResponseDraft
from serving.state.release import LiveRelease
from serving.state.views import HistoryView
from streams.experiments import Plan
from streams.history.signals import NOTHING, unwanted_by
from streams.messages import UserHistory


def hydrate(context: RequestContext, histories: HistoryView, plan: Plan) -> ResponseDraft:
    request, settings = context.request, plan.serving
    history = histories.get(request.user_id, context.partition) or UserHistory(request.user_id)
    if request.context is not None:
        history = msgspec.structs.replace(history, context=request.context)
    banned, unwanted = banned_by(history, settings.shown_most), unwanted_by(history)
    banned.update(unwanted.items, request.exclude)
    return ResponseDraft(context, request.k or settings.k, history, banned, plan, unwanted)


def is_personal(draft: ResponseDraft, live: LiveRelease | None, settings: Serving) -> bool:
    """True if the towers are asked: also for a user without a watch, of whom they know the context, searches, and what
    is popular."""
    if draft.context.left_s(settings.deadline_s) < 0:
        metrics.SHED.inc()
        draft.degrade("trending", "the deadline had passed before the request was read")
    elif live is None:
        draft.degrade("trending", "no release is live yet")
    else:
        return True
    return False


def embed(drafts: list[ResponseDraft], live: LiveRelease, now_ms: int) -> list[ResponseDraft]:
    """The drafts that have a usable user vector. All vectors come from one pass of the user tower, those after the last
    watches alone only where similar items are wanted."""
    wanted = [draft for draft in drafts if draft.plan.serving.similar]
    watchers = [
        (draft, last) for draft in wanted if (last := last_watch_alone(draft.history, unwanted_in(draft, live)))
    ]
    users = [draft.history for draft in drafts] + [last for _, last in watchers]
    vectors = live.model.user_vectors(users, now_ms)  # [B + W, D]
    for draft, vector in zip(drafts, vectors, strict=False):
        draft.vector = vector
    for (draft, _), vector in zip(watchers, vectors[len(drafts) :], strict=True):
        draft.last_watch_vector = np.nan_to_num(vector)
    for draft in drafts:
        if not np.isfinite(draft.vector).all():
            draft.degrade("trending", "the user vector is not finite")
    return [draft for draft in drafts if np.isfinite(draft.vector).all()]


def unwanted_in(draft: ResponseDraft, live: LiveRelease) -> Set[str]:
    """The unwanted items, those among the watched that are of an unwanted channel with them."""
    items, channels = draft.unwanted
    if not channels:
        return items
    item_ids, catalogue = [watch.item_id for watch in draft.history.watches], live.catalogue
    theirs = is_of(channel_codes(channels, catalogue), catalogue, catalogue.rows(item_ids))
    return items.union(item_id for item_id, yes in zip(item_ids, theirs.tolist(), strict=True) if yes)


def last_watch_alone(history: UserHistory, unwanted: Set[str] = NOTHING) -> UserHistory | None:
    """A user of whom nothing is known but the last completed watch of an item that is not `unwanted`: what the towers
    find for this one is like it. None for somebody who has completed nothing."""
    completed = (watch for watch in reversed(history.watches) if watch.completed)
    last = next((watch for watch in completed if watch.item_id not in unwanted), None)
    return None if last is None else UserHistory(history.user_id, (last,))
