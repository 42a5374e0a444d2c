"""`nextwatch backtest` from a log to its directory, and every way in which it refuses."""

import json

import numpy as np
import polars as pl
import pytest

from infra.cli.backtest import read_time
from models.evaluation import baseline_choice
from tests.unit.infra.command import commands

START_MS = 1_700_000_000_000
ROWS = 1500


def small_log(rows: int = ROWS) -> pl.DataFrame:
    """Sixty users who like one of four kinds of items; newer items become popular."""
    rng = np.random.default_rng(5)
    users = rng.integers(0, 60, rows)
    items = ((rng.random(rows) ** 2 * 60).astype(int) + np.arange(rows) // 40) // 4 * 4 + users % 4
    return pl.DataFrame(
        {
            "uid": [f"u{n}" for n in users],
            "item_id": [f"i{n}" for n in items],
            "event_ms": START_MS + 1000 * np.arange(rows),
            "watch_s": np.where(rng.random(rows) < 0.8, 40.0, 2.0),
        }
    )


@pytest.fixture
def nextwatch(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("HALF_LIVES", "KNN", "EASE"):
        monkeypatch.setattr(baseline_choice, name, getattr(baseline_choice, name)[:2])
    return commands(monkeypatch, capsys, "backtest")


@pytest.fixture
def log(tmp_path):
    small_log().write_parquet(tmp_path / "log.parquet")
    return "log.parquet"


def test_a_frozen_and_a_live_backtest_of_a_log_with_other_column_names(nextwatch, log, tmp_path):
    code, out, err = nextwatch(log, "--map", "user_id=uid", "--test-fraction", ".3", "--live", "--out", "out", "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    names = {"candidates.parquet", "live.parquet", "report.json", "report.html"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert report["protocol"]["positives"] == small_log().filter(pl.col("watch_s") > 18).height
    assert report["live"]["cases"] > report["frozen"]["cases"] > 30
    live = pl.read_parquet(tmp_path / "out" / "live.parquet")
    assert live.height == report["live"]["cases"]
    assert set(live["user_id"]) <= {f"u{n}" for n in range(60)}
    assert live["rank"].null_count() == report["live"]["unknown_items"] > 0
    assert next(iter(report["frozen"]["recall"])) == "tower"
    assert list(report["live"]["recall"])[:3] == [
        "tower, live",
        "tower, live histories only",
        "tower, frozen at the cut",
    ]
    assert {each["name"] for each in report["recommenders"]} >= set(report["live"]["recall"])


def test_everybody_of_the_test_gets_candidates_and_newcomers_are_judged_apart(nextwatch, tmp_path):
    """Twenty who come after the cut, one who only skips then, and one who never comes back."""
    log = small_log().with_columns(pl.col("watch_s").fill_null(40.0))
    late = log.tail(200).with_row_index("row")
    newcomer = pl.format("new{}", pl.col("row") % 20)
    names = pl.when(pl.col("row") < 150).then(newcomer).when(pl.col("row") == 150).then(pl.lit("skips"))
    late = late.with_columns(
        uid=names.otherwise(pl.col("uid")), watch_s=pl.when(pl.col("row") == 150).then(1.0).otherwise(pl.col("watch_s"))
    ).drop("row")
    log = pl.concat([log.head(ROWS - 200).with_columns(uid=pl.col("uid").replace("u7", "u8")), late])
    log[0, "uid"], log[0, "watch_s"] = "gone", 40.0
    log.write_parquet(tmp_path / "log.parquet")
    cut_ms = START_MS + 1000 * (ROWS - 200)
    code, out, _ = nextwatch(
        "log.parquet", "--map", "user_id=uid", "--test-from", f"{cut_ms}", "--out", "out", "--json"
    )
    assert code == 0
    report = json.loads(out)
    there = set(log.filter(pl.col("event_ms") >= report["protocol"]["cut_ms"])["uid"])
    lists = pl.read_parquet(tmp_path / "out" / "candidates.parquet")
    assert set(lists["user_id"]) == there and {"skips", "new0"} <= there and "gone" not in there
    assert lists.group_by("user_id").agg(pl.col("rank").n_unique() == pl.len())["rank"].all(), "each list once"
    assert 20 <= report["cold"]["cases"] <= 21
    assert report["cold"]["recall"].keys() == report["frozen"]["recall"].keys()
    assert report["cold"]["recall"]["tower"]["50"]["value"] > 0
    code, out, _ = nextwatch("log.parquet", "--map", "user_id=uid", "--test-from", f"{cut_ms}", "--out", "out")
    assert code == 0 and "no watch yet: recall at" in out


def test_the_same_seed_gives_the_same_files(nextwatch, log, tmp_path):
    for name in ("one", "other"):
        assert nextwatch(log, "--map", "user_id=uid", "--out", name)[0] == 0
    for file in ("report.json", "report.html", "candidates.parquet"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes(), file


def test_a_log_in_any_order_without_watch_times_gives_each_row_as_a_positive(nextwatch, tmp_path):
    shuffled = small_log().drop("watch_s").rename({"uid": "user_id"}).sample(fraction=1, shuffle=True, seed=1)
    shuffled.write_csv(tmp_path / "log.csv")
    code, out, _ = nextwatch("log.csv", "--out", "out", "--json")
    assert code == 0 and json.loads(out)["protocol"]["positives"] == ROWS


def test_a_time_is_iso_8601_or_milliseconds(nextwatch, log):
    cut_ms = START_MS + 1_200_000
    for number, time in enumerate((f"{cut_ms}", "2023-11-14T22:33:20", "2023-11-15T06:33:20+08:00")):
        code, out, _ = nextwatch(log, "--map", "user_id=uid", "--test-from", time, "--out", f"{number}", "--json")
        assert code == 0
        assert cut_ms <= json.loads(out)["protocol"]["cut_ms"] < cut_ms + 5000
    assert read_time("2022-05-04") == 1_651_622_400_000


def test_a_person_reads_a_table(nextwatch, log):
    code, out, _ = nextwatch(log, "--map", "user_id=uid", "--out", "out")
    assert code == 0
    assert "frozen: recall at" in out and "EASE x recency" in out and "cases of" in out
    assert "out: report.html, report.json, candidates.parquet" in out


def test_als_is_named_where_it_is_left_out(nextwatch, log, monkeypatch):
    monkeypatch.setattr("models.evaluation.baseline_choice.als_is_installed", lambda: False)
    code, out, _ = nextwatch(log, "--map", "user_id=uid", "--out", "out")
    assert code == 0 and "ALS is left out: `implicit` is not installed (pip install 'nextwatch[bench]')" in out


def test_a_limited_ease_says_so(monkeypatch, nextwatch, log):
    monkeypatch.setattr("models.evaluation.baseline_choice.EASE_ITEMS", 10)
    code, out, _ = nextwatch(log, "--map", "user_id=uid", "--out", "out", "--json")
    notes = {each["name"]: each["note"] for each in json.loads(out)["recommenders"]}
    assert code == 0 and "10 most watched items only" in notes["EASE"] and "10 most" in notes["EASE x recency"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--test-from", "2001-01-01"], "--test-from 2001-01-01T00:00:00.000Z: no positive is before"),
        (["--test-from", "2031-01-01"], "--test-from 2031-01-01T00:00:00.000Z: no positive is at or after"),
        (["--test-from", "yesterday"], "--test-from is ISO 8601"),
        (["--test-from", "2023-11-15", "--test-fraction", ".1"], "--test-from or --test-fraction, and not both"),
        (["--test-fraction", "1"], "--test-fraction lies between 0 and 1"),
        (["--test-fraction", "0"], "--test-fraction lies between 0 and 1"),
        (["--test-fraction", "nan"], "--test-fraction lies between 0 and 1"),
        (["--validation-fraction", "2"], "--validation-fraction lies between 0 and 1"),
        (["--test-fraction", ".999"], "--validation-fraction"),
        (["--items", "no.csv"], "no.csv: no such file"),
        (["--map", "user_id"], "--map user_id: expected OURS=THEIRS"),
        (["--block", "0"], "--block"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_option_and_leaves_nothing(nextwatch, log, tmp_path, arguments, says):
    code, out, err = nextwatch(log, "--map", "user_id=uid", *arguments, "--out", "out")
    assert code == 2 and out == ""
    assert says in err and "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["log.parquet"]


def test_an_out_that_holds_something_else_is_refused_before_anything_is_read(nextwatch, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    code, _, err = nextwatch("there is no log.csv", "--out", "mine")
    assert code == 2
    assert err.startswith("error: --out mine: is not empty and holds no earlier backtest") and err.count("\n") == 1


def test_a_log_in_which_nobody_comes_back_is_refused(nextwatch, tmp_path):
    pl.DataFrame(
        {"user_id": range(500), "item_id": [n % 7 for n in range(500)], "event_ms": range(1000, 1500)}
    ).write_csv(tmp_path / "log.csv")
    code, _, err = nextwatch("log.csv", "--out", "out")
    assert code == 2 and "nobody to be asked" in err.splitlines()[-1]
