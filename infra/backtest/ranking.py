"""A backtest of the ranker: an impression log cut in time, a ranker of what is before, judged on what is after.

Every comparison is made with the user's state frozen, as one request sees it: at the first impression of the page (user
and hour), and for comparisons across a user's pages at the user's first impression of the test. Expectations carry the
rolling calibration that a server would have had: learnt from the impressions whose window had closed by then.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl

from infra.backtest.components import earned
from infra.backtest.files import new_directory, write_json
from infra.backtest.report import KIND
from infra.backtest.request import Request
from infra.operate.progress import Step, no_progress
from infra.operate.ranker_stage import delays_of
from infra.platform.settings import Settings
from models.evaluation.comparison import Interval, Ratio, difference, estimate
from models.evaluation.ranking_metrics import calibration
from models.evaluation.split import BacktestError, iso
from models.logs.log import read_items
from models.logs.stored_log import store_log
from models.logs.training_set import prepare
from models.ranking.impression_log import Delays, ImpressionLog
from models.ranking.ranker_release import chosen_cap_s
from models.ranking.ranker_training import LEAST_ROWS, train_ranker
from models.ranking.ranking_evaluation import Predictions, item_means, judge, pages_of, predict, rolling_factors
from models.ranking.ranking_examples import RankingExamples

Json = dict[str, Any]

METRICS = {  # what it favours, what it is
    "weighted_loss_page": ("E[T]", "of the seconds in pairs (completed, not) of one user and hour, those misordered"),
    "weighted_loss_user": ("E[T]", "the same over all test impressions of one user"),
    "top1_s": ("E[T]", "watched seconds of what would have been first on its page"),
    "calibration": ("E[T]", "sum predicted / sum watched"),
    "mae_s": ("the median", "mean absolute error, seconds"),
    "xauc": ("the median", "pairs of different watch time in order, over all impressions"),
    "gauc": ("P(completed)", "pairs (completed, not) of one user in order"),
}


@dataclass(frozen=True)
class Judged:
    """The test's impressions with the state frozen at the page and at the user, who predicted what of them,
    and what each component of the features earns the ranker."""

    page: RankingExamples
    user: RankingExamples
    predicted: dict[str, Predictions]
    earned: dict[str, dict[str, Interval]]


def run_ranking_backtest(request: Request, settings: Settings, step: Step = no_progress) -> Json:
    """Make the directory `request.out` with report.json and ranking.parquet; the report. Nothing is left behind when it
    fails. Raises LogError and BacktestError."""
    with new_directory(request.out) as directory, TemporaryDirectory(prefix="nextwatch-") as scratch:
        impressions = _read(request, settings, Path(scratch), step)
        cut = _cut(impressions, request)
        impressions.choose_cap(partial(chosen_cap_s, settings.ranker, None), cut)
        judged = _judge(impressions, cut, settings, Path(scratch), step)
        report = _report(impressions, cut, judged, request, settings)
        write_json(directory, report)
        _write_predictions(directory / "ranking.parquet", impressions, cut, judged.predicted["ranker, calibrated"])
    return report


def _read(request: Request, settings: Settings, scratch: Path, step: Step) -> ImpressionLog:
    completed_s = settings.history.completed_s
    log = store_log(request.log, scratch / "log", mapping=request.mapping, completed_s=completed_s, progress=step)
    items = read_items(request.items) if request.items is not None else None
    return ImpressionLog(log, prepare(log, items), scratch / "exposures", delays_of(settings))


def _cut(impressions: ImpressionLog, request: Request) -> int:
    """The log's row where the test begins."""
    times = impressions.log.event_ms
    timed = np.flatnonzero(impressions.timed(slice(0, len(impressions))))
    if not len(timed):
        raise BacktestError(f"{request.log}: has no row with watch_s, which the ranker is judged by")
    if request.test_from_ms is not None:
        cut = int(np.searchsorted(times, request.test_from_ms))
    else:
        cut = int(np.searchsorted(times, times[timed[int(len(timed) * (1 - request.test_fraction))]]))
    before = int(np.searchsorted(timed, cut))
    if before < LEAST_ROWS or before == len(timed):
        raise BacktestError(
            f"{request.log}: {before} exposures before and {len(timed) - before} from the cut on; {LEAST_ROWS} and "
            "1 are needed: move --test-from or --test-fraction"
        )
    return cut


