"""The quality of the order in which the ranker put what was shown, measured on the live stream before anything is
learnt from it.

The weighted per-user loss of the paper (section 4.3) within each impression, as models.evaluation.ranking_metrics
defines it (a list is too short for its arrays), and calibration: the seconds that were expected, as served, over those
that were watched.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from math import exp

from infra.platform import metrics
from streams.join.rules import Tally

RECENT = 1000  # impressions after which one weighs 1/e in the gauges
KEPT = exp(-1 / RECENT)


class RankingQuality:
    """Counts closed impressions into the metrics; the gauges forget exponentially."""

    def __init__(self) -> None:
        self._recent = [0.0] * 4  # all pairs, misordered pairs, expected, watched: seconds

    def observe(self, closing: Tally) -> None:
        """Count an impression that has closed, as far as its items were ranked; by the live ranker, not by a rival of
        an experiment: an alarm tells of what everybody gets."""
        if closing.impression.ranked_by:
            return
        ranked = [
            (shown.expected_watch_s, min(outcome.watched_s, closing.impression.cap_s), outcome.completed)
            for shown, outcome in zip(closing.impression.items, closing.outcomes, strict=True)
            if shown.expected_watch_s is not None
        ]
        if not ranked:
            return
        all_s, misordered_s = pairs_of(ranked)
        expected_s, watched_s = sum(each[0] for each in ranked), sum(each[1] for each in ranked)
        metrics.RANKING_PAIRS.labels("all").inc(all_s)
        metrics.RANKING_PAIRS.labels("misordered").inc(misordered_s)
        metrics.RANKING_EXPECTED.inc(expected_s)
        metrics.RANKING_WATCHED.inc(watched_s)
        counted = (all_s, misordered_s, expected_s, watched_s)
        self._recent = [KEPT * before + new for before, new in zip(self._recent, counted, strict=True)]
        all_s, misordered_s, expected_s, watched_s = self._recent
        if all_s > 0:
            metrics.RANKING_LOSS.set(misordered_s / all_s)
        if watched_s > 0:
            metrics.RANKING_CALIBRATION.set(expected_s / watched_s)


def pairs_of(ranked: list[tuple[float, float, bool]]) -> tuple[float, float]:
    """Seconds that weigh in the pairs (watched, unwatched) of a list, and those of them that were misordered; of each
    item what was expected, what was watched, and whether that is watched."""
    others = sorted(expected_s for expected_s, _, is_watched in ranked if not is_watched)
    all_s = misordered_s = 0.0
    for expected_s, watched_s, is_watched in ranked if others else ():
        if is_watched:
            above = len(others) - (bisect_left(others, expected_s) + bisect_right(others, expected_s)) / 2
            all_s += watched_s
            misordered_s += watched_s * above / len(others)
    return all_s, misordered_s
