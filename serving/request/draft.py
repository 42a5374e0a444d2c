"""What is known of one answer on its way through the stages, and the time that the stages take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from infra.platform import metrics
from models.catalogue.item_filter import ItemFilter
from models.ranking.ranking_request import Nominations, by_two_towers
from serving.request.ranking import RankerInputs
from streams.messages import Impression, Recommended, RecommendReply, RecommendRequest, UserHistory

Floats = NDArray[np.float32]


class RequestContext(NamedTuple):
    """A request that was understood. `partition` is its user's; `wait_ms` what it has waited before it was read;
    `filter` the request's own, parsed."""

    request: RecommendRequest
    partition: int
    wait_ms: float = 0.0
    filter: ItemFilter | None = None

    def left_s(self, deadline_s: float) -> float:
        """How much longer its client waits; negative when it has given up. `deadline_s` when the request says none."""
        return ((self.request.deadline_ms or deadline_s * 1000) - self.wait_ms) / 1000


class Answered(NamedTuple):
    reply: RecommendReply
    impression: Impression | None


class Found(NamedTuple):
    """C candidates: ids, two-tower scores float32 [C] (NaN where there is none), and who nominated them."""

    item_ids: list[str]
    scores: Floats
    nominations: Nominations


def nothing_found() -> Found:
    return Found([], np.zeros(0, np.float32), by_two_towers(0))


@dataclass
class ResponseDraft:
    """`banned`: items that this answer may not hold, whatever nominates them."""

    asked: RequestContext
    k: int
    history: UserHistory
    banned: set[str]
    degraded: list[str] = field(default_factory=list)
    found: Found = field(default_factory=nothing_found)
    expected_s: Floats | None = None  # [C], calibrated
    fed: RankerInputs | None = None  # what the ranker was fed
    items: list[Recommended] = field(default_factory=list)

    def fall(self, step: str, reason: str) -> None:
        """Go down the ladder to `step`; a request that lies lower already stays there."""
        metrics.FALLBACKS.labels(step).inc()
        self.degraded.append(f"{step}: {reason}")


class Stages:
    """The time of each stage of a batch, as far as this process spends it."""

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
            self.add(stage, time.perf_counter() - start)

    def add(self, stage: str, spent_s: float) -> None:
        self.ms[stage] = round(self.ms.get(stage, 0.0) + spent_s * 1000, 3)
        metrics.STAGE_TIME.labels(stage).observe(spent_s)
