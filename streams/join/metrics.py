"""The quality of the order in which the ranker put what was shown, measured on the live stream before anything is
learnt from it.

The weighted per-user loss of the paper (section 4.3) within each impression, as models.evaluation.ranking_metrics
defines it, and calibration: the seconds that were expected, as served, over those that were watched.
"""

from __future__ import annotations

import numpy as np

from infra.platform import metrics
from models.evaluation.ranking_metrics import pair_loss
from models.ranking.ranking_examples import CAP_S
from streams.messages import RankingExample

RECENT = 1000  # impressions after which one weighs 1/e in the gauges


class RankingQuality:
    """Counts closed impressions into the metrics; the gauges forget exponentially."""

    def __init__(self) -> None:
        self._recent = np.zeros(4)  # all pairs, misordered pairs, expected, watched: seconds

    def observe(self, example: RankingExample) -> None:
        """Count an impression, as far as its items were ranked."""
        ranked = [
            (shown.expected_watch_s, min(outcome.watched_s, CAP_S), outcome.completed)
            for shown, outcome in zip(example.impression.items, example.outcomes, strict=True)
            if shown.expected_watch_s is not None
        ]
        if not ranked:
            return
        expected_s, watched_s, completed = (np.array(column) for column in zip(*ranked, strict=True))
        loss = pair_loss(np.zeros(len(ranked), np.int64), expected_s, watched_s, completed)
        counted = [float(each.sum()) for each in (loss.weight, loss.misordered, expected_s, watched_s)]
        metrics.RANKING_PAIRS.labels("all").inc(counted[0])
        metrics.RANKING_PAIRS.labels("misordered").inc(counted[1])
        metrics.RANKING_EXPECTED.inc(max(0.0, counted[2]))
        metrics.RANKING_WATCHED.inc(counted[3])
        self._recent *= np.exp(-1 / RECENT)
        self._recent += counted
        all_s, misordered_s, recent_expected_s, recent_watched_s = self._recent
        if all_s > 0:
            metrics.RANKING_LOSS.set(misordered_s / all_s)
        if recent_watched_s > 0:
            metrics.RANKING_CALIBRATION.set(recent_expected_s / recent_watched_s)
