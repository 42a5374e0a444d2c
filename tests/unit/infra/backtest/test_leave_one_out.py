"""`nextwatch backtest --protocol leave-one-out`: from a log with an order only to its directory, and its refusals."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from infra.backtest.held_out_report import figures_of
from infra.backtest.leave_one_out import UNTIMED, fit, select
from infra.platform.settings import Settings
from models.evaluation import baseline_choice
from models.evaluation.leave_one_out import hold_out
from models.logs.sequences import Sequences, read_sequences
from tests.unit.infra.command import commands
from tests.unit.models.samples import SETTINGS

USERS, WATCHES, ITEMS = 120, 9, 60
MODEL = SETTINGS.model_copy(
    update={"encoder": "recent", "tied": True, "linear_order": True, "linear_dim": 8, "epochs": 6, "example_age": True}
)


def small_log() -> str:
    """After each item come three others only."""
    rng = np.random.default_rng(3)
    following, walks = rng.integers(0, ITEMS, (ITEMS, 3)), [rng.integers(0, ITEMS, USERS)]
    while len(walks) < WATCHES:
        walks.append(following[walks[-1], rng.integers(0, 3, USERS)])
    return "".join(f"u{n} {' '.join(f'i{item}' for item in walk)}\n" for n, walk in enumerate(zip(*walks, strict=True)))


@pytest.fixture
def nextwatch(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("KNN", "EASE"):
        monkeypatch.setattr(baseline_choice, name, getattr(baseline_choice, name)[:2])
    monkeypatch.setattr(baseline_choice, "als_is_installed", lambda: False)
    (tmp_path / "log.txt").write_text(small_log())
    command = ("backtest", "--protocol", "leave-one-out")
    return commands(monkeypatch, capsys, *command, settings=Settings(model=MODEL))


def test_a_log_without_times_is_judged_and_says_what_stood_aside(nextwatch, tmp_path):
    code, out, err = nextwatch("log.txt", "--seeds", "2", "--out", "out", "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"candidates.parquet", "report.json", "report.html"}
    protocol = report["protocol"]
    assert protocol["seen"] == "left out" and protocol["seeds"] == [1, 2]
    assert protocol["cases"] + protocol["repeats"] == USERS == protocol["validation"]
    assert protocol["learnt_from"] == USERS * (WATCHES - 2)
    names = ["tower", "tower, learnt from validation too", "popular, all time", "item-kNN", "EASE", "in order"]
    assert list(report["figures"]) == names == [each["name"] for each in report["recommenders"]]
    ours = report["figures"]["tower"]
    assert ours["recall@10"]["seeds"] == 2 and ours["recall@10"]["between_seeds"] is not None
    assert ours["recall@10"]["value"] > 2 * report["figures"]["popular, all time"]["recall@10"]["value"]
    assert ours["recall@5"]["value"] <= ours["recall@10"]["value"] <= ours["recall@20"]["value"]
    assert "model.example_age" in report["stands_aside"]
    assert report["recommenders"][0]["settings"]["example_age"] is False
    assert report["order"]["sequential"] and report["settings_by"]["sequential"]
    assert report["settings_by"]["in_order"] != report["order"]["in_order"], "of other watches"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "stands aside: model.example_age" in page and report["order"]["advice"] in page
    assert "those of a log in order: on validation" in page


def test_candidates_are_of_the_whole_catalogue_without_what_was_watched(nextwatch, tmp_path):
    assert nextwatch("log.txt", "--out", "out", "--json").code == 0
    lists = pl.read_parquet(tmp_path / "out" / "candidates.parquet")
    known = {item for line in small_log().splitlines() for item in line.split()[1:]}
    watched = {line.split()[0]: line.split()[1:-1] for line in small_log().splitlines()}
    for user, items in lists.group_by("user_id").agg("item_id").iter_rows():
        assert {*items} == known - {*watched[user]} and len(items) == len({*items})


def test_a_log_with_times_is_judged_by_its_order_alone(nextwatch, tmp_path):
    rows = [
        {"user_id": user, "item_id": item, "event_ms": 1000 * place}
        for user, *items in map(str.split, small_log().splitlines())
        for place, item in enumerate(items)
    ]
    pl.DataFrame(rows).write_parquet(tmp_path / "log.parquet")
    reports = [json.loads(nextwatch(log, "--out", "out", "--json").out) for log in ("log.txt", "log.parquet")]
    assert reports[1]["protocol"] == reports[0]["protocol"] | {"log": "log.parquet"}


def test_a_person_reads_a_table_and_what_order_is_worth(nextwatch):
    code, out, _ = nextwatch("log.txt", "--seeds", "2", "--out", "out")
    assert code == 0
    assert "leave one out" in out and "ndcg@10" in out and "EASE" in out
    assert "standard deviation of recall@10 between 2 seeds" in out and "Order tells" in out
    assert "settings that nobody has set are those of a log in order" in out
    assert "out: report.html, report.json, candidates.parquet" in out


def test_epochs_and_weights_are_chosen_by_the_recall_that_is_judged(tmp_path: Path):
    (tmp_path / "log.txt").write_text(small_log())
    selection = select(hold_out(read_sequences(tmp_path / "log.txt")), MODEL.model_copy(update=UNTIMED))
    assert selection.quality == selection.metrics["recall@10"] > selection.metrics["popular_recall@10"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--live"], "--live are of --protocol time"),
        (["--test-fraction", ".2"], "--protocol leave-one-out knows no times"),
        (["--items", "items.csv"], "no catalogue"),
        (["--stage", "ranking"], "--stage ranking"),
        (["--protocol", "time", "--seeds", "2"], "--seeds is of --protocol leave-one-out"),
    ],
)
def test_what_needs_times_is_refused(nextwatch, tmp_path, arguments, says):
    code, out, err = nextwatch("log.txt", "--out", "out", *arguments)
    assert code == 2 and says in " ".join((out + err).replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_an_error_names_the_line_and_leaves_nothing(nextwatch, tmp_path):
    (tmp_path / "log.txt").write_text("a 1 2 3\nb\n")
    code, out, err = nextwatch("log.txt", "--out", "out")
    assert code == 2 and "log.txt: line 2: needs a user and at least one item" in out + err
    assert [path.name for path in tmp_path.iterdir()] == ["log.txt"]


def test_another_last_item_changes_nothing_of_what_is_learnt_and_chosen(tmp_path: Path):
    (tmp_path / "log.txt").write_text(small_log())
    one = read_sequences(tmp_path / "log.txt")
    items = one.items.copy()
    items[WATCHES - 1 :: WATCHES] = np.random.default_rng(2).permutation(items[WATCHES - 1 :: WATCHES])
    model = MODEL.model_copy(update=UNTIMED)
    found = []
    for sequences in (one, Sequences(one.user_ids, one.item_ids, one.users, items)):
        held = hold_out(sequences)
        selection = select(held, model)
        found.append((selection, fit(held, model, selection).item_vectors()))
    assert found[0][0] == found[1][0]
    np.testing.assert_array_equal(found[0][1], found[1][1])


def test_figures_have_the_error_over_users_and_the_spread_between_seeds():
    found = figures_of([np.array([0, 7, 30, 3]), np.array([0, 30, 30, 3])])
    recall = found["recall@10"]
    assert recall["value"] == pytest.approx((0.75 + 0.5) / 2) and recall["n"] == 4
    assert recall["between_seeds"] == pytest.approx(np.std([0.75, 0.5], ddof=1))
    assert recall["se"] == pytest.approx(np.std([1, 0.5, 0, 1], ddof=1) / 2)
    gains = [1 + 1 / np.log2(9) + 1 / np.log2(5), 1 + 1 / np.log2(5)]
    assert found["ndcg@10"]["value"] == pytest.approx(np.mean(gains) / 4)
    assert figures_of([np.array([0, 1])])["recall@5"]["between_seeds"] is None
