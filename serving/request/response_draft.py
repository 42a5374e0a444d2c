"""One answer on its way through the stages, and the time that the stages take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from infra.platform import metrics
from infra.platform.tracing import Stage
from models.catalogue.item_filter import ItemFilter
from models.ranking.ranker import Ranked
from models.ranking.ranking_request import Nominations, by_two_towers
from streams.experiments import Plan
from streams.history.signals import Unwanted
from streams.messages import Impression, Pool, Recommended, RecommendReply, RecommendRequest, UserHistory

Floats = NDArray[np.float32]
Ids = tuple[list[str], Floats]  # items and their scores, best first
LIVE = ""  # for the live release's own ranker, where releases are named by whose ranker they have


class RequestContext(NamedTuple):
    """A request that was understood. `partition` is its user's; `wait_ms` the time before it was read; `filter` the
    request's own, parsed."""

    request: RecommendRequest
    partition: int
    wait_ms: float = 0.0
    filter: ItemFilter | None = None

    def left_s(self, deadline_s: float) -> float:
        """The time that its client still waits, negative when it has given up; `deadline_s` if the request has none."""
        return ((self.request.deadline_ms or deadline_s * 1000) - self.wait_ms) / 1000


class Answered(NamedTuple):
    reply: RecommendReply
    impression: Impression | None


class CandidateSet(NamedTuple):
    """C candidates: ids, two-tower scores float32 [C] (NaN where there is none), and the sources of each."""

    item_ids: list[str]
    scores: Floats
    nominations: Nominations


class RankerInputs(NamedTuple):
    """The inputs of the ranker for one request, to go on record. `query` is its row among the queries of `ranked`,
    `first` the row of its first candidate; `ranks` [C] by retrieval score; `shown` [C] decayed impressions of each
    candidate; `spread` [C] how far the members disagree; `known_ms`: when what it was given of the items was so."""

    ranked: Ranked
    query: int
    first: int
    ranks: Floats
    best: float
    factor: float
    shown: NDArray[np.float64]
    spread: Floats | None
    known_ms: int


class Ranking(NamedTuple):
    """The seconds that a ranker expects of C candidates, float32 [C], calibrated, and what it was given."""

    expected_s: Floats
    inputs: RankerInputs


def no_vector() -> Floats:
    return np.zeros(0, np.float32)


def no_candidates() -> CandidateSet:
    return CandidateSet([], np.zeros(0, np.float32), by_two_towers(0))


@dataclass
class ResponseDraft:
    """`banned`: items that this answer may not hold, whatever nominates them, the `unwanted` ones among them. `plan`:
    the settings that it is made by."""

    context: RequestContext
    k: int
    history: UserHistory
    banned: set[str]
    plan: Plan
    unwanted: Unwanted = field(default_factory=Unwanted)
    unwanted_codes: frozenset[int] | None = None  # of its channels in the release's catalogue; None: not looked up yet
    degraded: list[str] = field(default_factory=list)
    vector: Floats = field(default_factory=no_vector)  # [D], of the user
    last_watch_vector: Floats = field(default_factory=no_vector)  # [D], of the last completed watch alone; empty: none
    similar: Ids | None = None  # what was found for it
    retrieved_by: str = ""  # who searched: index, mirror
    candidates: CandidateSet = field(default_factory=no_candidates)
    rankings: dict[str, Ranking] = field(default_factory=dict)  # by LiveRelease.ranked_by
    items: list[Recommended] = field(default_factory=list)
    teams: dict[str, str] = field(default_factory=dict)  # of an interleaved list, whose pick an item was
    pool: Pool | None = None  # what could have been drawn

    @property
    def request(self) -> RecommendRequest:
        return self.context.request

    @property
    def region(self) -> str | None:
        """Where the viewer is, as far as it is known."""
        return None if self.history.context is None else self.history.context.region

    @property
    def recorded(self) -> tuple[str, Ranking | None]:
        """The ranking that goes on record, and whose it is: that of the live ranker, where it is one of two."""
        ranked_by = LIVE if LIVE in self.rankings else next(iter(self.rankings), LIVE)
        return ranked_by, self.rankings.get(ranked_by)

    def degrade(self, step: str, reason: str) -> None:
        """Go down the ladder to `step`; a request that lies lower already stays there."""
        metrics.FALLBACKS.labels(step).inc()
        self.degraded.append(f"{step}: {reason}")


class StageTimes:
    """The time of each stage of a batch, as far as this process spends it; in all, and from when to when."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = {}
        self.spent: list[Stage] = []
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
            self.add(stage, time.perf_counter() - start)

    def add(self, stage: str, spent_s: float) -> None:
        end_s = time.perf_counter()
        self.spent.append(Stage(stage, end_s - spent_s, end_s))
        self.ms[stage] = round(self.ms.get(stage, 0.0) + spent_s * 1000, 3)
        metrics.STAGE_TIME.labels(stage).observe(spent_s)
