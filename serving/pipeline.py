"""One batch of requests' way to its answers: hydrate, embed, retrieve, filter, rank, select, reply.

What has arrived together is embedded, searched and ranked together. A stage that fails sends its requests one step down
the ladder (two-tower and ranked; retrieval order; trending; anything that may be shown), names the step and the reason
in the reply, and never makes an error of a good request. The release is an argument, read once per batch by the caller:
no reply can mix two versions.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray

from indexer.errors import IndexFailure
from infra import metrics
from infra.settings import Serving
from models.moment import TWO_TOWER
from serving.breaker import Breaker
from serving.marks import Marks
from serving.ranking import Fed, Pace, record_query, record_shown, score_candidates
from serving.release import LiveRelease
from serving.views import GLOBAL, CatalogueView, HistoryView, StatisticsView, TrendingView
from streams.messages import Impression, Recommended, RecommendReply, RecommendRequest, Shown, UserHistory

log = structlog.get_logger(__name__)

Floats = NDArray[np.float32]

TRENDING, CATALOGUE = "trending", "catalogue"
MOST_RESULTS = 16384  # what a Milvus server returns at most
SEARCH_SHARE = 0.8  # of the time that is left until the deadline
LEAST_SEARCH_S = 0.05


class Asked(NamedTuple):
    """A request that was understood. `partition` is its user's; `wait_ms` what it has waited before it was read."""

    request: RecommendRequest
    partition: int
    wait_ms: float = 0.0

    def left_s(self, deadline_s: float) -> float:
        """How much longer its client waits; negative when it has given up. `deadline_s` when the request says none."""
        return ((self.request.deadline_ms or deadline_s * 1000) - self.wait_ms) / 1000


class Answered(NamedTuple):
    reply: RecommendReply
    impression: Impression | None


@dataclass(frozen=True)
class Views:
    histories: HistoryView
    catalogue: CatalogueView
    trending: TrendingView
    statistics: StatisticsView
    marks: Marks = field(default_factory=Marks)


@dataclass
class Draft:
    """What is known of one answer so far."""

    asked: Asked
    k: int
    history: UserHistory
    banned: set[str]  # seen by the user or excluded by the request
    degraded: list[str] = field(default_factory=list)
    item_ids: list[str] = field(default_factory=list)  # candidates, best first by inner product
    scores: Floats = field(default_factory=lambda: np.zeros(0, np.float32))  # [C]
    expected_s: Floats | None = None  # [C], calibrated
    fed: Fed | None = None  # what the ranker was fed
    items: list[Recommended] = field(default_factory=list)

    def fall(self, step: str, reason: str) -> None:
        """Go down the ladder to `step`; a request that lies lower already stays there."""
        metrics.FALLBACKS.labels(step).inc()
        self.degraded.append(f"{step}: {reason}")


