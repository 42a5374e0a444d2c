"""One topic after the other has no leader for a while, under a steady load of watches and requests, and all others have
theirs: of each that our own processes write.

Three brokers, of which one has the topic's only copies and is stopped. All our processes run, on a release and a
Milvus. Afterwards everything that is made of the acknowledged watches is counted again (tests/harness/outages.py).

$OUTAGE_S is the length of an outage, $OUTAGE the beginning of the names of the topics that are wanted.
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from infra.simulation.world import NOTICE
from tests.benchmarks.reliability.outages import ASIDE, add_bars, add_row
from tests.benchmarks.report import Report, say
from tests.harness.cluster.one_topic import WRITTEN, running_on_three, without

AWAY_S, QUICK_AWAY_S = 60.0, 10.0
QUICK = WRITTEN[:2]


def measure(report: Report, quick: bool) -> None:
    """A minute without the leader of one topic: what was lost, doubled, left unanswered, and which processes ended."""
    away_s = float(os.environ.get("OUTAGE_S", QUICK_AWAY_S if quick else AWAY_S))
    report.title = f"one topic without a leader for {away_s:g} s"
    report.note(NOTICE)
    with TemporaryDirectory(prefix="nextwatch-") as directory, running_on_three(Path(directory)) as system:
        wanted = os.environ.get("OUTAGE", "")
        for topic in (each for each in (QUICK if quick else WRITTEN) if each.startswith(wanted)):
            say(topic)
            add_row(report, topic, lambda topic=topic: without(system.broker, topic), system, away_s)
        add_bars(report, system)
    report.bar("processes that stepped aside", max(row[ASIDE] for row in report.rows), at_most=0)
