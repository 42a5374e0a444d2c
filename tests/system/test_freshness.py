"""The short form of the benchmark `freshness`: limits wide enough for any machine, and figures told at the end."""

from collections.abc import Callable

from tests.benchmarks.events.freshness import measure
from tests.benchmarks.report import Report
from tests.harness.needs import KAFKA, needs

pytestmark = needs(KAFKA, "noida's times say nothing of Kafka's")

AT_MOST = {"watch to reply p99, s": 5.0, "new item to retrievable p99, s": 10.0, "degraded, share": 0.1}
AT_LEAST = {"events made, of asked for": 0.8, "requests made, of asked for": 0.5}


def test_a_watch_is_in_the_replies_within_seconds_under_a_steady_load(record_property: Callable[[str, object], None]):
    report = Report("freshness")
    measure(report, quick=True)
    found = {name.partition(": ")[2]: float(bar["value"]) for name, bar in report.bars.items()}
    record_property("told", "freshness at 200 events/s, 20 requests/s: " + _as_line(found))
    over = {name: found[name] for name, limit in AT_MOST.items() if not found[name] <= limit}
    under = {name: found[name] for name, limit in AT_LEAST.items() if not found[name] >= limit}
    assert not over | under


def _as_line(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in found.items())
