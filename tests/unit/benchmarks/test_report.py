"""The benchmarks' own arithmetic: quantiles, bars, and what is left of a request."""

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from streams.messages import RecommendReply
from tests.benchmarks import __main__ as command
from tests.benchmarks.__main__ import NAMES, tables_of
from tests.benchmarks.events.request import rest_ms
from tests.benchmarks.report import Report, histogram_quantile, machine, quantile


def test_a_quantile_is_a_value_that_was_measured() -> None:
    assert quantile([3.0, 1.0, 2.0, 4.0], 0.5) == 2.0
    assert quantile([float(n) for n in range(1, 201)], 0.99) == 198.0
    assert quantile([7.0], 0.99) == 7.0
    assert math.isnan(quantile([], 0.5))


def test_a_histogram_quantile_counts_only_what_came_between_the_readings() -> None:
    before = {'d_bucket{le="1.0"}': 5.0, 'd_bucket{le="2.0"}': 5.0, 'd_bucket{le="+Inf"}': 5.0}
    after = {'d_bucket{le="1.0"}': 5.0, 'd_bucket{le="2.0"}': 15.0, 'd_bucket{le="+Inf"}': 15.0, "other": 1.0}
    assert histogram_quantile(before, after, "d", 0.5) == 1.5
    assert histogram_quantile({}, after, "d", 0.1) == pytest.approx(0.3)
    assert math.isnan(histogram_quantile(after, after, "d", 0.5))
    assert histogram_quantile({}, {'d_bucket{le="1.0"}': 0.0, 'd_bucket{le="+Inf"}': 2.0}, "d", 0.5) == 1.0


def test_a_bar_says_whether_it_was_reached_and_the_result_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(report: Report, quick: bool) -> None:
        report.add(what="a", value=1.5)
        report.add(what="b", other=3)
        report.bar("fast", 2.6, at_least=2.5)
        report.bar("late", 2.6, at_most=2.5)
        report.note("quick" if quick else "full")

    file = tmp_path / "result.json"
    monkeypatch.setattr(command, "tables_of", lambda name, *_: {f"{name} example": measure})
    command.main(["step", "--quick", "--json", str(file)])
    (written,) = json.loads(file.read_text())
    assert written["name"] == "step example"
    assert written["machine"] == machine()
    assert written["rows"] == [{"what": "a", "value": 1.5}, {"what": "b", "other": 3}]
    assert written["bars"]["fast"] == {"value": 2.6, "bar": 2.5, "sense": ">=", "ok": True}
    assert written["bars"]["late"]["ok"] is False
    assert "quick" in written["notes"]


def test_a_missed_bar_is_printed_as_missed() -> None:
    report, output = Report("example"), io.StringIO()
    report.add(what="a", value=1)
    report.bar("late", 2.6, at_most=2.5)
    report.show(Console(width=100, file=output))
    assert "MISSED late: 2.6 (bar <= 2.5)" in output.getvalue()


def test_what_is_left_of_a_request_excludes_milvus_torch_broker_and_its_share_of_the_batch_ahead() -> None:
    reply = RecommendReply("r", stages_ms={"wait": 99.0, "hydrate": 5.0, "embed": 1.0, "retrieve": 10.0, "rank": 4.0})
    assert rest_ms(30.0, reply, 4.0, batched=False) == pytest.approx(11.0)  # 30 - 4 - 15
    # 6 ms around; waited for a batch ahead that is three quarters Milvus and torch
    assert rest_ms(30.0, reply, 4.0, batched=True) == pytest.approx(11.0 - 6.0 * 0.75)
    assert rest_ms(10.0, reply, 4.0, batched=False) == 0.0


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_that_is_named_can_be_started(name: str) -> None:
    assert all(map(callable, tables_of(name, None, pytest.fail).values()))


def test_a_missed_bar_ends_a_strict_run_only_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "run", lambda *_, **__: {"bars": {"late": {"ok": False}}})
    command.main(["outages"])
    with pytest.raises(SystemExit, match="1"):
        command.main(["outages", "--strict"])


def test_a_part_is_one_table_and_one_that_is_not_there_is_refused() -> None:
    assert list(tables_of("ranking", "world", pytest.fail)) == ["ranking world"]
    assert list(tables_of("models", "cold", pytest.fail)) == ["cold viewers", "cold items"]
    assert [*tables_of("models", None, pytest.fail)][:2] == ["towers", "parts"]
    with pytest.raises(pytest.fail.Exception, match="models has no part ranking; there are towers"):
        tables_of("models", "ranking", pytest.fail)
    with pytest.raises(pytest.fail.Exception, match="ranking has no part other"):
        tables_of("ranking", "other", pytest.fail)
