"""`nextwatch backtest --stage ranking` from an exposure log to its directory, and every way in which it refuses."""

import json

import numpy as np
import polars as pl
import pytest

from infra.backtest.components import COMPONENTS
from infra.backtest.ranking import calibrated, run_ranking_backtest
from infra.backtest.request import Request
from infra.platform.settings import Ranker, Settings
from models.evaluation.split import BacktestError
from models.ranking.impression_log import Delays
from models.ranking.ranking_evaluation import Predictions
from models.ranking.ranking_examples import CAP_S
from tests.unit.infra.command import commands
from tests.unit.models.samples import START_MS, made_examples

ROWS = 1500
QUICK = {"HIDDEN": "[16]", "MEMBERS": "1", "EPOCHS": "3", "RATE": "0.003", "DROPOUT": "0"}


def exposure_log(rows: int = ROWS) -> pl.DataFrame:
    """Forty users who are shown thirty items; two of three are not watched at all, good items are watched for long."""
    rng = np.random.default_rng(5)
    items = rng.integers(0, 30, rows)
    watched = rng.random(rows) < np.where(items < 8, 0.7, 0.2)
    return pl.DataFrame(
        {
            "uid": [f"u{n}" for n in rng.integers(0, 40, rows)],
            "item_id": [f"i{n}" for n in items],
            "event_ms": START_MS + 60_000 * np.arange(rows),
            "watch_s": np.where(watched, rng.uniform(2, 60, rows), 0.0),
            "duration_s": np.full(rows, 60.0),
        }
    )


