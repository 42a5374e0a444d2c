"""Does the verdict of a crash run find what it is there to find? Faults put in on purpose, one a run, nobody killed.

$FAULT is the beginning of the names of those that are wanted (none: the control)."""

from __future__ import annotations

import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from infra.simulation.world import NOTICE
from tests.benchmarks.report import Report, say
from tests.harness.crash.run import Outcome, Run, Scale, run_crashes, timed
from tests.harness.crash.sabotage import FAULTS, SITE, VARIABLE

NONE = "none (control)"
LOAD_S = 12.0  # before and after the second release
QUICK = (NONE, *list(FAULTS)[:2])


def quiet(run: Run) -> None:
    """Two releases, one after the other, under load."""
    run.publish()
    run.wait_served()
    time.sleep(LOAD_S)
    run.publish()
    run.wait_served()
    time.sleep(LOAD_S)


def measure(report: Report, quick: bool) -> None:
    """For each fault what the verdict calls it; the control, and what at-least-once allows, must be called nothing."""
    report.title = "crash: what the verdict finds of faults that were put in"
    report.note(NOTICE)
    wanted_names = os.environ.get("FAULT", "")
    for name in QUICK if quick else [name for name in (NONE, *FAULTS) if name.startswith(wanted_names)]:
        say(name)
        outcome = outcome_with("" if name == NONE else name)
        found = findings(outcome)
        wanted = "" if name == NONE else FAULTS[name].finding
        furthest = {"rows off by": f"{outcome.verdict.furthest:.1e}"}
        report.add(fault=name, **{"to be found": wanted or "nothing"}, **found, **furthest)
        for what in (outcome.verdict.lost, outcome.verdict.doubled, outcome.verdict.differing):
            for finding in what[:1]:
                report.note(f"{name}: {finding}")
        compared = found.pop("compared")
        is_right = compared > 0 and (found[wanted] > 0 if wanted else not any(found.values()))
        report.bar(f"{name}: found" if wanted else f"{name}: nothing found", float(is_right), at_least=1)


def outcome_with(fault: str) -> Outcome:
    """A run with this fault in one of its processes."""
    path = os.pathsep.join([str(SITE), str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")])
    more = {VARIABLE: fault, "PYTHONPATH": path} if fault else {}
    with TemporaryDirectory(prefix="nextwatch-") as directory:
        return run_crashes(Scale(), quiet, Path(directory), 1, timed(say), more)


def findings(outcome: Outcome) -> dict[str, int]:
    verdict = outcome.verdict
    return {
        "compared": verdict.compared.total(),
        "lost": len(verdict.lost),
        "doubled": len(verdict.doubled),
        "differing": len(verdict.differing),
        "mixed": len(outcome.mixed),
        "otherwise": len(outcome.otherwise),
        "unanswered": outcome.unanswered,
    }
