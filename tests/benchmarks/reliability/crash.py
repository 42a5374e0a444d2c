"""Killing everything, again and again, under load; then comparing what is there with what the topics imply.

`random`: for half an hour processes are killed at random moments and at the steps of their commit protocols, `up`
itself too, while releases are handed over; for --quick some minutes. tests/harness/crash says how it is judged. The
seed is $CRASH_SEED, $CRASH_S another length. `recovery`: how long a killed process takes to be ready with 100,000 users
in the topics.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from infra.platform.fault_points import POINTS
from infra.simulation.world import NOTICE
from tests.benchmarks.reliability.crash_recovery import recovery_s
from tests.benchmarks.report import Report, say
from tests.harness.crash.killer import process_of
from tests.harness.crash.load import Pace
from tests.harness.crash.run import Outcome, Run, Scale, counts, run_crashes, timed
from tests.harness.crash.supervised import ALL, UP
from tests.harness.service import Size

HANDOVER = (
    "indexer: collection created",
    "indexer: collection filled",
    "indexer: marked whole",
    "indexer: announced",
    "indexer: marked announced",
)
LEAVING = "serving: settled"  # reached when `up` is killed: what it guarded is asked to stop
WRITING = ("indexer: rows written", "indexer: offsets committed")
NOT_STEADY = ("indexer", "ingest")  # the one comes at its own points, the other is not there
STEADY = (*(point for point in POINTS if process_of(point) not in NOT_STEADY and point != LEAVING), *WRITING)
PAUSE_S = 3.0
READY_S = 30.0
USERS = 100_000

FULL_S, QUICK_S = 1800.0, 150.0
FULL = Scale(users=400, releases=16, size=Size(users=400, items=500, watches=6000), pace=Pace(20, 5, 1, 0.5))
QUICK = Scale(users=150, releases=4)


def long(run: Run, *, seconds: float, together: int) -> None:
    """Deaths in an order that the seed decides, every kind again and again, until the time is over; so many processes
    die together."""
    run.publish()
    run.wait_served()
    victims, points, handovers = (_shuffled(run.rng, names) for names in (ALL, STEADY, HANDOVER))
    kinds = _shuffled(run.rng, (*["kill"] * 9, *["point"] * 7, "two", "two", "release", "release", "up"))
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        match next(kinds):
            case "kill":
                run.killer.round(kills=list({next(victims) for _ in range(together)}))
            case "two":
                run.killer.round(kills=list({next(victims) for _ in range(together + 1)}))
            case "point":
                run.killer.round(points=[next(points) for _ in range(together)])
            case "release" if run.live + 1 < len(run.releases.bundles):
                run.publish()
                run.killer.round(points=[next(handovers)])
                run.wait_served()
            case "up":
                run.killer.kill_up([LEAVING])
        time.sleep(run.rng.uniform(0, PAUSE_S))


def _shuffled(rng: random.Random, names: Sequence[str]) -> Iterator[str]:
    """All of them in a random order, then all of them in another."""
    return itertools.chain.from_iterable(iter(lambda: rng.sample(list(names), len(names)), None))


def measure_random(report: Report, quick: bool) -> None:
    """Half an hour of deaths: what was lost, doubled, mixed or not answered, and how soon all was ready again."""
    seed = int(os.environ.get("CRASH_SEED", "1"))
    seconds = float(os.environ.get("CRASH_S", QUICK_S if quick else FULL_S))
    script = partial(long, seconds=seconds, together=3 if quick else 1)
    with TemporaryDirectory(prefix="nextwatch-") as directory:
        outcome = run_crashes(QUICK if quick else FULL, script, Path(directory), seed, timed(say))
    report.title = f"crash: seed {seed}, {outcome.seconds / 60:.0f} minutes, {outcome.deaths.total} deaths"
    report.note(NOTICE)
    add_deaths(report, outcome)
    add_verdict(report, outcome)


def add_deaths(report: Report, outcome: Outcome) -> None:
    """A row for every process."""
    deaths = outcome.deaths
    for name in (*ALL, UP):
        at_points = sum(count for point, count in deaths.died_at.items() if process_of(point) == name)
        seconds = deaths.recovery_s.get(name, [])
        row: dict[str, Any] = {"process": name, "killed": deaths.killed[name], "at fault points": at_points}
        if seconds:
            row |= {"ready again s, median": median(seconds), "longest": max(seconds)}
        report.add(**row)


def add_verdict(report: Report, outcome: Outcome) -> None:
    verdict, deaths = outcome.verdict, outcome.deaths
    findings = {
        "lost": verdict.lost,
        "doubled": verdict.doubled,
        "differing": verdict.differing,
        "replies of mixed versions": outcome.mixed,
        "replies not alike, or not on record": outcome.otherwise,
        "armed points that nobody reached": deaths.not_reached,
    }
    for what, found in findings.items():
        report.bar(what, len(found), at_most=0)
        for finding in found[:3]:
            report.note(f"{what}: {finding}")
    report.bar("requests without a reply", outcome.unanswered, at_most=0)
    report.bar("longest recovery to ready, s", deaths.longest_s, at_most=READY_S)
    for line in counts(outcome):
        report.note(line)
    report.note("compared: " + ", ".join(f"{what} {count}" for what, count in verdict.compared.items()))


def measure_recovery(report: Report, quick: bool) -> None:
    """From SIGKILL to ready with 100,000 users in the topics, one process at a time under its supervisor."""
    users = USERS // 10 if quick else USERS
    seconds, written = recovery_s(users, 1 if quick else 3, say)
    report.title = f"recovery: {users:,} users, " + ", ".join(f"{k} {n / 1e6:.0f} MB" for k, n in written.items())
    for name, mine in seconds.items():
        report.add(process=name, n=len(mine), **{"ready again s, median": median(mine), "longest": max(mine)})
        report.bar(f"{name}: longest recovery to ready, s", max(mine), at_most=READY_S)
