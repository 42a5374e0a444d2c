"""Searches the candidates of a batch in the index or in the exact mirror, and decides which of them to trust.

Where both are there, the quicker one is asked first (serving/state/search_order.py). A search of the index runs in a
thread of its own, so that the answering thread ranks another batch meanwhile. One that fails, or is not back within its
time, is answered by the mirror, and the index is then left alone for a while (serving/state/breaker.py): no second
request waits for a dead Milvus. While there is a mirror no request is ever used to find out whether Milvus is back, nor
how quick it is: a copy of a query is sent in the shadow. A share of the answers is audited
(serving/state/recall_audit.py). Without a mirror nobody can tell a good answer from that of a half-filled collection
(Milvus may have lost its data): so after a failure the collection must say that it is whole before it is searched
again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotInTime
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import structlog

from indexer.errors import FilterRefused, IndexFailure, IndexMissing
from indexer.item_attributes import to_milvus
from indexer.rollout import is_whole
from infra.platform import metrics
from infra.platform.settings import Serving
from models.catalogue.item_filter import ItemFilter
from serving.request.response_draft import Floats, Ids
from serving.state.breaker import Breaker
from serving.state.recall_audit import RecallAudit
from serving.state.release import LiveRelease
from serving.state.search_order import INDEX, MIRROR, SearchOrder

log = structlog.get_logger(__name__)

MOST_RESULTS = 16384  # what a Milvus server returns at most
LEAST_SEARCH_S = 0.05
LEAST_PROBED = 0.001  # share of the batches whose copy is sent to an index that is not first
DID_NOT_ANSWER = "the index did not answer"
NO_MIRROR = "the vectors are not held in memory (serving.mirror_items)"


class Query(NamedTuple):
    """One vector float32 [D] to be searched: how many items, and which may be among them."""

    vector: Floats
    limit: int
    filter: ItemFilter | None = None


@dataclass
class Search:
    """A search that has started. `pending` is None where the index is not asked; then `reason` says why (empty: by
    choice). `beside`: what the mirror is asked while the index searches."""

    queries: Sequence[Query]
    release: LiveRelease
    pending: Future[list[Ids]] | None
    timeout_s: float  # so long is waited for the index
    deadline_s: float  # the same by the monotonic clock
    reason: str = ""
    beside: Sequence[Query] = ()
    is_retry: bool = False  # after a failure, without a mirror


class Answer(NamedTuple):
    """`found` per query, None where nobody could answer; `by` says who did, `fell_to` names the step of the ladder and
    `reason` the reason."""

    found: list[Ids] | None
    by: str = ""
    fell_to: str = ""
    reason: str = ""


Ask = Callable[[LiveRelease, Sequence[Query], float], list[Ids]]


class Retrieval:
    """Remembers how well the index has answered. One answering thread; `seed` decides which answers are audited."""

    def __init__(self, settings: Serving, seed: int) -> None:
        self._settings = settings
        self._breaker, self._audit = Breaker(), RecallAudit(settings.audit_recall)
        self._order = SearchOrder(settings.first)
        self._rng = np.random.default_rng(seed)
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="search")
        metrics.INDEX_IN_USE.set(1)
        self._probe: tuple[Future[list[Ids]], Query, LiveRelease] | None = None

    def start(
        self,
        queries: Sequence[Query],
        release: LiveRelease,
        *,
        now_ms: int,
        left_s: float,
        others: Sequence[Query] = (),
    ) -> Search:
        """Begin to search; `left_s` is the longest that this may take.

        `others` are answered behind the queries: by the mirror, in the same pass over it or while the index searches;
        without a mirror by the index.
        """
        timeout_s = max(LEAST_SEARCH_S, min(left_s, self._settings.search_s))
        deadline_s = time.monotonic() + timeout_s
        reason = "" if release.is_beside else self._reason(queries, release, now_ms)
        if reason is not None:
            return Search([*queries, *others], release, None, timeout_s, deadline_s, reason)
        for_index, beside = (queries, others) if release.mirror is not None else ([*queries, *others], ())
        is_retry = self._breaker.is_open
        pending = self._ask(ask_again if is_retry else ask_index, release, for_index, timeout_s)
        return Search(for_index, release, pending, timeout_s, deadline_s, beside=beside, is_retry=is_retry)

    def finish(self, search: Search, *, now_ms: int) -> Answer:
        """Wait for the index, and ask the mirror if it has not answered."""
        if search.pending is None:
            return self._ask_mirror(search, search.reason)
        beside = (self.search_mirror(search.beside, search.release) or []) if search.beside else []
        answer = self._wait(search, search.pending, now_ms)
        return answer if answer.found is None else answer._replace(found=[*answer.found, *beside])

    def _wait(self, search: Search, pending: Future[list[Ids]], now_ms: int) -> Answer:
        """The answer of the index, or of the mirror in its place."""
        try:
            found = pending.result(max(0.0, search.deadline_s - time.monotonic()))
        except NotInTime:
            late = f"{DID_NOT_ANSWER}: no answer within {search.timeout_s:.2f} s"
            return self._ask_mirror(search, self._failed(late, now_ms))
        except FilterRefused as error:  # that is the request's fault: the index is as good as before
            return self._ask_mirror(search, f"{DID_NOT_ANSWER}: {error}")
        except IndexFailure as error:
            return self._ask_mirror(search, self._failed(f"{DID_NOT_ANSWER}: {error}", now_ms))
        # Without a mirror, one that began before another failed has not asked whether the collection is whole.
        if search.is_retry or search.release.mirror is not None or not self._breaker.is_open:
            self._breaker.succeeded()
            metrics.INDEX_IN_USE.set(1)
        self._sample(search, found, now_ms)
        return Answer(found, INDEX)

    def search_mirror(self, queries: Sequence[Query], release: LiveRelease) -> list[Ids] | None:
        """Exact answers; None where there is no mirror."""
        mirror = release.mirror
        if mirror is None:
            return None
        allowed = [
            None if query.filter is None else query.filter.mask(release.catalogue, mirror.catalogue_rows)
            for query in queries
        ]
        began_s = time.perf_counter()
        found = mirror.search(np.stack([query.vector for query in queries]), max(q.limit for q in queries), allowed)
        if not release.is_beside:  # its mirror is another one
            self._order.add(MIRROR, time.perf_counter() - began_s, len(queries))
        return [
            (ids[: query.limit], scores[: query.limit]) for query, (ids, scores) in zip(queries, found, strict=True)
        ]

    def search_again(self, query: Query, release: LiveRelease, *, now_ms: int) -> Ids | None:
        """One query at once, the mirror first; None when nobody can answer."""
        found = self.search_mirror([query], release)
        if found is None and not self._breaker.is_open:  # whether it is whole again is for a search to find out
            try:
                found = ask_index(release, [query], self._settings.search_s)
            except FilterRefused:
                return None
            except IndexFailure as error:
                self._failed(f"{DID_NOT_ANSWER}: {error}", now_ms)
        return None if found is None else found[0]

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _ask(self, how: Ask, release: LiveRelease, queries: Sequence[Query], timeout_s: float) -> Future[list[Ids]]:
        """Ask the index, in a thread of its own. A failure counts as all the time that it had: one that refuses at
        once is not a quick one."""

        def ask() -> list[Ids]:
            began_s = time.perf_counter()
            try:
                found = how(release, queries, timeout_s)
            except FilterRefused:
                raise
            except IndexFailure:
                self._order.add(INDEX, timeout_s, 1)
                raise
            self._order.add(INDEX, time.perf_counter() - began_s, len(queries))
            return found

        return self._threads.submit(ask)

    def _reason(self, queries: Sequence[Query], release: LiveRelease, now_ms: int) -> str | None:
        """The reason not to ask the index now, empty for by choice; None: it is asked."""
        if release.mirror is None:
            return self._breaker.reason(now_ms)
        is_choice = self._order.is_mirror_first(len(release.mirror))
        metrics.MIRROR_FIRST.set(is_choice)
        if self._settings.first == MIRROR:  # whoever says so wants nothing asked of Milvus
            return ""
        self._take_probe(now_ms)
        if self._breaker.is_open:
            is_due = self._breaker.reason(now_ms) is None
        else:
            is_due = is_choice and self._rng.random() < max(self._settings.audit_share, LEAST_PROBED)
        if is_due and self._probe is None:
            probe = queries[0]
            self._probe = self._ask(ask_index, release, [probe], self._settings.search_s), probe, release
        if is_choice:
            return ""
        return self._breaker.last_reason if self._breaker.is_open else None

    def _take_probe(self, now_ms: int) -> None:
        """Look at the shadow's answer, if it is there: the index is used again when it is a good one."""
        if self._probe is None or not self._probe[0].done():
            return
        pending, query, release = self._probe
        self._probe = None
        try:
            [found] = pending.result()
        except FilterRefused:
            return  # it tells nothing of the index
        except IndexFailure as error:
            self._failed(f"{DID_NOT_ANSWER}: {error}", now_ms)
            return
        [exact] = self.search_mirror([query], release) or [found]
        recall = self._audit.add(found, exact)
        if not self._breaker.is_open:
            self._look_at_audit(now_ms)
        elif self._audit.is_good(recall):
            log.info("the index is used again", recall=recall)
            self._audit.forget()
            self._breaker.succeeded()
            metrics.INDEX_IN_USE.set(1)
        else:
            self._failed(f"the index found {recall:.3f} of a sample's exact answer", now_ms)

    def _ask_mirror(self, search: Search, reason: str) -> Answer:
        found = self.search_mirror(search.queries, search.release)
        if found is None:
            return Answer(None, "", "trending", f"{reason or 'the index is not asked'}; {NO_MIRROR}")
        return Answer(found, MIRROR, MIRROR if reason else "", reason)

    def _failed(self, reason: str, now_ms: int) -> str:
        if not self._breaker.is_open:
            log.warning("the index is left alone", reason=reason)
        self._breaker.failed(now_ms, reason)
        metrics.INDEX_IN_USE.set(0)
        return reason

    def _sample(self, search: Search, found: Sequence[Ids], now_ms: int) -> None:
        """Compare a share of the answers with exact ones."""
        if search.release.mirror is None or not self._settings.audit_share:
            return
        for at in np.flatnonzero(self._rng.random(len(found)) < self._settings.audit_share).tolist():
            [exact] = self.search_mirror([search.queries[at]], search.release) or [found[at]]
            self._audit.add(found[at], exact)
        self._look_at_audit(now_ms)

    def _look_at_audit(self, now_ms: int) -> None:
        if (alarm := self._audit.alarm()) is not None:
            self._audit.forget()
            self._failed(alarm, now_ms)


