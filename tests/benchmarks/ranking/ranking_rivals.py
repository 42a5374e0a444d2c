"""The ranker beside simpler and other ones, on the two tenths of KuaiRand's exposures that lie before the test.

Each tenth is judged by rankers of all that is before it, and a user's parts of both are added up: a difference shows
that one tenth could not tell from luck. The test is not read. What the trees are set to is chosen on the tenth before
both; `--quick` judges the second one alone, the validation. Everybody's seconds carry the rolling factor that a server
would have had.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from infra.backtest.ranking import calibrated
from infra.platform.settings import Ranker, Settings
from models.evaluation.comparison import Ratio
from models.evaluation.ranking_metrics import calibration
from models.ranking.ranker import Ranker as Trained
from models.ranking.ranking_evaluation import Predictions, item_means
from tests.benchmarks.ranking import ranking_nets, ranking_trees
from tests.benchmarks.ranking.ranking_ground import Ground, Part, kuairand_ground
from tests.benchmarks.ranking.ranking_judged import (
    Judged,
    differences_row,
    geometric,
    judged,
    predicted,
    trained,
    values_row,
)
from tests.benchmarks.report import Report, say
from tests.harness import kuairand

TENTHS = (0.7, 0.8)  # where each begins
MEAN, OURS, LOGISTIC, TREES, WITH_IDS = "item mean", "ranker", "logistic regression", "trees", "trees with ids"
PAPER, START = "paper's weights", "start x seconds"
ATTENTION, CROSSES = "target attention", "low-rank crosses"
ISOTONIC, PAPER_ISOTONIC = f"{OURS}, isotonic", f"{PAPER}, isotonic"
PAIRS = ((OURS, LOGISTIC), (OURS, TREES), (OURS, WITH_IDS))
COLUMNS = ("loss/page %", "loss/user %", "top-1 s", "calibr.", "MAE s", "XAUC")


class Tenth(NamedTuple):
    """Exposures to be judged, and by name who predicted what of them, calibrated."""

    part: Part
    found: dict[str, Predictions]


def measure(report: Report, quick: bool) -> None:
    """Every rival on all tenths together, and the paired differences to the ranker and to logistic regression."""
    torch.set_num_threads(1)
    if not kuairand.is_there():
        report.note(f"nothing measured: the KuaiRand data is not at {kuairand.DIRECTORY}")
        return
    ground = kuairand_ground()
    rivals = rivals_of(report, ground, quick)
    tenths = [judged_tenth(ground, start, rivals) for start in (TENTHS[1:] if quick else TENTHS)]
    rows = pooled(tenths)
    exposures = sum(len(tenth.part) for tenth in tenths)
    report.title = f"ranking rivals: {exposures:,} exposures before the test, a tenth of all {len(tenths)} times"
    report.note("each tenth judged by rankers of what is before it; all by their rolling factor; the test is not read")
    for name, row in rows.items():
        report.add(ranker=name, **values_row(row, COLUMNS))
    for theirs in (OURS, LOGISTIC):
        for name, row in rows.items():
            if name != theirs:
                report.add(ranker=f"{name} - {theirs}", **differences_row(row, rows[theirs], COLUMNS))
    report.note("lower rows: paired differences [95 %], a bootstrap over users, * where 0 lies outside")
    add_deciles(report, tenths)


Rival = Callable[[int, Part], Predictions]  # of how many exposures it learns from, and of what it predicts
Learnt = Callable[[int], Trained]  # the default, of the same


def rivals_of(report: Report, ground: Ground, quick: bool) -> dict[str, Rival]:
    """Who is judged, by name, but for the pairs."""
    settings = Settings.model_construct().ranker

    @cache  # several rivals begin with the same ranker
    def learnt(stop: int) -> Trained:
        return trained(ground, stop, settings)

    def other(**changes: object) -> Rival:
        return lambda stop, part: predicted(trained(ground, stop, settings.model_copy(update=changes)), part)

    rivals: dict[str, Rival] = {
        MEAN: lambda _, part: Predictions(item_means(part.page), item_means(part.user)),
        OURS: lambda stop, part: predicted(learnt(stop), part),
        LOGISTIC: other(hidden=(), members=1),
        ISOTONIC: other(isotonic=True),
        PAPER: other(objective="paper"),
        PAPER_ISOTONIC: other(objective="paper", isotonic=True),
    }
    return rivals | networks(report, ground, learnt, settings) | trees(report, ground, quick)


def networks(report: Report, ground: Ground, learnt: Learnt, settings: Ranker) -> dict[str, Rival]:
    """Other networks of the ranker's features, ids and quantiles."""

    def other(net: ranking_nets.Net) -> Rival:
        return lambda stop, part: ranking_nets.predicted(ground, stop, learnt(stop), settings, part, net)

    report.note(
        f"{START}: two heads, a start is {ranking_nets.START_S:g} s or more; {ATTENTION}: over the last "
        f"{ranking_nets.LAST} watches; {CROSSES}: {ranking_nets.CROSSES} of rank {ranking_nets.RANK} (DCN-V2)"
    )
    return {
        START: lambda stop, part: ranking_nets.predicted_by_start(ground, stop, learnt(stop), settings, part),
        ATTENTION: other(ranking_nets.AttendingNet),
        CROSSES: other(ranking_nets.CrossingNet),
    }