@pytest.fixture
def nextwatch(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("models.evaluation.comparison.RESAMPLES", 100)
    for name, value in QUICK.items():
        monkeypatch.setenv(f"NEXTWATCH_RANKER__{name}", value)

    return commands(monkeypatch, capsys, "backtest", "--stage", "ranking")


@pytest.fixture
def log(tmp_path):
    exposure_log().write_parquet(tmp_path / "log.parquet")
    return "log.parquet"


def test_a_backtest_of_the_ranker_writes_its_report_and_a_row_for_each_exposure_of_the_test(nextwatch, log, tmp_path):
    code, out, err = nextwatch(log, "--map", "user_id=uid", "--test-fraction", ".3", "--out", "out", "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.json", "ranking.parquet"}
    frame = pl.read_parquet(tmp_path / "out" / "ranking.parquet")
    assert frame.columns == ["user_id", "item_id", "event_ms", "expected_watch_s", "score"]
    test = exposure_log().tail(frame.height)
    assert frame.height == pytest.approx(0.3 * ROWS, abs=2)
    assert frame["user_id"].equals(test["uid"].alias("user_id"))
    assert frame["item_id"].equals(test["item_id"])
    assert frame["event_ms"].equals(test["event_ms"])
    for column in ("expected_watch_s", "score"):
        assert frame[column].is_finite().all()
        assert frame[column].is_between(0, CAP_S).all()
    protocol = report["protocol"]
    assert (protocol["exposures_before"], protocol["exposures"]) == (ROWS - frame.height, frame.height)
    assert protocol["mean_s"] == pytest.approx(test["watch_s"].mean(), rel=1e-4)


def test_every_metric_is_there_of_every_ranker_with_its_error_and_against_the_items_mean(nextwatch, log):
    code, out, _ = nextwatch(log, "--map", "user_id=uid", "--test-fraction", ".3", "--out", "out", "--json")
    assert code == 0
    report = json.loads(out)
    metrics = {"weighted_loss_page", "weighted_loss_user", "top1_s", "calibration", "mae_s", "xauc", "gauc"}
    assert set(report["metrics"]) == set(report["against_item_mean"]) == metrics
    assert set(report["rankers"]) == {"ranker, calibrated", "ranker", "item's mean seconds"}
    for of_ranker in report["rankers"].values():
        assert set(of_ranker) == metrics
        assert all(each["low"] <= each["value"] <= each["high"] and each["se"] > 0 for each in of_ranker.values())
    loss = report["rankers"]["ranker, calibrated"]["weighted_loss_user"]
    assert loss["value"] < 0.45, "it knows which items are watched"
    assert len(report["calibration_by_decile"]["ranker"]) == 10
    assert set(report["components"]) == set(COMPONENTS)
    assert report["components"]["retrieval and sources"]["xauc"]["value"] == 0, "the log has none"


def test_the_same_seed_gives_the_same_files_and_another_one_another(nextwatch, log, tmp_path):
    for name, seed in (("one", "1"), ("again", "1"), ("other", "2")):
        assert nextwatch(log, "--map", "user_id=uid", "--out", name, "--seed", seed)[0] == 0
    for file in ("report.json", "ranking.parquet"):
        one, again, other = ((tmp_path / name / file).read_bytes() for name in ("one", "again", "other"))
        assert one == again != other, file


def test_a_person_reads_a_table(nextwatch, log):
    code, out, _ = nextwatch(log, "--map", "user_id=uid", "--out", "out")
    assert code == 0
    assert "weighted_loss_page" in out
    assert "favours" in out
    assert "P(completed)" in out
    assert "shown before" in out and "exchanged among the exposures" in out
    assert "150 exposures of" in out
    assert "out: report.json, ranking.parquet" in out


def test_rows_of_unknown_length_are_not_judged(nextwatch, tmp_path):
    unknown = pl.int_range(ROWS) % 3 == 0
    frame = exposure_log().rename({"uid": "user_id"}).with_columns(watch_s=pl.when(~unknown).then("watch_s"))
    frame.write_parquet(tmp_path / "log.parquet")
    code, out, _ = nextwatch("log.parquet", "--out", "out", "--json")
    assert code == 0
    assert json.loads(out)["protocol"]["exposures"] == pytest.approx(ROWS * 2 / 3 * 0.1, abs=2)
    assert pl.read_parquet(tmp_path / "out" / "ranking.parquet").height == json.loads(out)["protocol"]["exposures"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--test-from", "2001-01-01"], "0 exposures before and 1500 from the cut on"),
        (["--test-from", "2031-01-01"], "1500 exposures before and 0 from the cut on"),
        (["--test-fraction", ".95"], "200 and 1 are needed"),
        (["--live"], "are of --stage retrieval"),
        (["--validation-fraction", ".1"], "are of --stage retrieval"),
        (["--items", "no.csv"], "no.csv: no such file"),
    ],
)
def test_what_cannot_be_done_is_refused_and_leaves_nothing(nextwatch, log, tmp_path, arguments, says):
    code, out, err = nextwatch(log, "--map", "user_id=uid", *arguments, "--out", "out")
    assert (code, out) == (2, "")
    assert says in err
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["log.parquet"]


def test_a_log_without_watch_times_is_refused(tmp_path):
    exposure_log().rename({"uid": "user_id"}).drop("watch_s").write_parquet(tmp_path / "log.parquet")
    request = Request(tmp_path / "log.parquet", tmp_path / "out")
    with pytest.raises(BacktestError, match="has no row with watch_s"):
        run_ranking_backtest(request, Settings(ranker=Ranker(hidden=(8,), members=1, epochs=1)))


def test_a_calibration_reorders_nothing_within_a_page_and_is_capped():
    examples = made_examples([60.0] * 6, [True] * 6)  # six users' pages: each is a page of its own
    raw = Predictions(np.array([1.0, 2, 3, 4, 5, 599]), np.ones(6))
    found = calibrated(raw, examples, Delays(window_ms=0))
    assert found.user is raw.user
    assert found.page[0] == 1
    assert (np.diff(found.page[1:5] / raw.page[1:5]) > 0).all(), "more was watched than was expected"
    assert found.page[5] == CAP_S
    together = made_examples([60.0] * 30, [True] * 30)
    one_page = calibrated(Predictions(np.arange(1.0, 31), np.ones(30)), together, Delays(window_ms=0))
    factors = one_page.page / np.arange(1.0, 31)
    of_user = [factors[user::10] for user in range(10)]
    assert all(np.allclose(each, each[0]) for each in of_user), "ten users, a page each"