class Stages:
    """The time of each stage of a batch."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = {}
        self._began = time.perf_counter()

    @property
    def spent_s(self) -> float:
        """Since the batch was begun."""
        return time.perf_counter() - self._began

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            spent_s = time.perf_counter() - start
            self.ms[stage] = round(spent_s * 1000, 3)
            metrics.STAGE_TIME.labels(stage).observe(spent_s)


def answer(
    batch: Sequence[Asked],
    live: LiveRelease | None,
    views: Views,
    breaker: Breaker,
    pace: Pace,
    *,
    now_ms: int,
    settings: Serving,
    served_by: str,
) -> list[Answered]:
    """Answer every request of a batch, in its order, from one release (None: there is none yet). `breaker` and `pace`
    remember how the index and the ranker have done."""
    stages = Stages()
    with stages("hydrate"):
        drafts = [hydrate(asked, views.histories, settings) for asked in batch]
        personal = [draft for draft in drafts if is_personal(draft, live, settings)]
    if live is not None and personal:
        with stages("embed"):
            personal, vectors = embed(personal, live, now_ms)
        with stages("retrieve"):
            personal = retrieve(personal, vectors, live, breaker, settings=settings, now_ms=now_ms)
        with stages("filter"):
            for draft in personal:
                drop_unwanted(draft, views.catalogue.unavailable, settings.candidates)
        with stages("rank"):
            in_time = drop_late(personal, stages.spent_s, pace, settings)
            rank(in_time, live, views.statistics, pace, now_ms)
    with stages("select"):
        for draft in drafts:
            select(draft, views, live)
    version = "" if live is None else live.version
    return reply(drafts, stages, views.marks, version=version, now_ms=now_ms, served_by=served_by)


def hydrate(asked: Asked, histories: HistoryView, settings: Serving) -> Draft:
    request = asked.request
    history = histories.get(request.user_id, asked.partition) or UserHistory(request.user_id)
    if request.context is not None:
        history = msgspec.structs.replace(history, context=request.context)
    banned = {watch.item_id for watch in history.watches}
    banned.update(request.exclude)
    return Draft(asked, request.k or settings.k, history, banned)


def is_personal(draft: Draft, live: LiveRelease | None, settings: Serving) -> bool:
    """Whether the towers are asked; a user without a watch gets what is trending, which is no degradation."""
    if draft.asked.left_s(settings.deadline_s) < 0:
        draft.fall("trending", "the deadline had passed before the request was read")
    elif live is None:
        draft.fall("trending", "no release is live yet")
    else:
        return bool(draft.history.watches)
    return False


def embed(drafts: list[Draft], live: LiveRelease, now_ms: int) -> tuple[list[Draft], Floats]:
    """The drafts that have a usable user vector, and the vectors [B, D]."""
    vectors = live.model.user_vectors([draft.history for draft in drafts], now_ms)  # [B, D]
    finite = np.flatnonzero(np.isfinite(vectors).all(axis=1)).tolist()  # rows of usable vectors
    for at in set(range(len(drafts))).difference(finite):
        drafts[at].fall("trending", "the user vector is not finite")
    return [drafts[at] for at in finite], vectors[finite]


def retrieve(
    drafts: list[Draft], vectors: Floats, live: LiveRelease, breaker: Breaker, *, settings: Serving, now_ms: int
) -> list[Draft]:
    """Search the index for all drafts at once; those that have candidates. What will be filtered is fetched on top."""
    if not drafts:
        return drafts
    limit = min(MOST_RESULTS, settings.candidates + max(len(draft.banned) for draft in drafts))
    left_s = max(draft.asked.left_s(settings.deadline_s) for draft in drafts)
    reason = breaker.reason(now_ms)
    if reason is None:
        try:
            found = live.search(vectors, limit, timeout_s=max(LEAST_SEARCH_S, SEARCH_SHARE * left_s))
        except IndexFailure as error:
            reason = f"the index did not answer: {error}"
            breaker.failed(now_ms, reason)
        else:
            breaker.succeeded()
            for draft, (item_ids, scores) in zip(drafts, found, strict=True):
                draft.item_ids, draft.scores = item_ids, scores
            return drafts
    for draft in drafts:
        draft.fall("trending", reason)
    return []


def drop_unwanted(draft: Draft, unavailable: set[str], candidates: int) -> None:
    """Drop what was seen, excluded or taken down, and keep the best of the rest."""
    banned = draft.banned
    kept = [i for i, item in enumerate(draft.item_ids) if item not in banned and item not in unavailable][:candidates]
    if len(kept) < len(draft.item_ids):
        draft.item_ids = [draft.item_ids[i] for i in kept]
        draft.scores = draft.scores[kept]
    metrics.CANDIDATES.observe(len(kept))


def drop_late(drafts: list[Draft], spent_s: float, pace: Pace, settings: Serving) -> list[Draft]:
    """The drafts whose clients still wait when the ranker is done, as far as it has lately kept its time."""
    in_time = []
    for draft in drafts:
        if draft.asked.left_s(settings.deadline_s) - spent_s >= len(drafts) * pace.expected_s:
            in_time.append(draft)
        elif draft.item_ids:
            draft.fall("unranked", "no time is left for the ranker")
    if drafts and not in_time:
        pace.skipped()
    return in_time


def rank(drafts: list[Draft], live: LiveRelease, statistics: StatisticsView, pace: Pace, now_ms: int) -> None:
    """Expected watch seconds of all candidates, in one forward pass (paper section 4)."""
    drafts = [draft for draft in drafts if draft.item_ids]
    if not drafts or not live.ranker.trained:
        return
    try:
        with pace.watch(len(drafts)):
            ranked = score_candidates(
                [(draft.history, draft.item_ids, draft.scores) for draft in drafts],
                live,
                statistics.statistics,
                now_ms=now_ms,
            )
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


def select(draft: Draft, views: Views, live: LiveRelease | None) -> None:
    """The k best candidates, filled up with what is trending and then with anything that may be shown."""
    order = draft.scores if draft.expected_s is None else draft.expected_s
    for i in np.argsort(-order, kind="stable")[: draft.k].tolist():
        expected_s = None if draft.expected_s is None else float(draft.expected_s[i])
        draft.items.append(
            Recommended(draft.item_ids[i], len(draft.items) + 1, TWO_TOWER, float(draft.scores[i]), expected_s)
        )
    if len(draft.items) < draft.k:
        fill(draft, views, live)


def fill(draft: Draft, views: Views, live: LiveRelease | None) -> None:
    """Add items until there are k of them, or none are left."""
    taken = draft.banned | {item.item_id for item in draft.items}
    for item_id, source, score in spares(views, live):
        if len(draft.items) >= draft.k:
            return
        if item_id not in taken and item_id not in views.catalogue.unavailable:
            taken.add(item_id)
            draft.items.append(Recommended(item_id, len(draft.items) + 1, source, score))


def spares(views: Views, live: LiveRelease | None) -> Iterator[tuple[str, str, float | None]]:
    """Item, source and score of what can fill an answer up, best first."""
    for item_id, count in views.trending.top(GLOBAL):
        yield item_id, TRENDING, count
    for item_id in views.catalogue:
        yield item_id, CATALOGUE, None
    for item_id in () if live is None else live.model.item_ids:
        yield item_id, CATALOGUE, None


def reply(
    drafts: Sequence[Draft], stages: Stages, marks: Marks, *, version: str, now_ms: int, served_by: str
) -> list[Answered]:
    with stages("reply"):
        items = [tuple(draft.items) for draft in drafts]
        impressions = [
            impress(draft, marks, version, now_ms, served_by) if is_shown(draft) else None for draft in drafts
        ]
    return [
        Answered(_reply_of(draft, shown, stages.ms, version, served_by), impression)
        for draft, shown, impression in zip(drafts, items, impressions, strict=True)
    ]


def is_shown(draft: Draft) -> bool:
    return bool(draft.items) and draft.asked.request.record


def impress(draft: Draft, marks: Marks, version: str, now_ms: int, served_by: str) -> Impression:
    """The record of what was shown, and of what the ranker was fed."""
    request = draft.asked.request
    shown = tuple(
        Shown(item.item_id, item.rank, item.source, item.score, item.expected_watch_s) for item in draft.items
    )
    plain = Impression(
        request.request_id, request.user_id, now_ms, served_by, version, shown, context=draft.history.context
    )
    if draft.fed is None:
        return plain
    row_of = {item_id: row for row, item_id in enumerate(draft.item_ids)}
    fed = tuple(record_shown(each, draft.fed, row_of.get(each.item_id)) for each in shown)
    return record_query(plain, fed, draft.fed, marks.as_dict())


def _reply_of(
    draft: Draft, items: tuple[Recommended, ...], stages_ms: dict[str, float], version: str, served_by: str
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
