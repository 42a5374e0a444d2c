"""Compares samples of the index's answers with the exact ones.

An index may be up and wrong: a damaged segment, a parameter that does not fit the data, a writer that lags. Nobody sees
it in a reply. So a share of the answers is compared with an exact search over the mirror; their mean recall and what
their scores miss are gauges, and below `least_recall` the index is left alone until a sample is good again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from infra.platform import metrics

Floats = NDArray[np.float32]

RECENT = 200  # answers
ENOUGH = 20  # of them, before anything is concluded


class RecallAudit:
    """Pure but for its gauges. `least_recall` 0: nothing is ever concluded."""

    def __init__(self, least_recall: float) -> None:
        self._least = least_recall
        self._recalls: deque[float] = deque(maxlen=RECENT)
        self._gaps: deque[float] = deque(maxlen=RECENT)

    def add(self, found: tuple[Sequence[str], Floats], exact: tuple[Sequence[str], Floats]) -> float:
        """One more answer with the exact one, ids and scores best first each; its recall."""
        recall, gap = compare(found, exact)
        self._recalls.append(recall)
        self._gaps.append(gap)
        metrics.AUDITED.inc()
        metrics.AUDIT_RECALL.set(float(np.mean(self._recalls)))
        metrics.AUDIT_SCORE_GAP.set(float(np.mean(self._gaps)))
        return recall

    def alarm(self) -> str | None:
        """The reason to leave the index alone; None when there is none."""
        if len(self._recalls) < ENOUGH or (recall := float(np.mean(self._recalls))) >= self._least:
            return None
        return f"the index found {recall:.3f} of the exact answers (serving.audit_recall is {self._least})"

    def is_good(self, recall: float) -> bool:
        """True if one answer is good enough to trust the index again."""
        return recall >= self._least

    def forget(self) -> None:
        """Begin anew: answers from before the index was left alone say nothing of it afterwards."""
        self._recalls.clear()
        self._gaps.clear()


def compare(found: tuple[Sequence[str], Floats], exact: tuple[Sequence[str], Floats]) -> tuple[float, float]:
    """Recall (the share of the exact answer that was found), and the mean score that is missed, at least 0."""
    if not len(exact[0]):
        return 1.0, 0.0
    recall = len(set(found[0]).intersection(exact[0])) / len(exact[0])
    short = len(exact[0]) - len(found[0])
    worst = float(exact[1][-1])
    missed = float(np.mean(exact[1])) - float(np.mean(np.pad(found[1], (0, max(0, short)), constant_values=worst)))
    return recall, max(0.0, missed)
