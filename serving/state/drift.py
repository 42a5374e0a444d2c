"""Gauges of how far the scores of the live release have moved since it went live.

Two scores tell of two things: the two towers' of rows and users, the ranker's expected seconds of all its features.
Each release is its own measure: what it gave first is what was looked at when it was let in. A tenth of the candidates
says as much as all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from infra.platform import metrics
from models.evaluation.drift import ScoreDrift

Floats = NDArray[np.float32]

EVERY = 10  # of a request's candidates, one in so many is looked at
FIRST, RECENT = 20_000, 20_000  # of those: about 400 requests with 500 candidates
LEAST_S = 1e-3
TWO_TOWERS, EXPECTED = "two_towers", "log_expected_seconds"


class AnswerDrift:
    """The drift of the release that answers; another version begins anew."""

    def __init__(self, first: int = FIRST, recent: int = RECENT) -> None:
        self._sizes = first, recent
        self._version = ""
        self._scores: dict[str, ScoreDrift] = {}

    def observe(self, version: str, scores: Sequence[Floats], expected_s: Sequence[Floats]) -> None:
        """Take in a batch of this version: for each request the two-tower scores [C], and for each that was ranked the
        expected seconds [C]."""
        if version != self._version:
            self._begin(version)
        if scores:
            self._scores[TWO_TOWERS].observe(np.concatenate([each[::EVERY] for each in scores]))
        if expected_s:
            ranked = np.concatenate([each[::EVERY] for each in expected_s])
            self._scores[EXPECTED].observe(np.log(np.maximum(ranked, LEAST_S)))

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