def trees(report: Report, ground: Ground, quick: bool) -> dict[str, Rival]:
    """LightGBM without and with ids; nobody, where it is not installed."""
    if not ranking_trees.is_there():
        report.note("left out: LightGBM is not installed (pip install -e .[bench])")
        return {}
    setting = ranking_trees.SETTINGS[0]
    if not quick:
        before, first = ground.at(TENTHS[0] - 0.1), ground.at(TENTHS[0])
        setting = ranking_trees.chosen(ground, before, ground.part(before, first))
    report.note(
        f"trees: LightGBM, {setting}{' (not chosen among others)' if quick else ', chosen on the tenth before'}"
    )

    def rival(with_ids: bool) -> Rival:
        return lambda stop, part: ranking_trees.predicted(
            ranking_trees.fitted(ground, stop, setting, with_ids=with_ids), part
        )

    return {TREES: rival(False), WITH_IDS: rival(True)}


def judged_tenth(ground: Ground, start: float, rivals: dict[str, Rival]) -> Tenth:
    stop = ground.at(start)
    part = ground.part(stop, ground.at(start + 0.1))
    raw: dict[str, Predictions] = {}
    for name, rival in rivals.items():
        say(f"from {start:.0%}: {name}")
        raw[name] = rival(stop, part)
    for ours, theirs in PAIRS:
        if ours in raw and theirs in raw:
            raw[f"{ours} + {theirs}"] = geometric(raw[ours], raw[theirs])
    delays = ground.exposures.delays
    return Tenth(part, {name: calibrated(each, part.page, delays) for name, each in raw.items()})


def pooled(tenths: Sequence[Tenth]) -> dict[str, Judged]:
    """By name every metric over all tenths: the sums of each user, added up."""
    users = [np.unique(tenth.part.page.user) for tenth in tenths]
    everybody = np.unique(np.concatenate(users))
    places = [np.searchsorted(everybody, each) for each in users]
    rows = {}
    for name in tenths[0].found:
        parts = [judged(tenth.part, tenth.found[name]) for tenth in tenths]
        rows[name] = {metric: added_up([part[metric] for part in parts], places, len(everybody)) for metric in parts[0]}
    return rows


def added_up(ratios: Sequence[Ratio], places: Sequence[np.ndarray], users: int) -> Ratio:
    """One ratio of several: places int64 [U] of each, which of all users its own are."""
    above, below = np.zeros(users), np.zeros(users)
    for ratio, place in zip(ratios, places, strict=True):
        above[place] += ratio.above
        below[place] += ratio.below
    return Ratio(above, below, ratios[0].scale)


def add_deciles(report: Report, tenths: Sequence[Tenth]) -> None:
    seconds = np.concatenate([np.asarray(tenth.part.page.target_s, np.float64) for tenth in tenths])
    for name in (OURS, LOGISTIC, ISOTONIC, PAPER, PAPER_ISOTONIC, START, WITH_IDS):
        if name in tenths[0].found:
            page = np.concatenate([tenth.found[name].page for tenth in tenths])
            ratios = " ".join(f"{ratio:.2f}" for _, _, ratio in calibration(page, seconds))
            report.note(f"predicted / watched by decile of the prediction, {name}: {ratios}")
