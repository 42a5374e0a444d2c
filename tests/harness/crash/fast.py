"""The deaths of the fast run: every process by SIGKILL, and at each step of each protocol."""

from __future__ import annotations

from tests.harness.crash.run import Run
from tests.harness.crash.supervised import OURS

FIRST = (
    "history: examples sent",
    "join: examples sent",
    "trending: counts sent",
    "trainer: rows sent",
    "indexer: rows written",
    "serving: impression sent",
)
SECOND = (
    "history: histories sent",
    "join: states sent",
    "trainer: progress sent",
    "indexer: offsets committed",
    "serving: before commit",
)
HANDOVER = (
    "indexer: collection created",
    "indexer: collection filled",
    "indexer: marked whole",
    "indexer: announced",
    "join: closings sent",
)
LAST = ("trainer: rows sent",)  # of the release that is looked at in the end: what those rows hold is not learnt again
POINTS = (*FIRST, *SECOND, *HANDOVER, *LAST)


def fast(run: Run) -> None:
    """About a minute and a half, on a machine that does nothing else."""
    run.publish()
    run.wait_served()
    run.killer.round(points=FIRST)
    run.killer.round(kills=("broker", "milvus", *OURS), within_s=3.0)
    run.killer.round(points=SECOND)
    run.killer.kill_up()
    run.publish()
    run.killer.round(points=HANDOVER)
    run.wait_served()
    run.killer.round(points=LAST)
