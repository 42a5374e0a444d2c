"""What the system needs is away for a minute, one thing after the other, under a steady load of watches and requests.

The broker and Milvus are killed and started again, or stand still (they take connections and answer nothing); Milvus
answers late, or the line to it is cut; the indexer stands still; the wall clocks of our processes jump by an hour,
forward and back. After each outage everything that is made of the acknowledged watches is counted again
(tests/harness/outages.py), and what became of the requests.

$OUTAGE_S is the length of an outage, $OUTAGE the beginning of the names of those that are wanted.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from infra.local.broker import Broker
from infra.simulation.world import NOTICE
from tests.benchmarks.report import Report, say
from tests.harness.outages import B, Replies, System, running_outages

Outage = contextlib.AbstractContextManager[object]

AWAY_S, QUICK_AWAY_S = 60.0, 6.0
BEFORE_S, AFTER_S = 5.0, 5.0
WATCHES_PER_S, REQUESTS_PER_S = 40.0, 5.0
MOST_GROWN_MB = 150.0
MOST_RECOVERY_S = 30.0
LATE_S = 4.0  # longer than a search may take, shorter than another call
HOUR_S = 3600
ASIDE = "stepped aside"  # processes that ended for another one's sake, and were started again


def outages_of(system: System[Broker]) -> dict[str, Callable[[], Outage]]:
    """By name, what is taken away while the block runs."""
    found: dict[str, Callable[[], Outage]] = {
        "broker killed": lambda: system.killed(system.broker),
        "broker stands still": lambda: system.stopped(system.broker.process.pid),
        "Milvus killed": lambda: system.killed(system.milvus),
        "Milvus stands still": lambda: system.stopped(system.milvus.process.pid),
        f"Milvus {LATE_S:g} s late": lambda: system.line.late(LATE_S),
        "line to Milvus cut": system.line.cut,
        "indexer stands still": lambda: system.stopped(system.processes["indexer"].pid),
    }
    clock = system.clock
    if clock is not None:
        found |= {
            "clocks an hour ahead": lambda: clock.jumped(HOUR_S),
            "clocks an hour back": lambda: clock.jumped(-HOUR_S),
        }
    return found


def measure(report: Report, quick: bool) -> None:
    """A minute without the broker, Milvus, the indexer, or the right time: what was lost, doubled, left unanswered."""
    away_s = float(os.environ.get("OUTAGE_S", QUICK_AWAY_S if quick else AWAY_S))
    report.title = f"outages of {away_s:g} s, {WATCHES_PER_S:g} watches and {REQUESTS_PER_S:g} requests a second"
    report.note(NOTICE)
    with TemporaryDirectory(prefix="nextwatch-") as directory, running_outages(Path(directory)) as system:
        wanted = os.environ.get("OUTAGE", "")
        for name, outage in outages_of(system).items():
            if name.startswith(wanted):
                say(name)
                add_row(report, name, outage, system, away_s)
        add_bars(report, system)
        if system.clock is None:
            report.note("no libfaketime (Debian's package, or FAKETIME_LIB): clocks were left alone")


def add_bars(report: Report, system: System[B]) -> None:
    ended = [name for name, process in system.processes.items() if process.poll() is not None]
    report.bar("processes that ended", len(ended), at_most=0)
    for what, column, most in (
        ("lost", "lost", 0.0),
        ("doubled", "doubled", 0.0),
        ("requests neither answered nor failed to their client", "unanswered", 0.0),
        ("seconds until everything works again", "works again, s", MOST_RECOVERY_S),
        ("growth of a process, MB", "growth, MB", MOST_GROWN_MB),
    ):
        report.bar(what, max(float(row[column]) for row in report.rows), at_most=most)


def add_row(report: Report, name: str, outage: Callable[[], Outage], system: System[B], away_s: float) -> None:
    before = dict(system.processes)
    with system.watching(WATCHES_PER_S) as watching, system.asking(REQUESTS_PER_S) as asked, system.growing() as grown:
        time.sleep(BEFORE_S)
        with outage():
            time.sleep(away_s)
        after_s = system.wait_until_it_works()
        time.sleep(AFTER_S)
    counted, replies = system.count(), Replies.of(asked)
    aside = [process for process, mine in before.items() if mine.poll() is not None]
    largest = max(grown, key=lambda process: grown[process])
    report.add(
        outage=name,
        watches=len(watching.acknowledged),
        lost=sum(counted.lost.values()),
        doubled=sum(counted.doubled.values()),
        requests=len(asked),
        answered=replies.answered,
        degraded=sum(bool(each.reply and each.reply.degraded) for each in asked),
        **{"failed, and told so": replies.told},
        unanswered=replies.unanswered,
        **{"longest wait, s": replies.longest_s, "works again, s": after_s["request"], "growth, MB": grown[largest]},
        of=largest,
        **{ASIDE: len(aside)},
    )
    if aside:
        report.note(f"{name}: stepped aside, and started again: {', '.join(aside)}")
    if not counted.is_exact:
        report.note(f"{name}: lost {counted.lost}, doubled {counted.doubled}")
    steps = ", ".join(f"{what} {seconds:g}" for what, seconds in after_s.items())
    report.note(f"{name}: seconds from its return until: {steps}")
    report.note(f"{name}: growth in MB: {', '.join(f'{process} {mb:g}' for process, mb in grown.items())}")
