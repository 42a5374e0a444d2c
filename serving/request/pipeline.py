"""One batch of requests' way to its answers: hydrate, embed, retrieve, filter, nominate, rank, select, reply.

What has arrived together is embedded, searched and ranked together, in two halves: `begin` ends where the search of the
index is under way, `finish` takes up its answer. Between them the answering thread finishes the batch before. A stage
that fails sends its requests one step down the ladder (index; exact mirror; retrieval order; trending; anything that
may be shown), names the step and the reason in the reply, and never makes an error of a good request. The release is
read once per batch and belongs to it from begin to finish: no reply can mix two versions.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray

from infra.platform import metrics
from infra.platform.settings import Selection, Serving
from models.ranking.ranking_batch import TWO_TOWER
from serving.request.draft import Answered, Found, RequestContext, ResponseDraft, Stages
from serving.request.filtering import banned_by, wanted
from serving.request.nominating import Sources, queries_of
from serving.request.ranking import LatencyEstimate, score_candidates
from serving.request.recording import compose
from serving.request.retrieval import MOST_RESULTS, Ids, Query, Retrieval, Search
from serving.request.selecting import add_pins, fill, select
from serving.request.sources import LOOK, Nominees, Wanted, unite
from serving.state.drift import AnswerDrift
from serving.state.release import LiveRelease
from serving.state.views import HistoryView, StatisticsView, Views
from streams.messages import UserHistory
from streams.topics import USER_HISTORIES

log = structlog.get_logger(__name__)

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]

SEARCH_SHARE = 0.8  # of the time that is left until the deadline
MORE = 4  # times as many candidates when filters have left too few


@dataclass(frozen=True)
class ServingContext:
    """What answers are made with and does not change from batch to batch. `seen_days`: of what was watched long ago."""

    views: Views
    retrieval: Retrieval
    pace: LatencyEstimate
    settings: Serving
    selection: Selection
    served_by: str
    seen_days: int = 90
    drift: AnswerDrift = field(default_factory=AnswerDrift)


@dataclass
class InFlightBatch:
    """A batch whose search is under way. `personal` are the drafts that the towers are asked for; vectors [B, D] of
    their users."""

    drafts: list[ResponseDraft]
    personal: list[ResponseDraft]
    vectors: Floats
    live: LiveRelease | None
    search: Search | None
    stages: Stages
    now_ms: int
    searched_at: float
    histories_read: tuple[int, ...]  # as `marks` have it: histories are of the first half, all else of the second

    @property
    def waits(self) -> bool:
        """Whether the index has still to answer."""
        return self.search is not None and self.search.pending is not None


def begin(
    batch: Sequence[RequestContext], live: LiveRelease | None, kitchen: ServingContext, *, now_ms: int
) -> InFlightBatch:
    """Everything before the answer of the index is needed. `live`: None while there is no release yet."""
    stages, settings = Stages(), kitchen.settings
    with stages("hydrate"):
        drafts = [hydrate(asked, kitchen.views.histories, settings) for asked in batch]
        personal = [draft for draft in drafts if is_personal(draft, live, settings)]
    vectors, search = np.zeros((0, 0), np.float32), None
    if live is not None and personal:
        with stages("embed"):
            personal, vectors, after = embed(personal, live, settings, now_ms)
        if personal:
            left_s = max(draft.asked.left_s(settings.deadline_s) for draft in personal)
            queries = queries_of(personal, vectors, settings.candidates)
            similar = queries_of(personal, after, LOOK * settings.similar) if settings.similar else []
            left_s *= SEARCH_SHARE
            search = kitchen.retrieval.start(queries, live, now_ms=now_ms, left_s=left_s, others=similar)
    searched_at, read = time.perf_counter(), kitchen.views.marks.of(USER_HISTORIES)
    return InFlightBatch(drafts, personal, vectors, live, search, stages, now_ms, searched_at, read)


def finish(begun: InFlightBatch, kitchen: ServingContext) -> list[Answered]:
    """Answer every request of the batch, in its order."""
    stages, live, now_ms = begun.stages, begun.live, begun.now_ms
    may_be_shown = partial(_wanted, begun, kitchen)
    if live is not None and begun.search is not None:
        personal, similar = retrieve(begun, kitchen, may_be_shown)
        with stages("sources"):
            sources = Sources(kitchen.views, kitchen.settings, may_be_shown, now_ms)
            nominees = sources.ask(personal, similar)
            unite_all(personal, nominees, begun, kitchen, may_be_shown)
        with stages("rank"):
            in_time = drop_late(personal, stages.spent_s, kitchen.pace, kitchen.settings)
            rank(in_time, live, kitchen.views.statistics, kitchen.pace, now_ms)
        kitchen.drift.observe(live.version, personal)
    with stages("select"):
        for draft in begun.drafts:
            add_pins(draft, kitchen.selection, may_be_shown)
            select(draft, live, kitchen.selection)
            fill(draft, kitchen.views.trending, kitchen.views.catalogue, live, may_be_shown)
    version = "" if live is None else live.version
    marks = kitchen.views.marks.as_dict()
    if begun.histories_read:
        marks[USER_HISTORIES] = begun.histories_read
    return compose(begun.drafts, stages, marks, version=version, now_ms=now_ms, served_by=kitchen.served_by)


def hydrate(asked: RequestContext, histories: HistoryView, settings: Serving) -> ResponseDraft:
    request = asked.request
    history = histories.get(request.user_id, asked.partition) or UserHistory(request.user_id)
    if request.context is not None:
        history = msgspec.structs.replace(history, context=request.context)
    banned = banned_by(history, settings.shown_most)
    banned.update(request.exclude)
    return ResponseDraft(asked, request.k or settings.k, history, banned)


def is_personal(draft: ResponseDraft, live: LiveRelease | None, settings: Serving) -> bool:
    """Whether the towers are asked; a user without a watch gets what is trending, which is no degradation."""
    if draft.asked.left_s(settings.deadline_s) < 0:
        metrics.SHED.inc()
        draft.fall("trending", "the deadline had passed before the request was read")
    elif live is None:
        draft.fall("trending", "no release is live yet")
    else:
        return bool(draft.history.watches)
    return False


def embed(
    drafts: list[ResponseDraft], live: LiveRelease, settings: Serving, now_ms: int
) -> tuple[list[ResponseDraft], Floats, Floats]:
    """The drafts that have a usable user vector, these vectors [B, D], and those after their last watches alone [B, D]
    (all in one pass; the latter only where similar items are wanted)."""
    viewers = [draft.history for draft in drafts]
    if settings.similar:
        viewers += [last_alone(draft.history) for draft in drafts]
    vectors = live.model.user_vectors(viewers, now_ms)  # [B or 2 B, D]
    vectors, after = vectors[: len(drafts)], vectors[len(drafts) :]
    finite = np.flatnonzero(np.isfinite(vectors).all(axis=1)).tolist()  # rows of usable vectors
    for at in set(range(len(drafts))).difference(finite):
        drafts[at].fall("trending", "the user vector is not finite")
    usable = [drafts[at] for at in finite]
    return usable, vectors[finite], np.nan_to_num(after[finite]) if settings.similar else after


def last_alone(history: UserHistory) -> UserHistory:
    """Somebody of whom nothing is known but the last completed watch; what the towers find for him is like it."""
    last = next((watch for watch in reversed(history.watches) if watch.completed), None)
    return UserHistory(history.user_id, () if last is None else (last,))


def retrieve(
    begun: InFlightBatch, kitchen: ServingContext, may_be_shown: Wanted
) -> tuple[list[ResponseDraft], list[Ids]]:
    """The drafts with candidates, filtered, and what is similar to the last watch of each (empty: not known)."""
    assert begun.search is not None and begun.live is not None
    answer = kitchen.retrieval.finish(begun.search, now_ms=begun.now_ms)
    begun.stages.add("retrieve", time.perf_counter() - begun.searched_at)
    if answer.fell_to:
        for draft in begun.personal:
            draft.fall(answer.fell_to, answer.reason)
    if answer.found is None:
        return [], []
    size = len(begun.personal)
    with begun.stages("filter"):
        for draft, vector, found in zip(begun.personal, begun.vectors, answer.found[:size], strict=True):
            keep_wanted(draft, vector, found, begun, kitchen, may_be_shown)
    return begun.personal, list(answer.found[size:])


def keep_wanted(
    draft: ResponseDraft,
    vector: Floats,
    found: Ids,
    begun: InFlightBatch,
    kitchen: ServingContext,
    may_be_shown: Wanted,
) -> None:
    """Drop what may not be shown; where that leaves less than k although there are more, search again for more. What is
    dropped is not fetched on top: an index takes its time by the hit, and the other sources fill up."""
    most, live = kitchen.settings.candidates, begun.live
    assert live is not None
    limit = most
    while True:
        item_ids, scores = found
        rows = np.flatnonzero(may_be_shown(draft, item_ids))[:most]
        if len(rows) >= draft.k or len(item_ids) < limit or limit >= MOST_RESULTS:
            break
        limit = min(MOST_RESULTS, MORE * limit)
        metrics.SEARCHED_AGAIN.inc()
        query = Query(vector, limit, draft.asked.filter)
        again = kitchen.retrieval.search_again(query, live, now_ms=begun.now_ms)
        if again is None:
            break
        found = again
    draft.found = unite(([item_ids[row] for row in rows.tolist()], scores[rows]), {}, most)


def unite_all(
    drafts: Sequence[ResponseDraft],
    nominees: Mapping[str, Sequence[Nominees]],
    begun: InFlightBatch,
    kitchen: ServingContext,
    may_be_shown: Wanted,
) -> None:
    """Add what the other sources have nominated, and the two-tower scores of all of it."""
    live = begun.live
    assert live is not None
    for at, draft in enumerate(drafts):
        others = {source: found[at] for source, found in nominees.items()}
        for source, each in others.items():
            metrics.NOMINATED.labels(source).inc(len(each.item_ids))
        metrics.NOMINATED.labels(TWO_TOWER).inc(len(draft.found.item_ids))
        draft.found = unite((draft.found.item_ids, draft.found.scores), others, kitchen.settings.candidates)
        add_pins(draft, kitchen.selection, may_be_shown)
        draft.found = with_scores(draft.found, begun.vectors[at], live)
        metrics.CANDIDATES.observe(len(draft.found.item_ids))


def with_scores(found: Found, vector: Floats, live: LiveRelease) -> Found:
    """Inner products also for what the towers have not found themselves, as far as its vectors are known."""
    missing = np.flatnonzero(np.isnan(found.scores))
    if live.mirror is None or not len(missing):
        return found
    [scores] = live.mirror.scores(vector[None], [[found.item_ids[at] for at in missing.tolist()]])
    found.scores[missing] = scores
    return found


def drop_late(
    drafts: list[ResponseDraft], spent_s: float, pace: LatencyEstimate, settings: Serving
) -> list[ResponseDraft]:
    """The drafts whose clients still wait when the ranker is done, as far as it has lately kept its time."""
    in_time = []
    for draft in drafts:
        if draft.asked.left_s(settings.deadline_s) - spent_s >= len(drafts) * pace.expected_s:
            in_time.append(draft)
        elif draft.found.item_ids:
            draft.fall("unranked", "no time is left for the ranker")
    if drafts and not in_time:
        pace.skipped()
    return in_time


def rank(
    drafts: list[ResponseDraft], live: LiveRelease, statistics: StatisticsView, pace: LatencyEstimate, now_ms: int
) -> None:
    """Expected watch seconds of all candidates, in one forward pass (paper section 4)."""
    drafts = [draft for draft in drafts if draft.found.item_ids]
    if not drafts or not live.ranker.trained:
        return
    try:
        with pace.watch(len(drafts)):
            asked = [(draft.history, *draft.found) for draft in drafts]
            ranked = score_candidates(asked, live, statistics.statistics, now_ms=now_ms)
    except Exception as error:  # whatever a ranker dies of, the retrieval order is still a good answer
        log.exception("the ranker failed", version=live.version)
        for draft in drafts:
            draft.fall("unranked", f"the ranker failed: {type(error).__name__}")
        return
    for draft, (expected_s, fed) in zip(drafts, ranked, strict=True):
        if np.isfinite(expected_s).all():
            draft.expected_s, draft.fed = expected_s, fed
        else:
            draft.fall("unranked", "the ranker gave a value that is not finite")


def _wanted(begun: InFlightBatch, kitchen: ServingContext, draft: ResponseDraft, item_ids: Sequence[str]) -> Flags:
    catalogue = None if begun.live is None else begun.live.catalogue
    view = kitchen.views.catalogue
    return wanted(draft, item_ids, catalogue, view, now_ms=begun.now_ms, seen_days=kitchen.seen_days)
