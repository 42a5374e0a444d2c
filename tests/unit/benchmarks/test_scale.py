"""The generated log, and what is left out for want of time, memory or disk."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.benchmarks.report import Report
from tests.benchmarks.scale import generated_log, large_release, train_scale
from tests.benchmarks.scale.stopwatch import Stopwatch


def test_a_log_written_in_pieces_is_in_order_of_time_and_of_people_with_a_taste(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generated_log, "PIECE", 3_000)
    generated_log.write_log(tmp_path / "log.parquet", 10_000)
    log = pl.read_parquet(tmp_path / "log.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["log.parquet"]
    assert log.height == 10_000
    assert log["event_ms"].is_sorted()
    assert log["user_id"].n_unique() == 10_000 // generated_log.ROWS_OF_USER
    known = generated_log.items_frame()
    assert set(log["item_id"]) <= set(known["item_id"])
    clusters = log.select(pl.col("user_id", "item_id").str.slice(1).cast(pl.Int64) % generated_log.CLUSTERS)
    own = clusters["user_id"] == clusters["item_id"]
    assert own.mean() == pytest.approx(0.7 + 0.3 / generated_log.CLUSTERS, abs=0.02)
    share = log["watch_s"] / log["duration_s"]
    assert share.filter(own).mean() > 2 * share.filter(~own).mean()  # type: ignore[operator]


def test_low_ranks_are_drawn_more_often_and_all_lie_in_range() -> None:
    ranks = generated_log.drawn(100, np.linspace(0, 1, 10_001))
    assert (ranks.min(), ranks.max()) == (0, 99)
    counts = np.bincount(ranks)
    assert counts[0] / counts[10] == pytest.approx(20 / 10, rel=0.05)


def test_a_size_for_which_no_time_is_left_is_not_begun_and_said_to_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []

    def in_a_child(rows: int) -> dict[str, float]:
        begun.append(rows)
        sizes = dict.fromkeys(("anonymous", "all", "bundle_mb"), 1.0)
        counts = {"rows": rows, "examples": rows, "learnt": rows, "ranked": rows}
        return dict.fromkeys(train_scale.BY, 1e-6 * rows) | counts | sizes | {"wall": 10.0 * len(begun)}

    monkeypatch.setattr(train_scale, "in_a_child", in_a_child)
    monkeypatch.setenv("SCALE_BUDGET_S", "150")
    report = Report("train-scale")
    costs = dict(train_scale.measured_sizes(report, (100_000, 1_000_000, 10_000_000)))
    assert begun == [100_000, 1_000_000]
    assert costs == pytest.approx(dict.fromkeys(begun, len(train_scale.BY)))
    assert any("10,000,000 rows: left out for want of time" in note for note in report.notes)


def test_a_release_that_the_machine_has_no_room_for_is_left_out_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_release, "available_bytes", lambda: 10**9)
    assert large_release.what_lacks(10, 64) == ""
    assert "for want of memory: 2 GB are needed and 1 GB there" in large_release.what_lacks(10**6, 64)
    assert "for want of disk" in large_release.what_lacks(10**12, 64)


def test_a_stage_has_the_seconds_of_all_its_calls_and_what_its_last_one_told() -> None:
    now = iter([0.0, 1.0, 10.0, 12.0])
    watch = Stopwatch(lambda: next(now))
    double = watch.measured(lambda number: 2 * number, "stage", float)
    assert [double(1), double(5)] == [2, 10]
    assert (watch.seconds, watch.told) == ({"stage": 3.0}, {"stage": 10.0})
