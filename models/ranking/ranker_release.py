"""The ranker of a release, from an impression log: features, a first fit that is measured on the newest days, the fit.

The retrieval score of an impression comes from a candidate model that has not seen it, so it exists for the newest days
only and is missing before; a score of the final model would know the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.arrays import Floats, Rows
from models.evaluation.backtest import rows_at_once
from models.evaluation.ranking_metrics import calibration
from models.logs.stored_log import StoredLog
from models.logs.training_set import TrainingSet
from models.ranking.hyper_parameters import RankerParameters
from models.ranking.impression_log import Delays, ImpressionLog
from models.ranking.item_statistics import ItemStatistics
from models.ranking.ranker import Ranker
from models.ranking.ranker_training import train_ranker
from models.ranking.ranking_batch import HISTORY
from models.ranking.ranking_evaluation import Predictions, item_means, judge, predict
from models.ranking.ranking_examples import RankingExamples
from models.retrieval.candidates import CandidateModel, with_one

Progress = Callable[[str, int, int], None]

SCORED_ROWS = 50_000  # at most so many rows get a retrieval score: each is compared with the whole catalogue
LEAST_JUDGED, MOST_JUDGED = 50, 200_000  # impressions that a report is of: they are taken into memory
HELD_OUT = 0.1  # share of the served impressions, newest last, that a measured fit does not see


class Served(NamedTuple):
    """Impressions with their features as they were served, and the item statistics of the release that served them."""

    examples: RankingExamples
    statistics: ItemStatistics


class RankerRelease(NamedTuple):
    """`measured`: a fit of what was before the newest days, untrained where there is none; `unseen`: what it was
    measured on; `is_new`: the live release has learnt nothing of that either."""

    ranker: Ranker
    metrics: dict[str, float]
    statistics: ItemStatistics
    measured: Ranker
    unseen: RankingExamples | None = None
    is_new: bool = True


def learn_ranker(
    log: StoredLog,
    training_set: TrainingSet,
    *,
    settings: RankerParameters,
    delays: Delays,
    earlier: CandidateModel | None,
    since: int,
    measured_from: int | None = None,
    warm: Ranker | None,
    progress: Progress,
) -> RankerRelease:
    """The ranker of all rows with a watch time.

    `earlier`: a model that has seen none of the log's rows from `since` on; with it the rows from there on get
    retrieval scores, and a ranker of those before `measured_from` (`since`, where not given) is measured on the
    others."""
    directory = log.directory / "ranking"
    impressions = ImpressionLog(log, training_set, directory, delays)
    statistics = impressions.statistics()
    if not log.watch_times:
        return RankerRelease(Ranker(), {}, statistics, Ranker())
    scorer = None if earlier is None else UnseenScores(earlier, impressions, max(since, len(log) - SCORED_ROWS))
    examples = impressions.examples("all", scorer=scorer, progress=partial(progress, "features"))
    cut_ms = None if earlier is None else int(log.event_ms[since if measured_from is None else measured_from])
    return _learn(Served(examples, statistics), cut_ms, directory, settings, warm, progress)


def learn_from_served(
    served: Served,
    directory: Path,
    *,
    settings: RankerParameters,
    warm: Ranker | None = None,
    since_ms: int = 0,
    progress: Progress,
) -> RankerRelease:
    """The ranker of impressions as they were served; the newest tenth measures a fit of the rest, or what is from
    `since_ms` on, when the live release was made, where that is less and yet enough to judge by.

    The statistics are carried on: a ranker must be fed what it has learnt from. Those of the stream are live."""
    at_ms = np.asarray(served.examples.at_ms)
    share_ms = int(np.quantile(at_ms, 1 - HELD_OUT)) if len(at_ms) else 0
    cut_ms = max(share_ms, since_ms)
    if np.count_nonzero(at_ms >= cut_ms) < LEAST_JUDGED:
        cut_ms = share_ms
    release = _learn(served, cut_ms, directory, settings, warm, progress)
    return release._replace(is_new=cut_ms >= since_ms)


def report_metrics(ranker: Ranker, unseen: RankingExamples) -> dict[str, float]:
    """The figures of a ranker in a release's report, on impressions that it has not seen."""
    if not ranker.trained or len(unseen) < LEAST_JUDGED:
        return {}
    predicted = predict(ranker, unseen)
    ours = judge(unseen, Predictions(predicted, predicted))
    means = item_means(unseen)
    theirs = judge(unseen, Predictions(means, means))
    metrics = {
        "ranker_rows": float(len(unseen)),
        "ranker_weighted_loss": ours["weighted_loss_page"].value,
        "item_mean_weighted_loss": theirs["weighted_loss_page"].value,
        "ranker_mae_s": ours["mae_s"].value,
        "item_mean_mae_s": theirs["mae_s"].value,
        "ranker_xauc": ours["xauc"].value,
        "ranker_calibration": ours["calibration"].value,
    }
    deciles = enumerate(calibration(predicted, np.asarray(unseen.target_s, np.float64)), 1)
    metrics |= {f"ranker_calibration_decile_{number:02}": ratio for number, (_, _, ratio) in deciles}
    return {name: value for name, value in metrics.items() if np.isfinite(value)}