def _judge(impressions: ImpressionLog, cut: int, settings: Settings, scratch: Path, step: Step) -> Judged:
    known = impressions.examples("known", stop=cut, progress=lambda *at: step("features", *at))
    ranker = train_ranker(known, scratch / "fit", settings=settings.ranker, progress=lambda *at: step("ranker", *at))
    page, user = frozen(impressions, cut, step)
    raw = Predictions(predict(ranker, page), predict(ranker, user))
    return Judged(
        page,
        user,
        {
            "ranker, calibrated": calibrated(raw, page, impressions.delays),
            "ranker": raw,
            "item's mean seconds": Predictions(item_means(page), item_means(user)),
        },
        earned(ranker, page, user),
    )


def frozen(impressions: ImpressionLog, cut: int, step: Step) -> tuple[RankingExamples, RankingExamples]:
    """The impressions from the cut on, the state frozen at the page, and at the user's first of them."""
    page = impressions.examples("page", start=cut, progress=lambda *at: step("test, by page", *at))
    first = impressions.first_of_user(cut)
    user = impressions.examples("user", start=cut, frozen=first, progress=lambda *at: step("test, by user", *at))
    return page, user


def calibrated(raw: Predictions, page: RankingExamples, delays: Delays) -> Predictions:
    """With the rolling factor as of the first impression of each page, so that it reorders nothing within one."""
    factors, pages = rolling_factors(raw.page, page, delays), pages_of(page)
    first = np.full(int(pages.max(initial=-1)) + 1, len(pages))
    np.minimum.at(first, pages, np.arange(len(pages)))
    return Predictions(np.minimum(raw.page * factors[first[pages]], page.cap_s), raw.user)


def _report(impressions: ImpressionLog, cut: int, judged: Judged, request: Request, settings: Settings) -> Json:
    seconds = np.asarray(judged.page.target_s, np.float64)
    rows = {name: judge(judged.page, predicted) for name, predicted in judged.predicted.items()}
    ours, item_mean = rows["ranker, calibrated"], rows["item's mean seconds"]
    times = impressions.log.event_ms
    return {
        "kind": KIND,
        "stage": "ranking",
        "protocol": {
            "log": request.log.name,
            "items_file": request.items.name if request.items is not None else None,
            "first": iso(int(times[0])),
            "cut": iso(int(times[cut])),
            "last": iso(int(times[-1])),
            "exposures_before": int(np.count_nonzero(impressions.timed(slice(0, cut)))),
            "exposures": len(seconds),
            "users": len(np.unique(judged.page.user)),
            "mean_s": float(seconds.mean()),
            "completed_share": float(np.mean(judged.page.completed)),
            "target": f"seconds watched, at most the duration and {impressions.cap_s:g} s",
            "completed_s": settings.history.completed_s,
            "settings": settings.ranker.model_dump(),
        },
        "metrics": {name: {"means": means, "favours": favours} for name, (favours, means) in METRICS.items()},
        "rankers": {name: {metric: _estimate(ratio) for metric, ratio in row.items()} for name, row in rows.items()},
        "against_item_mean": {metric: _plain(difference(ours[metric], item_mean[metric])) for metric in METRICS},
        "components": {
            name: {metric: _plain(found) for metric, found in row.items()} for name, row in judged.earned.items()
        },
        "calibration_by_decile": {
            name: [
                {"predicted_s": p, "watched_s": w, "ratio": None if np.isnan(r) else r}
                for p, w, r in calibration(predicted.page, seconds)
            ]
            for name, predicted in judged.predicted.items()
        },
    }


def _estimate(ratio: Ratio) -> Json:
    return _plain(estimate(ratio)) | {"users": ratio.users}


def _plain(found: Interval) -> Json:
    return {name: None if np.isnan(value) else value for name, value in asdict(found).items()}


def _write_predictions(path: Path, impressions: ImpressionLog, cut: int, ours: Predictions) -> None:
    """One row per test impression, in order of time: expected_watch_s with the state of its page, and `score`, the same
    with the state of the user's first test impression and not calibrated, which orders all that one user was shown."""
    rows = cut + np.flatnonzero(impressions.timed(slice(cut, len(impressions))))
    log = impressions.log
    pl.DataFrame(
        {
            "user_id": pl.Series(log.user_ids, dtype=pl.String).gather(np.asarray(log.users[rows], np.int64)),
            "item_id": pl.Series(log.item_ids, dtype=pl.String).gather(np.asarray(log.items[rows], np.int64)),
            "event_ms": np.asarray(log.event_ms[rows]),
            "expected_watch_s": ours.page,
            "score": ours.user,
        }
    ).write_parquet(path)
