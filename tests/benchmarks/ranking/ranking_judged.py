"""What the tables of the ranker share: predictions of a part, every metric with its error, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from infra.platform.settings import Ranker as RankerSettings
from models.arrays import Doubles
from models.evaluation.comparison import Interval, Ratio, difference, estimate, ratio_of
from models.ranking.ranker import Ranker
from models.ranking.ranker_training import train_ranker
from models.ranking.ranking_evaluation import Predictions, judge, predict
from tests.benchmarks.ranking.ranking_ground import Ground, Part, scratch

Judged = dict[str, Ratio]

TOP = 5
# By column of a table: the metric, what its values are multiplied by, digits after the point.
COLUMNS = {
    "loss/page %": ("weighted_loss_page", 100, 1),
    "loss/user %": ("weighted_loss_user", 100, 1),
    "top-1 s": ("top1_s", 1, 2),
    "calibr.": ("calibration", 1, 2),
    "MAE s": ("mae_s", 1, 1),
    "XAUC": ("xauc", 1, 3),
    "GAUC": ("gauc", 1, 3),
    "click/page %": ("click_loss_page", 100, 1),
    "click/user %": ("click_loss_user", 100, 1),
    "true top-5 s": ("true_top_s", 1, 2),
}
OF_ORDER = frozenset(COLUMNS) - {"calibr.", "MAE s"}


def trained(ground: Ground, stop: int, settings: RankerSettings) -> Ranker:
    """On the first `stop` exposures."""
    return train_ranker(ground.examples, scratch(), settings=settings, rows=np.arange(stop))


def predicted(ranker: Ranker, part: Part) -> Predictions:
    return Predictions(predict(ranker, part.page), predict(ranker, part.user))


def judged(part: Part, predictions: Predictions) -> Judged:
    """Every metric; with KuaiRand's click as what `watched` means in a pair, and the world's truth, where known."""
    found = judge(part.page, predictions)
    if "clicked" in part.extra:
        clicks = judge(replace(part.page, completed=part.extra["clicked"].astype(np.bool_)), predictions)
        found["click_loss_page"], found["click_loss_user"] = clicks["weighted_loss_page"], clicks["weighted_loss_user"]
    if "true_s" in part.extra:
        found["true_top_s"] = true_top(part, predictions.page)
    return found


def true_top(part: Part, predicted_s: Doubles) -> Ratio:
    """True expected seconds, if looked at, per video of the first TOP of each list, put into the predicted order."""
    lists, true_s = part.extra["list"], part.extra["true_s"]
    users, user = np.unique(np.asarray(part.page.user), return_inverse=True)
    order = np.lexsort((-predicted_s, lists))
    starts = np.r_[0, np.flatnonzero(np.diff(lists[order])) + 1]
    place = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    top = order[place < TOP]
    return ratio_of(len(users), user.reshape(-1)[top], true_s[top], np.ones(len(top)))


def values_row(found: Judged, columns: Sequence[str] | None = None) -> dict[str, str]:
    """By column value and bootstrap error."""
    row = {}
    for column, (metric, times, digits) in COLUMNS.items():
        if metric in found and (columns is None or column in columns):
            each = estimate(found[metric])
            row[column] = f"{times * each.value:.{digits}f} ±{times * each.se:.{digits}f}"
    return row


def differences_row(ours: Judged, theirs: Judged, columns: Sequence[str] | None = None) -> dict[str, str]:
    """By column the paired difference, ours minus theirs, with its 95 % interval; a star where 0 lies outside."""
    row = {}
    for column, (metric, times, digits) in COLUMNS.items():
        if metric in ours and metric in theirs and (columns is None or column in columns):
            row[column] = shown(difference(ours[metric], theirs[metric]), times, digits)
    return row


def shown(each: Interval, times: float, digits: int) -> str:
    value, low, high = (f"{times * number:+.{digits}f}" for number in (each.value, each.low, each.high))
    return f"{value} [{low}, {high}]{' *' if each.is_significant else ''}"


def compared(rows: Mapping[str, Judged], ours: str, theirs: str, metric: str) -> Interval:
    return difference(rows[ours][metric], rows[theirs][metric])


def geometric(ours: Predictions, theirs: Predictions) -> Predictions:
    """The mean of two rankers' logits."""
    return Predictions(np.sqrt(ours.page * theirs.page), np.sqrt(ours.user * theirs.user))
