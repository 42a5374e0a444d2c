"""One batch of requests' way to its answers: hydrate, embed, retrieve, filter, nominate, rank, select, reply.

What has arrived together is embedded, searched and ranked together, in two halves: `begin` ends where the search of the
index has started, `finish` takes up its answer. Between them the answering thread finishes the batch before. A stage
that fails sends its requests one step down the ladder (index; exact mirror; retrieval order; trending; anything that
may be shown), names the step and the reason in the reply, and never makes an error of a good request. The release is
read once per batch and belongs to it from begin to finish: no reply can mix two versions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from infra.platform import metrics
from infra.platform.settings import Selection, Serving
from models.ranking.ranking_batch import TWO_TOWER
from models.ranking.ranking_examples import CAP_S
from models.ranking.ranking_request import by_two_towers
from serving.request.backfill import fill
from serving.request.candidate_sources import LOOK, CandidateSources, Nominees, unite
from serving.request.filtering import MayBeShown
from serving.request.hydration import embed, hydrate, is_personal
from serving.request.parsing import ParsedRequest
from serving.request.preranking import Preranker
from serving.request.ranking import LatencyEstimate, by_ranker, drop_late, rank, rankings_of
from serving.request.recording import Recorder
from serving.request.reranking import add_pins, select
from serving.request.response_draft import LIVE, Answered, CandidateSet, Ids, RequestContext, ResponseDraft, StageTimes
from serving.request.retrieval import MOST_RESULTS, Query, Retrieval, Search
from serving.state.drift import AnswerDrift
from serving.state.release import LiveRelease
from serving.state.views import Views
from streams.experiments import Plan
from streams.topics import USER_HISTORIES

SEARCH_SHARE = 0.8  # of the time that is left until the deadline
MORE = 4  # times as many candidates when filters have left too few


@dataclass
class BatchPart:
    """Those of a batch that are answered from the candidates of one release; None while there is none yet."""

    release: LiveRelease | None
    stages: StageTimes  # the batch's
    drafts: list[ResponseDraft] = field(default_factory=list)
    places: list[int] = field(default_factory=list)  # of the drafts, in the batch
    personal: list[ResponseDraft] = field(default_factory=list)  # of these, those that the towers are asked about
    search: Search | None = None
    searched_at: float = 0.0
    later: int = 0  # rankings of the parts that come after it

    @property
    def rankings(self) -> int:
        """How often its rankers may be asked."""
        return sum(rankings_of(draft.plan) for draft in self.personal)


@dataclass
class InFlightBatch:
    """Requests that are answered together, from the queue to their replies."""

    contexts: Sequence[RequestContext]
    live: LiveRelease | None
    now_ms: int
    parsed: Sequence[ParsedRequest] = ()  # one for each context: whom to reply to
    queued: Sequence[tuple[Any, float]] = ()  # all records that were taken for it, and when they were read
    has_begun: bool = True  # False: a bug showed in the first half
    stages: StageTimes = field(default_factory=StageTimes)
    parts: list[BatchPart] = field(default_factory=list)
    histories_read: tuple[int, ...] = ()  # read offsets: histories are of the first half, all else of the second

    @property
    def waits(self) -> bool:
        """True while the index has still to answer, so that another batch can be begun."""
        return any(part.search is not None and part.search.pending is not None for part in self.parts)

    def one_by_one(self) -> list[InFlightBatch]:
        """Each request as a batch that has yet to begin."""
        pairs = zip(self.contexts, self.parsed, strict=True)
        return [
            InFlightBatch([context], self.live, self.now_ms, [parsed], has_begun=False) for context, parsed in pairs
        ]


@dataclass(frozen=True)
class Pipeline:
    """Answers batches, each in two halves. `watched_days`: so long an item that was watched is left out; `plan_of` says
    by which settings a user is served from a release where that is not by `settings` and `selection`."""

    views: Views
    retrieval: Retrieval
    settings: Serving
    selection: Selection
    served_by: str
    watched_days: int = 90
    latency: LatencyEstimate = field(default_factory=LatencyEstimate)
    drift: AnswerDrift = field(default_factory=AnswerDrift)
    plan_of: Callable[[str, LiveRelease | None], Plan] | None = None

    @cached_property
    def preranker(self) -> Preranker:
        return Preranker(self.settings)

    def begin(self, contexts: Sequence[RequestContext], live: LiveRelease | None, now_ms: int) -> InFlightBatch:
        """Everything before the answer of the index is needed. `live`: None while there is no release yet."""
        batch = InFlightBatch(contexts, live, now_ms)
        with batch.stages("hydrate"):
            drafts = [hydrate(context, self.views.histories, self._plan_of(context, live)) for context in contexts]
            batch.parts = parts_of(drafts, live, batch.stages)
            for part in batch.parts:
                part.personal = [draft for draft in part.drafts if is_personal(draft, live, self.settings)]
        for part in batch.parts:
            self._begin_part(part, now_ms)
        batch.histories_read = self.views.read_offsets.of(USER_HISTORIES)
        return batch

    def finish(self, batch: InFlightBatch) -> list[Answered]:
        """Answer every request of the batch, in its order."""
        self.views.settle(batch.now_ms)
        for number, part in enumerate(batch.parts, 1):
            part.later = sum(each.rankings for each in batch.parts[number:])
            self._finish_part(part, batch.now_ms)
        answers: dict[int, Answered] = {}  # all are sent together, so all took as long
        for part in batch.parts:
            answers |= zip(part.places, self._recorder_of(part, batch).compose(part.drafts, batch.stages), strict=True)
        return [answers[place] for place in range(len(batch.contexts))]

    def _begin_part(self, part: BatchPart, now_ms: int) -> None:
        release = part.release
        if release is not None and part.personal:
            with part.stages("embed"):
                part.personal = embed(part.personal, release, now_ms)
            if part.personal:
                part.search = self._start_search(part.personal, release, now_ms)
        part.searched_at = time.perf_counter()

    def _finish_part(self, part: BatchPart, now_ms: int) -> None:
        """Up to the lists."""
        release = part.release
        catalogue = None if release is None else release.catalogue
        may_be_shown = MayBeShown(self.views.catalogue, catalogue, now_ms, self.watched_days)
        if release is not None and part.search is not None:
            self._find_and_rank(part, part.search, release, may_be_shown)
        with part.stages("select"):
            for draft in part.drafts:
                add_pins(draft, may_be_shown)
                select(draft, release)
                fill(draft, self.views, release, may_be_shown)

    def _recorder_of(self, part: BatchPart, batch: InFlightBatch) -> Recorder:
        read_offsets, release = self.views.read_offsets.as_dict(), part.release
        if batch.histories_read:
            read_offsets[USER_HISTORIES] = batch.histories_read
        version, cap_s = ("", CAP_S) if release is None else (release.version, release.ranker.cap_s)
        titles = self.views.catalogue.title
        return Recorder(version, cap_s, batch.now_ms, self.served_by, read_offsets, titles)

    def _plan_of(self, context: RequestContext, live: LiveRelease | None) -> Plan:
        own = Plan(self.settings, self.selection)
        return own if self.plan_of is None else self.plan_of(context.request.user_id, live)

    def _start_search(self, drafts: Sequence[ResponseDraft], live: LiveRelease, now_ms: int) -> Search:
        """Search under each request's own filter, for its user and, behind that, for the last watch alone."""
        settings = self.settings
        queries = [Query(draft.vector, settings.candidates, draft.context.filter) for draft in drafts]
        similar = [
            Query(draft.last_watch_vector, LOOK * draft.plan.serving.similar, draft.context.filter)
            for draft in drafts
            if len(draft.last_watch_vector)
        ]
        left_s = SEARCH_SHARE * max(draft.context.left_s(settings.deadline_s) for draft in drafts)
        return self.retrieval.start(queries, live, now_ms=now_ms, left_s=left_s, others=similar)

    def _find_and_rank(self, part: BatchPart, search: Search, live: LiveRelease, may_be_shown: MayBeShown) -> None:
        stages, now_ms = part.stages, may_be_shown.now_ms
        drafts = self._retrieve(part, search, live, may_be_shown)
        with stages("sources"):
            nominees = CandidateSources(self.views, self.settings, may_be_shown, now_ms).nominate(drafts)
            for at, draft in enumerate(drafts):
                others = {source: found[at] for source, found in nominees.items()}
                self._add_nominees(draft, others, live, may_be_shown)
        with stages("rank"):
            in_time = drop_late(drafts, stages.spent_s, self.latency, self.settings, part.later)
            scores = [draft.candidates.scores for draft in drafts]
            for release, own in by_ranker(in_time, live):
                rank(own, release, self.views.statistics, self.latency, self.preranker, now_ms)
        if not live.is_beside:
            ranked = [draft.rankings[LIVE].expected_s for draft in drafts if LIVE in draft.rankings]
            self.drift.observe(live.version, scores, ranked)

    def _retrieve(
        self, part: BatchPart, search: Search, live: LiveRelease, may_be_shown: MayBeShown
    ) -> list[ResponseDraft]:
        """The drafts with candidates, filtered; empty where nobody could answer."""
        drafts = part.personal
        if live.is_beside:  # nobody has searched meanwhile
            part.searched_at = time.perf_counter()
        answer = self.retrieval.finish(search, now_ms=may_be_shown.now_ms)
        part.stages.add("retrieve", time.perf_counter() - part.searched_at)
        if answer.fell_to:
            for draft in drafts:
                draft.degrade(answer.fell_to, answer.reason)
        if answer.found is None:
            return []
        for draft in drafts:
            draft.retrieved_by = answer.by
        watchers = [draft for draft in drafts if len(draft.last_watch_vector)]
        for draft, similar in zip(watchers, answer.found[len(drafts) :], strict=True):
            draft.similar = similar
        with part.stages("filter"):
            for draft, found in zip(drafts, answer.found, strict=False):
                self._keep_allowed(draft, found, live, may_be_shown)
        return drafts

    def _keep_allowed(self, draft: ResponseDraft, found: Ids, live: LiveRelease, may_be_shown: MayBeShown) -> None:
        """Drop what may not be shown; where that leaves less than k although there are more, search again for more.
        What is dropped is not fetched on top: an index takes its time by the hit, and the other sources fill up."""
        most = limit = self.settings.candidates
        while True:
            item_ids, scores = found
            rows = np.flatnonzero(may_be_shown(draft, item_ids))[:most]
            if len(rows) >= draft.k or len(item_ids) < limit or limit >= MOST_RESULTS:
                break
            limit = min(MOST_RESULTS, MORE * limit)
            metrics.SEARCHED_AGAIN.inc()
            query = Query(draft.vector, limit, draft.context.filter)
            again = self.retrieval.search_again(query, live, now_ms=may_be_shown.now_ms)
            if again is None:
                break
            found = again
        kept = [item_ids[row] for row in rows.tolist()]
        draft.candidates = CandidateSet(kept, scores[rows], by_two_towers(len(rows)))

    def _add_nominees(
        self, draft: ResponseDraft, others: Mapping[str, Nominees], live: LiveRelease, may_be_shown: MayBeShown
    ) -> None:
        """Add what the other sources have nominated, and the two-tower scores of all of it."""
        for source, each in others.items():
            metrics.NOMINATED.labels(source).inc(len(each.item_ids))
        item_ids, scores, _ = draft.candidates
        metrics.NOMINATED.labels(TWO_TOWER).inc(len(item_ids))
        draft.candidates = unite((item_ids, scores), others, self.settings.candidates)
        add_pins(draft, may_be_shown)
        add_scores(draft, live)
        metrics.CANDIDATES.observe(len(draft.candidates.item_ids))


def parts_of(drafts: Sequence[ResponseDraft], live: LiveRelease | None, stages: StageTimes) -> list[BatchPart]:
    """The drafts by whose candidates they are answered from: the live release's, or those of a rival that has its own,
    as their plans say. The latter come first: they are found in memory, while the index searches for the others."""
    parts: dict[str, BatchPart] = {}
    for place, draft in enumerate(drafts):
        release = None if live is None else live.with_candidates(draft.plan.release)
        part = parts.setdefault("" if release is None else release.version, BatchPart(release, stages))
        part.drafts.append(draft)
        part.places.append(place)
    return sorted(parts.values(), key=lambda part: part.release is None or not part.release.is_beside)


def add_scores(draft: ResponseDraft, live: LiveRelease) -> None:
    """Inner products also for what the towers have not found themselves, as far as its vectors are known."""
    item_ids, scores, _ = draft.candidates
    missing = np.flatnonzero(np.isnan(scores))
    if live.mirror is None or not len(missing):
        return
    [known] = live.mirror.scores(draft.vector[None], [[item_ids[at] for at in missing.tolist()]])
    scores[missing] = known
