"""The ranker of a release, from an impression log: features, a first fit that is measured on the newest days, the fit.

The retrieval score of an impression comes from a candidate model that has not seen it, so it exists for the newest days
only and is missing before; a score of the final model would know the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.arrays import Floats, Rows
from models.evaluation.backtest import rows_at_once
from models.evaluation.ranking_metrics import calibration
from models.logs.examples import Queries
from models.logs.stored_log import StoredLog
from models.logs.timeline import HISTORY
from models.logs.training_set import TrainingSet
from models.ranking.hyper_parameters import RankerParameters
from models.ranking.impression_log import Delays, ImpressionLog, Retrieved
from models.ranking.item_statistics import ItemStatistics
from models.ranking.ranker import Ranker
from models.ranking.ranker_training import train_ranker
from models.ranking.ranking_evaluation import Predictions, item_means, judge, predict
from models.ranking.ranking_examples import SAMPLE, RankingExamples, cap_of
from models.retrieval.candidates import CandidateModel, with_one

Progress = Callable[[str, int, int], None]

SCORED_ROWS = 50_000  # at most so many rows get a retrieval score: each is compared with the whole catalogue
SEEN = 550  # watches that a history remembers: its newest, and `history.seen` items beyond
CANDIDATES = 500  # that the two towers nominate for a request, unless it is said how many
LEAST_JUDGED, MOST_JUDGED = 50, 200_000  # impressions that a report is of: they are taken into memory
CAP_MOVES = 1.25  # times so much more or less, and a warm start is not worth its cap
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
    candidates: int = CANDIDATES,
    progress: Progress,
) -> RankerRelease:
    """The ranker of all rows with a watch time.

    `earlier`: a model that has seen none of the log's rows from `since` on; with it the rows from there on get
    retrieval features, as with so many `candidates` of a request, and a ranker of those before `measured_from`
    (`since`, where not given) is measured on the others."""
    directory = log.directory / "ranking"
    impressions = ImpressionLog(log, training_set, directory, delays)
    impressions.choose_cap(partial(chosen_cap_s, settings, warm), len(log))
    statistics = impressions.statistics()
    if not log.watch_times:
        return RankerRelease(Ranker(), {}, statistics, Ranker())
    scorer = None
    if earlier is not None:
        scorer = UnseenScores(earlier, impressions, max(since, len(log) - SCORED_ROWS), candidates)
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
    target_s = served.examples.target_s
    served = served._replace(examples=served.examples.capped(chosen_cap_s(settings, warm, target_s[-SAMPLE:])))
    at_ms = np.asarray(served.examples.at_ms)
    share_ms = int(np.quantile(at_ms, 1 - HELD_OUT)) if len(at_ms) else 0
    cut_ms = max(share_ms, since_ms)
    if np.count_nonzero(at_ms >= cut_ms) < LEAST_JUDGED:
        cut_ms = share_ms
    release = _learn(served, cut_ms, directory, settings, warm, progress)
    return release._replace(is_new=cut_ms >= since_ms)


def chosen_cap_s(settings: RankerParameters, warm: Ranker | None, target_s: Floats) -> float:
    """The cap of a ranker: as it is set, else what the data choose; that of a warm start while they choose about the
    same, since a ranker of another cap begins anew."""
    if settings.cap_s is not None:
        return settings.cap_s
    found = cap_of(target_s)
    if warm is None or not warm.trained:
        return found
    return warm.cap_s if 1 / CAP_MOVES < found / warm.cap_s < CAP_MOVES else found


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
    """Retrieval features of impressions by a model that was trained on rows before `since`: a
    models.ranking.impression_log.Scorer. They are those that serving would have given the ranker with this model: the
    user's watches, skips, searches and context go in, the place is the one among a request's candidates."""

    def __init__(
        self, model: CandidateModel, impressions: ImpressionLog, since: int, candidates: int = CANDIDATES
    ) -> None:
        """`candidates`: how many the two towers nominate for a request."""
        self._model, self._impressions, self._since = model, impressions, since
        self._candidates = candidates
        self._vectors = model.item_vectors()

    def __call__(self, rows: Rows, asked: Rows) -> Retrieved:
        """NaN and not found before `since`."""
        score, best, rank = np.full((3, len(rows)), np.nan, np.float32)
        found = np.zeros(len(rows), np.bool_)
        chosen = np.flatnonzero(rows >= self._since)
        size = rows_at_once(len(self._vectors))
        for start in range(0, len(chosen), size):
            at = chosen[start : start + size]
            score[at], best[at], rank[at], found[at] = self._of(rows[at], asked[at])
        return Retrieved(score, best, rank, found)

    def _of(self, rows: Rows, asked: Rows) -> Retrieved:
        """What a user has watched is no candidate, and an item that the towers do not nominate stands last: another
        source has nominated it, for which the towers' last one has made way."""
        items = self._impressions.items(rows)
        scores = with_one(self._model.encode(self._queries(rows, asked))) @ self._vectors.T  # [B, N]
        known = items < scores.shape[1]
        own = np.where(known, scores[np.arange(len(rows)), np.where(known, items, 0)], np.nan).astype(np.float32)
        watched = self._impressions.watched_before(asked, SEEN)  # [B, SEEN]
        case, at = np.nonzero((watched >= 0) & (watched < scores.shape[1]))
        scores[case, watched[case, at]] = -np.inf
        place = 1 + np.count_nonzero(scores > own[:, None], axis=1)
        rank = np.where(known, np.minimum(place, self._candidates), np.nan).astype(np.float32)
        return Retrieved(own, np.fmax(scores.max(axis=1), own), rank, known & (place <= self._candidates))

    def _queries(self, rows: Rows, asked: Rows) -> Queries:
        """The users of these rows as they were when they asked, in the rows' own context."""
        impressions, encoder, size = self._impressions, self._model.encoder, len(self._vectors)
        watches = impressions.completed_before(asked, HISTORY), impressions.skipped_before(asked, HISTORY)
        histories, skips = (np.where(seen < size, seen, -1) for seen in watches)  # those that it knows
        log, codes = impressions.log, impressions.context(rows, encoder.contexts)
        tokens = impressions.training_set.dataset.tokens(log.users[asked], log.event_ms[asked])
        return replace(encoder.queries_of(histories, skips), tokens=tokens, context=codes[0], traits=codes[1])
