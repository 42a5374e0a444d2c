"""What `nextwatch status` makes of several processes' pages: every process serves all names."""

import json
from io import StringIO
from math import nan

import msgspec
import pytest
from rich.console import Console

from infra.operate import status
from infra.operate.status import (
    Delay,
    ProcessStatus,
    Samples,
    StatusReport,
    add_up,
    delay_of,
    read_status,
    render_status,
    within_s,
)
from infra.platform.settings import Settings

DELAY = "nextwatch_event_to_history_seconds"


def page(counts: dict[float, float], requests: float = 0.0, rows: float = 0.0) -> Samples:
    """A page with one histogram (cumulative counts by upper bound), a counter and a gauge."""
    buckets: Samples = {(f"{DELAY}_bucket", (("le", str(upper)),)): count for upper, count in counts.items()}
    return buckets | {("nextwatch_requests_total", (("outcome", "ok"),)): requests, ("nextwatch_index_rows", ()): rows}


def merged(*pages: Samples) -> Samples:
    total: Samples = {}
    for each in pages:
        add_up(total, each)
    return total


def test_zeros_of_the_processes_that_do_other_work_hide_nothing():
    busy, idle = page({0.1: 3, 1.0: 4, float("inf"): 4}), page({0.1: 0, 1.0: 0, float("inf"): 0})
    assert delay_of(merged(busy, idle), DELAY) == delay_of(merged(idle, busy), DELAY) == Delay(0.1, 1.0, 4)


def test_counts_of_two_workers_are_added_and_gauges_are_not():
    total = merged(page({0.1: 1, float("inf"): 1}, 3, 10), page({0.1: 0, float("inf"): 1}, 4, 10))
    assert total["nextwatch_requests_total", (("outcome", "ok"),)] == 7
    assert total["nextwatch_index_rows", ()] == 10
    assert delay_of(total, DELAY) == Delay(0.1, None, 2)


def test_a_delay_above_all_buckets_is_none_in_json_and_words_in_the_table():
    delay = delay_of(page({0.1: 1, float("inf"): 2}), DELAY)
    assert json.loads(json.dumps(msgspec.to_builtins(delay), allow_nan=False)) == {
        "p50_s": 0.1,
        "p99_s": None,
        "count": 2,
    }
    assert (within_s(0.1), within_s(None)) == ("within 0.1 s", "not within the largest bucket")


def test_a_delay_that_nothing_was_measured_of_is_none():
    assert delay_of(page({0.1: 0, float("inf"): 0}), DELAY) is None and delay_of({}, DELAY) is None


@pytest.mark.parametrize("order", [1, -1])
def test_what_a_process_has_not_measured_hides_nothing_and_the_report_is_json(order: int, tmp_path, monkeypatch):
    pages = [{("nextwatch_index_rows", ()): nan}, {("nextwatch_index_rows", ()): 7.0}][::order]
    assert merged(*pages) == {("nextwatch_index_rows", ()): 7.0}
    assert merged(pages[0], pages[0]).get(("nextwatch_index_rows", ())) in {None, 7.0}
    records = [{"name": f"p{n}", "pid": n, "host": "127.0.0.1", "port": n} for n in range(2)]
    monkeypatch.setattr(status, "read_run_files", lambda run_dir: records)
    monkeypatch.setattr(status, "fetch_health", lambda record, access: {"live": True, "ready": True})
    monkeypatch.setattr(status, "fetch_samples", lambda record, access: pages[record["pid"]])
    report = read_status(Settings(data_dir=tmp_path))
    assert report.index_rows == 7
    assert "NaN" not in json.dumps(msgspec.to_builtins(report), allow_nan=False)


def test_recall_says_on_how_many_watches_it_stands():
    report = StatusReport(
        True, [ProcessStatus("trainer", 1, "a:1", True, [], 0, "v")], recall={"live@10": 0.5}, recall_of=7
    )
    console = Console(width=200, record=True, file=StringIO())
    console.print(render_status(report))
    assert "live@10 0.500 (7 watches)" in console.export_text()
