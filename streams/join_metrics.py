"""How well the ranker ordered what was shown, measured on the live stream before anything is learnt from it.

The weighted per-user loss of the paper (section 4.3), within one impression: of every pair of a watched and an
unwatched item, the watched one's seconds are lost when the unwatched one was expected to hold longer. And calibration:
the seconds that were expected, as served, over those that were watched.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from infra import metrics
from streams.item_statistics import CAP_S
from streams.messages import RankingExample

RECENT = 1000  # impressions after which one weighs 1/e in the gauges


def pair_seconds(expected_s: Sequence[float], watched_s: Sequence[float]) -> tuple[float, float]:
    """Watched seconds over all pairs (watched, unwatched), and over those in the wrong order (ties half)."""
    expected, watched = np.asarray(expected_s, dtype=float), np.asarray(watched_s, dtype=float)
    is_watched = watched > 0
    above = expected[is_watched][:, None] - expected[~is_watched][None, :]  # [watched, unwatched]
    wrong = (above < 0) + 0.5 * (above == 0)
    seconds = watched[is_watched]
    return float(seconds.sum() * (~is_watched).sum()), float(seconds @ wrong.sum(axis=1))


class RankingQuality:
    """Counts closed impressions into the metrics; the gauges forget exponentially."""

    def __init__(self) -> None:
        self._recent = np.zeros(4)  # all pairs, misordered pairs, expected, watched: seconds

    def observe(self, example: RankingExample) -> None:
        """Count an impression, as far as its items were ranked."""
        ranked = [
            (shown.expected_watch_s, min(outcome.watched_s, CAP_S))
            for shown, outcome in zip(example.impression.items, example.outcomes, strict=True)
            if shown.expected_watch_s is not None
        ]
        if not ranked:
            return
        expected_s, watched_s = zip(*ranked, strict=True)
        all_s, misordered_s = pair_seconds(expected_s, watched_s)
        metrics.RANKING_PAIRS.labels("all").inc(all_s)
        metrics.RANKING_PAIRS.labels("misordered").inc(misordered_s)
        metrics.RANKING_EXPECTED.inc(max(0.0, sum(expected_s)))
        metrics.RANKING_WATCHED.inc(sum(watched_s))
        self._recent *= np.exp(-1 / RECENT)
        self._recent += (all_s, misordered_s, sum(expected_s), sum(watched_s))
        self._show()

    def _show(self) -> None:
        all_s, misordered_s, expected_s, watched_s = self._recent
        if all_s > 0:
            metrics.RANKING_LOSS.set(misordered_s / all_s)
        if watched_s > 0:
            metrics.RANKING_CALIBRATION.set(expected_s / watched_s)
