"""Three brokers of which one is lost, under a steady load of watches and requests: what is lost, doubled, left
unanswered, and for how long people wait.

A broker that leads is killed, or stands still, and so is the controller; our topics have fewer copies in sync than they
insist on; the brokers are rolled one by one. A message waits for all copies in sync, so until the cluster has given a
silent broker up (`broker.session.timeout.ms`) nobody can be answered, by whatever client. That time is measured from
outside, and what people wait beyond it is ours.
"""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.benchmarks.report import Report, quantile, say
from tests.harness.cluster.brokers import SESSION_S
from tests.harness.cluster.faults import FAULTS, Fault
from tests.harness.cluster.system import ClusterSystem, running_cluster

AWAY_S, QUICK_AWAY_S = 30.0, 14.0
SHORT_S, QUICK_SHORT_S = 180.0, 20.0  # of too few copies
BEFORE_S, AFTER_S = 3.0, 3.0
PATIENCE_S = 60.0  # people wait for so much longer than the fault lasts
WATCHES_PER_S, REQUESTS_PER_S = 20.0, 10.0
MOST_BEYOND_S = 3.0
PROCESSES = ("history", "serving")


def measure(report: Report, quick: bool) -> None:
    """One broker of three is lost, one way after the other."""
    report.title = f"three brokers, {WATCHES_PER_S:g} watches and {REQUESTS_PER_S:g} requests a second"
    report.note(
        f"brokers: broker.session.timeout.ms {1000 * SESSION_S:g}, three copies of which two must have a message"
    )
    with (
        TemporaryDirectory(prefix="nextwatch-") as directory,
        running_cluster(Path(directory), SESSION_S, PROCESSES) as system,
    ):
        for name, fault in FAULTS.items():
            say(name)
            is_short = name == "too few copies in sync"
            away_s = (QUICK_SHORT_S if quick else SHORT_S) if is_short else (QUICK_AWAY_S if quick else AWAY_S)
            add_row(report, name, fault, system, away_s)
    for what, column, most in (
        ("watches lost", "lost", 0.0),
        ("watches doubled", "doubled", 0.0),
        ("requests without a reply", "unanswered", 0.0),
        ("replies without an impression", "without impression", 0.0),
        ("p99 of the wait beyond the cluster's own, s", "p99 beyond, s", MOST_BEYOND_S),
    ):
        report.bar(what, max(float(row[column]) for row in report.rows), at_most=most)


def add_row(report: Report, name: str, fault: Fault, system: ClusterSystem, away_s: float) -> None:
    with system.load(WATCHES_PER_S, REQUESTS_PER_S, wait_s=away_s + PATIENCE_S) as (watching, people):
        time.sleep(BEFORE_S)
        began_s = time.monotonic()
        able_s = fault(system, away_s)
        time.sleep(AFTER_S)
    lost, doubled = system.lost_and_doubled()
    answered = [request for request in people.requests if request.is_answered]
    impressions = system.impressions(answered)
    # those before the fault as well: one that was under way is among them
    waits_s = [request.silence_s for request in answered]
    beyond_s = [request.beyond_s(able_s) for request in answered]
    report.add(
        fault=name,
        watches=len(watching.acknowledged),
        lost=lost,
        doubled=doubled,
        requests=len(people.requests),
        unanswered=len(people.requests) - len(answered),
        **{
            "without impression": sum(not impressions[request.request_id] for request in answered),
            "impressions per reply": sum(impressions.values()) / max(1, len(answered)),
            "the cluster's own, s": able_s - began_s,
            "wait p50, s": quantile(waits_s, 0.5),
            "p99, s": quantile(waits_s, 0.99),
            "longest, s": max(waits_s, default=float("nan")),
            "p99 beyond, s": quantile(beyond_s, 0.99),
            "longest beyond, s": max(beyond_s, default=float("nan")),
        },
    )