def ask_index(release: LiveRelease, queries: Sequence[Query], timeout_s: float) -> list[Ids]:
    """One call for all queries that share a filter. Raises IndexFailure."""
    deadline_s = time.monotonic() + timeout_s
    groups: dict[ItemFilter | None, list[int]] = {}
    for at, query in enumerate(queries):
        groups.setdefault(query.filter, []).append(at)
    found: list[Ids] = [([], np.zeros(0, np.float32))] * len(queries)
    for item_filter, members in groups.items():
        limit = min(MOST_RESULTS, max(queries[at].limit for at in members))
        answers = release.index.search(
            release.version,
            np.stack([queries[at].vector for at in members]),
            limit,
            timeout_s=max(LEAST_SEARCH_S, deadline_s - time.monotonic()),
            expression="" if item_filter is None else to_milvus(item_filter),
        )
        for at, (item_ids, scores) in zip(members, answers, strict=True):
            found[at] = item_ids[: queries[at].limit], scores[: queries[at].limit]
    return found


def ask_again(release: LiveRelease, queries: Sequence[Query], timeout_s: float) -> list[Ids]:
    """`ask_index` after a failure, without a mirror: Milvus may have lost its data, and the indexer may be filling the
    collection anew. Raises IndexFailure, also while it is not whole."""
    began_s = time.monotonic()
    if not is_whole(release.index.mark_of(release.version, timeout_s)):
        raise IndexMissing(f"the collection of {release.version} is not whole: the indexer is filling it again")
    return ask_index(release, queries, timeout_s - (time.monotonic() - began_s))
