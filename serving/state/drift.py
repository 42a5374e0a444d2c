"""Whether the scores of the live release still are what they were when it went live, as gauges.

Two scores tell of two things: the two towers' of rows and users, the ranker's expected seconds of all its features.
Each release is its own measure: what it gave first is what was looked at when it was let in. A tenth of the candidates
says as much as all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from infra.platform import metrics
from models.evaluation.drift import ScoreDrift
from serving.request.draft import ResponseDraft

EVERY = 10  # of a request's candidates, one in so many is looked at
FIRST, RECENT = 20_000, 20_000  # of those: about 400 requests with 500 candidates
LEAST_S = 1e-3
TWO_TOWERS, EXPECTED = "two_towers", "log_expected_seconds"


class AnswerDrift:
    """Of the release that answers; another version begins anew."""

    def __init__(self, first: int = FIRST, recent: int = RECENT) -> None:
        self._sizes = first, recent
        self._version = ""
        self._scores: dict[str, ScoreDrift] = {}

    def observe(self, version: str, drafts: Sequence[ResponseDraft]) -> None:
        """A batch that this version has retrieved and ranked."""
        if version != self._version:
            self._begin(version)
        if not drafts:
            return
        self._scores[TWO_TOWERS].observe(np.concatenate([draft.found.scores[::EVERY] for draft in drafts]))
        ranked = [draft.expected_s[::EVERY] for draft in drafts if draft.expected_s is not None]
        if ranked:
            self._scores[EXPECTED].observe(np.log(np.maximum(np.concatenate(ranked), LEAST_S)))

    def show(self) -> None:
        """Set the gauges; a score of which not enough is known has none."""
        for score, each in self._scores.items():
            if (drift := each.compared()) is not None:
                metrics.SCORE_PSI.labels(score).set(drift.psi)
                metrics.SCORE_SHIFT.labels(score).set(drift.shift)

    def _begin(self, version: str) -> None:
        self._version = version
        self._scores = {score: ScoreDrift(*self._sizes) for score in (TWO_TOWERS, EXPECTED)}
        metrics.SCORE_PSI.clear()
        metrics.SCORE_SHIFT.clear()
