"""The gate before going live: how seldom it refuses an equal release, how small a loss it sees, and what it costs.

`verdicts`: simulated users whose next watch two releases hit or miss. Of nine metrics, about as many as a release with
a ranker is judged by, two are recall and lose the share that the column says; the other seven are equal.
`cost`: CPU time of a training of the simulated world with and without a trial, one after the other.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from infra.platform.settings import Model, Ranker
from infra.simulation.world import World
from models.evaluation.comparison import Ratio
from models.evaluation.gate import CHANCE, Comparison, decide
from models.logs.stored_log import store_frame
from models.release.training import train_with_trial
from models.release.trial import Rival, judge_release
from tests.benchmarks.ranking.ranking_ground import scratch
from tests.benchmarks.report import Report, say

RECALLS = {"recall@10": 0.1, "recall@100": 0.35}
EQUAL = 7
ALIKE = 0.7  # users of whom both releases hit or miss the same
LOSSES = (0.0, 0.05, 0.1, 0.2)
USERS = {150: 2000, 1000: 500, 4000: 100}  # how many trials of each
NOW_MS = 1_760_000_000_000
DAY_MS = 86_400_000


def measure_verdicts(report: Report, quick: bool) -> None:
    report.title = f"Share of simulated trials in which the gate refuses; an equal release at most {CHANCE:.0%}"
    for users, most in USERS.items():
        trials = most // 20 if quick else most
        say(f"{users:,} users")
        columns = {"equal" if not loss else f"{loss:.0%} less": refused(users, loss, trials) for loss in LOSSES}
        report.add(users=users, trials=trials, **columns)
        report.bar(f"equal, {users:,} users", columns["equal"], at_most=CHANCE)


def refused(users: int, loss: float, trials: int) -> float:
    outcomes = (decide(list(_metrics(users, loss, trial)), seed=trial).outcome for trial in range(trials))
    return sum(outcome == "refused" for outcome in outcomes) / trials


def _metrics(users: int, loss: float, trial: int) -> Iterator[Comparison]:
    rng = np.random.default_rng([trial, users, round(1000 * loss)])
    for metric, share in RECALLS.items():
        yield Comparison(metric, "live", *_hits(users, share, loss, rng))
    for metric in range(EQUAL):
        yield Comparison(f"equal {metric}", "live", *_hits(users, 0.2, 0.0, rng))


def _hits(users: int, share: float, loss: float, rng: np.random.Generator) -> tuple[Ratio, Ratio]:
    """Ours and theirs: of most users the same, of the others by chance; some of our hits are lost."""
    theirs = rng.random(users) < share
    ours = np.where(rng.random(users) < ALIKE, theirs, rng.random(users) < share) & (rng.random(users) >= loss)
    ones = np.ones(users)
    return Ratio(ours.astype(np.float64), ones), Ratio(theirs.astype(np.float64), ones)


def measure_cost(report: Report, quick: bool) -> None:
    report.title = "CPU seconds of a training, without a trial and with it"
    size = {"users": 300, "items": 500} if quick else {"users": 2000, "items": 2000}
    watches = 6000 if quick else 60_000
    world = World(seed=1, start_ms=NOW_MS, **size)
    frame = world.past_log(NOW_MS - 10 * DAY_MS, NOW_MS, watches).drop("event_id", "device", "surface")
    settings, rankers = Model(threads=1), Ranker()
    for name, rival in (("without", None), ("with", Rival())):
        say(f"{name} a trial")
        directory = scratch()
        began_s = time.process_time()
        trained = train_with_trial(
            store_frame(frame, directory / "log", completed_s=18.0),
            world.items_frame(NOW_MS),
            settings=settings,
            ranker=rankers,
            bundles_dir=directory,
            created_ms=NOW_MS,
            offsets={},
            rival=rival,
        )
        spent_s = time.process_time() - began_s
        row = {"trial": name, "watches": len(frame), "training s": spent_s, "judging s": None}
        if trained.trial is not None:
            began_s = time.process_time()
            twin = trained.trial.model, trained.trial.ranker
            verdict = judge_release(trained.trial, twin, Rival(), seed=1)
            row |= {"judging s": time.process_time() - began_s, "verdict": verdict.outcome}
        report.add(**row)
