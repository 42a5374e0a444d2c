"""The ranker on KuaiRand's exposures, split by time 80/10/10: everything is chosen on the validation, the test reported
once. Errors and intervals are a bootstrap over users; state is frozen as one request sees it
(models.ranking.impression_log).

The log has no click of the kind the paper weighs by; `watched` in a pair is a completed watch, and for comparison
KuaiRand's own click flag.
"""

from __future__ import annotations

import numpy as np
import torch

from infra.backtest.ranking import calibrated
from infra.platform.settings import Ranker, Settings
from models.evaluation.ranking_metrics import calibration
from models.ranking.ranking_evaluation import Predictions, item_means
from tests.benchmarks.ranking import ranking_trees
from tests.benchmarks.ranking.ranking_ground import Ground, Part, kuairand_ground
from tests.benchmarks.ranking.ranking_judged import (
    OF_ORDER,
    Judged,
    compared,
    differences_row,
    geometric,
    judged,
    predicted,
    trained,
    values_row,
)
from tests.benchmarks.report import Report, say
from tests.harness import kuairand

MEAN, RAW, OURS = "item mean", "ranker", "calibrated"
PAPER, EQUAL, TREES, BOTH = "paper's weights", "equal weights", "LightGBM", "both"
WHO = (
    "item mean: the item's decayed mean seconds; ranker: unbiased; calibrated: the ranker by its rolling factor, "
    "as paper's weights are by theirs; LightGBM: same features, same loss; both: geometric mean of it and the ranker"
)
QUICK_USERS = 0.2


def measure(report: Report, quick: bool) -> None:
    """The test table of the ranker on KuaiRand, and its bars."""
    torch.set_num_threads(1)
    if not kuairand.is_there():
        report.note(f"nothing measured: the KuaiRand data is not at {kuairand.DIRECTORY}")
        return
    ground = kuairand_ground(users=QUICK_USERS if quick else 1.0)
    validated, tested = ground.at(0.8), ground.at(0.9)
    settings = Settings.model_construct().ranker
    if quick:
        settings = settings.model_copy(update={"members": 1, "epochs": 1})
    test = ground.part(tested, len(ground))
    found = predictions_of(report, ground, validated, tested, test, settings, quick)
    rows = {name: judged(test, each) for name, each in found.items()}
    report.title = f"ranking kuairand: test of {len(test):,} exposures, {len(np.unique(test.page.user)):,} users"
    report.note(
        f"{len(ground):,} exposures; trained on the first 90 %, chosen on the 10 % before the test; "
        f"mean of the test {np.asarray(test.page.target_s).mean():.1f} s"
    )
    report.note(WHO)
    add_rows(report, rows)
    add_deciles(report, test, found)
    add_bars(report, rows, test, found[OURS])


def predictions_of(
    report: Report, ground: Ground, validated: int, tested: int, test: Part, settings: Ranker, quick: bool
) -> dict[str, Predictions]:
    delays = ground.exposures.delays
    say("ranker")
    raw = predicted(trained(ground, tested, settings), test)
    found = {MEAN: Predictions(item_means(test.page), item_means(test.user)), RAW: raw}
    found[OURS] = calibrated(raw, test.page, delays)
    for name, objective in ((PAPER, "paper"), (EQUAL, "equal")):
        say(name)
        other = trained(ground, tested, settings.model_copy(update={"objective": objective}))
        found[name] = predicted(other, test)
    found[PAPER] = calibrated(found[PAPER], test.page, delays)
    if not ranking_trees.is_there():
        report.note("left out: LightGBM is not installed (pip install -e .[bench])")
        return found
    choice = ranking_trees.SETTINGS[:1] if quick else ranking_trees.SETTINGS
    setting = ranking_trees.chosen(ground, validated, ground.part(validated, tested), choice)
    report.note(f"LightGBM, chosen on validation of {len(choice)}: {setting}")
    found[TREES] = ranking_trees.predicted(ranking_trees.fitted(ground, tested, setting), test)
    found[BOTH] = geometric(raw, found[TREES])
    return found


def add_rows(report: Report, rows: dict[str, Judged]) -> None:
    for name, row in rows.items():
        report.add(ranker=name, **values_row(row, tuple(OF_ORDER) if name == EQUAL else None))
    for theirs in (MEAN, OURS):
        for name, row in rows.items():
            if name != theirs and not (theirs == OURS and name == MEAN):
                columns = tuple(OF_ORDER) if name == EQUAL else None
                report.add(ranker=f"{name} - {theirs}", **differences_row(row, rows[theirs], columns))
    report.note("the lower rows: paired differences [95 %], * where 0 lies outside; equal weights give no seconds")
    report.note("click/...: the same losses with KuaiRand's is_click as `watched`; all other pairs: completed or not")


def add_deciles(report: Report, test: Part, found: dict[str, Predictions]) -> None:
    seconds = np.asarray(test.page.target_s, np.float64)
    for name in (RAW, OURS, PAPER, TREES):
        if name in found:
            ratios = " ".join(f"{ratio:.2f}" for _, _, ratio in calibration(found[name].page, seconds))
            report.note(f"predicted / watched by decile of the prediction, {name}: {ratios}")


def add_bars(report: Report, rows: dict[str, Judged], test: Part, ours: Predictions) -> None:
    for metric, what, most in (
        ("weighted_loss_page", "loss per user-hour, %", 32.0),
        ("weighted_loss_user", "loss per user, %", 32.5),
    ):
        report.bar(what, 100 * rows[OURS][metric].value, at_most=most)
        mean, equal = compared(rows, OURS, MEAN, metric), compared(rows, EQUAL, OURS, metric)
        report.bar(f"{what}, below item mean: upper end of the difference", 100 * mean.high, at_most=0.0)
        report.bar(f"{what}, equal weights worse by", 100 * equal.value, at_least=2.0)
    if TREES in rows:
        loss, top = (compared(rows, OURS, TREES, metric) for metric in ("weighted_loss_user", "top1_s"))
        report.bar("loss per user over LightGBM: lower end of the difference", 100 * loss.low, at_most=0.0)
        report.bar("top-1 seconds over LightGBM: upper end of the difference", top.high, at_least=0.0)
    report.bar("XAUC", rows[OURS]["xauc"].value, at_least=0.67)
    value = rows[OURS]["calibration"].value
    report.bar("calibration, away from 1", abs(value - 1), at_most=0.05)
    deciles = [ratio for _, _, ratio in calibration(ours.page, np.asarray(test.page.target_s, np.float64))]
    report.bar("calibration by decile, furthest from 1", max(abs(ratio - 1) for ratio in deciles), at_most=0.15)