def _learn(
    served: Served,
    cut_ms: int | None,
    directory: Path,
    settings: RankerParameters,
    warm: Ranker | None,
    progress: Progress,
) -> RankerRelease:
    """The ranker of all examples; with `cut_ms` the figures of a fit of what was before, on what came after it."""
    examples, metrics, measured, unseen = served.examples, {}, Ranker(), None
    if cut_ms is not None:
        is_old = np.asarray(examples.at_ms) < cut_ms
        measured = train_ranker(examples, directory / "measured", settings=settings, rows=np.flatnonzero(is_old))
        unseen = examples.take(np.flatnonzero(~is_old)[-MOST_JUDGED:])
        metrics = report_metrics(measured, unseen)
    step = partial(progress, "ranker")
    ranker = train_ranker(examples, directory / "fit", settings=settings, warm=warm, progress=step)
    return RankerRelease(ranker, metrics, served.statistics, measured, unseen)


class UnseenScores:
    """Retrieval scores of impressions by a model that was trained on rows before `since`: a
    models.ranking.impression_log.Scorer."""

    def __init__(self, model: CandidateModel, impressions: ImpressionLog, since: int) -> None:
        self._model, self._impressions, self._since = model, impressions, since
        self._vectors = model.item_vectors()

    def __call__(self, rows: Rows, asked: Rows) -> tuple[Floats, Floats, Floats]:
        """Score, the best score of an item that is not in the user's history, and the place by score; NaN before
        `since`."""
        score, best, rank = np.full((3, len(rows)), np.nan, np.float32)
        chosen = np.flatnonzero(rows >= self._since)
        size = rows_at_once(len(self._vectors))
        for start in range(0, len(chosen), size):
            at = chosen[start : start + size]
            score[at], best[at], rank[at] = self._of(rows[at], asked[at])
        return score, best, rank

    def _of(self, rows: Rows, asked: Rows) -> tuple[Floats, Floats, Floats]:
        watches = self._impressions.completed_before(asked, HISTORY), self._impressions.skipped_before(asked, HISTORY)
        histories, skips = (np.where(seen < len(self._vectors), seen, -1) for seen in watches)  # [B, H] that it knows
        items = self._impressions.items(rows)
        queries = self._model.encoder.queries_of(histories, skips)
        scores = with_one(self._model.encode(queries)) @ self._vectors.T  # [B, N]
        known = items < scores.shape[1]
        own = np.where(known, scores[np.arange(len(rows)), np.where(known, items, 0)], np.nan).astype(np.float32)
        case, place = np.nonzero(histories >= 0)
        scores[case, histories[case, place]] = -np.inf
        above = np.count_nonzero(scores > own[:, None], axis=1)
        rank = np.where(known, above + 1, np.nan).astype(np.float32)
        return own, np.fmax(scores.max(axis=1), own), rank
