"""The document, the page and the directory of a backtest, on a small world whose numbers can be counted."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest

from infra.backtest.curves import age_label, draw_curves, history_label
from infra.backtest.files import CandidateLists, check_out, new_directory, write_live, write_report
from infra.backtest.page import render_page
from infra.backtest.report import CUTOFFS, Grounds, build_report, finite
from models.evaluation.backtest import Entrant, walk_frozen, walk_live
from models.evaluation.baselines import DecayedPopular, Popular
from models.evaluation.comparison import Estimate, Interval, recall
from models.evaluation.eval_queries import History, Stream
from models.evaluation.order_test import OrderTest, order_test
from models.evaluation.split import BacktestError

CUT, CATALOGUE, ROWS = 200, 20, 300
ORDER = OrderTest(Estimate(0.2, 0.01, 90), Estimate(0.1, 0.01, 90), Interval(0.1, 0.012, 0.08, 0.12))
USER_IDS, ITEM_IDS = pl.Series([f"u{n}" for n in range(16)]), pl.Series([f"i{n}" for n in range(25)])
PROTOCOL = {
    "log": "<b>log</b>.parquet", "items_file": None, "seed": 1, "completed_s": 18.0, "live": True, "block": 25,
    "first_ms": 0, "validation_ms": 180 * 60_000, "cut_ms": CUT * 60_000, "last_ms": ROWS * 60_000,
    "positives": ROWS, "positives_before": CUT, "validation_positives": 20, "test_positives": 100,
    "users": 16, "users_before": 15, "items": 25, "items_known": CATALOGUE,
}  # fmt: skip


@pytest.fixture(scope="module")
def stream():
    rng = np.random.default_rng(4)
    items = (20 * rng.random(ROWS) ** 2).astype(np.int64)
    items[CUT + 5 :: 10] = 22  # unknown at the cut
    users = rng.integers(0, 15, ROWS)
    users[[CUT + 2, CUT + 3]] = 15  # comes after it
    return Stream(users, items, 60_000 * np.arange(ROWS))


@pytest.fixture(scope="module")
def walked(stream):
    """entrants, grounds, frozen walk with its lists, live walk"""
    entrants = [
        Entrant(Popular(stream, CUT, CATALOGUE, window=50, name="ours"), {"window_events": 50}),
        Entrant(DecayedPopular(stream, CUT, CATALOGUE, half_life=20), {"half_life": 20}, note="a <note>"),
    ]
    history, lists = History(stream), []
    recommenders = [entrant.recommender for entrant in entrants]
    frozen = walk_frozen(recommenders, history, cut=CUT, catalogue=CATALOGUE, lists=lambda *batch: lists.append(batch))
    live = walk_live(recommenders, history, cut=CUT, catalogue=CATALOGUE, block=25)
    return entrants, Grounds(history, np.zeros(25, np.int64), CUT, CATALOGUE), frozen, lists, live


@pytest.fixture(scope="module")
def cold(walked):
    """The walk of a user who came after the cut."""
    entrants, grounds, *_ = walked
    asked = grounds.history.first_ever(CUT)
    recommenders = [entrant.recommender for entrant in entrants]
    return walk_frozen(recommenders, grounds.history, cut=CUT, catalogue=CATALOGUE, asked=asked, coverage=False)


@pytest.fixture(scope="module")
def report(walked, cold):
    entrants, grounds, frozen, _, live = walked
    return build_report(
        PROTOCOL, entrants=entrants, left_out={"ALS": "not <installed>"}, grounds=grounds, frozen=frozen, cold=cold,
        live=live, parts=frozen, ours=["ours"], order=ORDER,
    )  # fmt: skip


@pytest.fixture(scope="module")
def page(report):
    return render_page(report)


def estimates(value):
    """Every number of the document that is a mean."""
    if isinstance(value, dict):
        if {"value", "n"} <= value.keys():
            yield value
        for each in value.values():
            yield from estimates(each)
    elif isinstance(value, list):
        for each in value:
            yield from estimates(each)


def test_every_number_has_its_n_and_standard_error(report):
    found = list(estimates(report))
    assert len(found) > 100
    assert all("se" in each and each["n"] > 0 for each in found)


def test_recall_is_that_of_the_ranks(report, walked):
    _, _, frozen, _, live = walked
    for part, walk in ((report["frozen"], frozen), (report["live"], live)):
        for name, ranks in walk.ranks.items():
            for k in CUTOFFS:
                found = part["recall"][name][str(k)]
                assert found["value"] == pytest.approx(((ranks >= 0) & (ranks < k)).mean())
                assert found["n"] == len(walk) == part["cases"]
                assert found["se"] == recall(ranks, k, walk.asked.users).se


def test_who_had_watched_nothing_has_figures_apart(report, cold, page):
    assert report["cold"]["cases"] == report["cold"]["users"] == 1
    for name, ranks in cold.ranks.items():
        assert report["cold"]["recall"][name]["10"]["value"] == float(0 <= ranks[0] < 10)
    assert {each["theirs"] for each in report["cold"]["differences"]} == {"popular, decayed"}
    assert "users without a watch before the cut" in page and "1 cases of 1 users" in page


def test_unknown_items_are_misses_and_are_counted(report, walked):
    live = walked[4]
    unknown = int((live.ranks["ours"] < 0).sum())
    assert unknown > 0
    assert report["live"]["unknown_items"] == unknown
    assert report["live"]["recall"]["ours"]["500"]["value"] == pytest.approx(1 - unknown / len(live))


def test_differences_are_paired_and_clustered_by_user(report):
    live = [each for each in report["live"]["differences"] if each["k"] == 10]
    assert [(each["ours"], each["theirs"]) for each in live] == [("ours", "popular, decayed")]
    reached = report["live"]["recall"]
    assert live[0]["value"] == pytest.approx(
        reached["ours"]["10"]["value"] - reached["popular, decayed"]["10"]["value"]
    )
    assert live[0]["clusters"] == report["live"]["users"] < report["live"]["cases"]
    assert live[0]["significant"] == (live[0]["low"] > 0 or live[0]["high"] < 0)


def test_slices_cover_every_case_once(report):
    for part in (report["frozen"], report["live"]):
        for name in ("by_history", "by_time_ms"):
            assert sum(each["n"] for each in part[name]["ours"]["10"]) == part["cases"]
        ages = part["by_item_age_s"]["ours"]["10"]
        assert sum(each["n"] for each in ages) == part["cases"] - part["unknown_items"]


def test_age_is_the_time_from_birth_to_the_watch(report, walked):
    _, grounds, _, _, live = walked
    known = grounds.history.targets(live.asked) < CATALOGUE
    oldest_s = 60 * live.asked.watched[known].max()  # all were born at 0
    assert report["live"]["by_item_age_s"]["ours"]["10"][-1]["high"] == oldest_s


def test_a_number_that_is_none_is_null_and_never_nan():
    assert finite({"a": [float("nan"), 1.5, (float("inf"),)], "b": "NaN"}) == {"a": [None, 1.5, [None]], "b": "NaN"}


def test_the_page_is_one_file_that_fetches_nothing_and_runs_nothing(page):
    assert not re.search(r"<script|<link|<img|<iframe|@import|src=|javascript:|onload", page, re.IGNORECASE)
    addresses = set(re.findall(r"https?://[^\s'\"<>)]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}, "names of XML, not addresses"
    assert not re.search(r"url\((?!#)", page) and not re.search(r"href=[\"'](?!#)", page)


def test_the_page_says_how_it_was_measured(report, page):
    for fact in ("1970-01-01T03:20:00.000Z", "20 of 25", "counts as a miss", "200 of 15 users", "left out"):
        assert fact in page, fact
    assert f"{report['frozen']['cases']:,} cases" in page and f"{report['live']['cases']:,} cases" in page


def test_the_page_says_what_order_is_worth(report, page):
    assert report["order"]["sequential"] and report["order"]["lost"] == pytest.approx(0.5)
    assert "Does order tell anything?" in page and report["order"]["advice"] in page
    assert "+.100 <span class='quiet'>[+.080, +.120]" in page


def test_what_a_log_says_is_text_on_the_page(page):
    assert "<b>log</b>" not in page and "&lt;b&gt;log&lt;/b&gt;.parquet" in page
    assert "a &lt;note&gt;" in page and "not &lt;installed&gt;" in page


def test_the_same_document_gives_the_same_page(report, page):
    assert page == render_page(json.loads(json.dumps(report)))


def test_every_curve_is_svg(report):
    curves = draw_curves(report["frozen"])
    assert len(curves) == 5 and len(draw_curves(report["live"])) == 4  # nothing is listed live
    for svg in curves:
        assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
        assert ">ours<" in svg, "labels are text"


def test_labels_have_the_unit_of_their_end():
    assert age_label({"low": 1800, "high": 7200}) == "0.5-2 h"
    assert age_label({"low": 0, "high": 0.5}) == "0-0.5 s"
    assert [history_label({"low": low, "high": high}) for low, high in ((1, 2), (2, 5), (100, None))] == [
        "1", "2-4", "100+"
    ]  # fmt: skip


def test_a_walk_without_cases_is_a_page_too(stream, walked):
    entrants, grounds, *_ = walked
    nobody = walk_frozen([each.recommender for each in entrants], grounds.history, cut=ROWS, catalogue=CATALOGUE)
    report = build_report(
        PROTOCOL, entrants=entrants, left_out={}, grounds=grounds, frozen=nobody, cold=nobody, live=None,
        parts=nobody, ours=["ours"], order=order_test(stream, nobody.asked, cut=ROWS, catalogue=CATALOGUE, seed=1),
    )  # fmt: skip
    assert "0 cases" in render_page(report)
    json.dumps(report, allow_nan=False)


def test_candidates_are_ranked_from_one_without_what_was_watched(tmp_path, stream, walked):
    lists = CandidateLists(tmp_path, USER_IDS, ITEM_IDS)
    for batch in walked[3]:
        lists.add(*batch)
    lists.close()
    frame = pl.read_parquet(tmp_path / "candidates.parquet")
    assert frame.columns == ["user_id", "item_id", "rank", "score"]
    for (user,), own in frame.group_by("user_id"):
        code = int(user[1:])
        watched = set(ITEM_IDS.gather(np.unique(stream.items[:CUT][stream.users[:CUT] == code])))
        assert own["rank"].to_list() == list(range(1, own.height + 1))
        assert own["score"].is_sorted(descending=True)
        assert set(own["item_id"]) == set(ITEM_IDS[:CATALOGUE]) - watched
    assert not (tmp_path / "candidates.parts").exists()


def test_recall_can_be_worked_out_from_the_candidates_alone(tmp_path, stream, walked):
    """Without equal scores a candidate's rank is the rank that was judged."""
    grounds = walked[1]
    lists = CandidateLists(tmp_path, USER_IDS, ITEM_IDS)
    recommender = DecayedPopular(stream, CUT, CATALOGUE, half_life=19.7)
    walk = walk_frozen([recommender], grounds.history, cut=CUT, catalogue=CATALOGUE, lists=lists.add)
    lists.close()
    targets = pl.DataFrame(
        {"user_id": USER_IDS.gather(walk.asked.users), "item_id": ITEM_IDS.gather(grounds.history.targets(walk.asked))}
    )
    found = targets.join(pl.read_parquet(tmp_path / "candidates.parquet"), on=["user_id", "item_id"], how="left")
    ranks = found.sort("user_id")["rank"].fill_null(0).to_numpy() - 1
    order = np.argsort(USER_IDS.gather(walk.asked.users).to_numpy())
    assert ranks.tolist() == walk.ranks[recommender.name][order].tolist()


def test_live_ranks_count_from_one_and_are_null_for_unknown_items(tmp_path, stream, walked):
    live = walked[4]
    write_live(tmp_path / "live.parquet", live, "ours", stream, (USER_IDS, ITEM_IDS))
    frame = pl.read_parquet(tmp_path / "live.parquet")
    assert frame.columns == ["user_id", "item_id", "event_ms", "rank"]
    assert frame.height == len(live) and frame["event_ms"].is_sorted()
    unknown = frame.filter(pl.col("item_id") == "i22")
    assert unknown.height == frame["rank"].null_count() > 0
    assert unknown["rank"].null_count() == unknown.height
    assert frame["rank"].min() >= 1


def test_a_directory_takes_its_place_only_when_it_is_whole(tmp_path, report):
    out = tmp_path / "out"
    with pytest.raises(RuntimeError), new_directory(out) as made:
        (made / "half").touch()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with new_directory(out) as made:
        write_report(made, report)
        assert not out.exists()
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "report.json"]
    assert list(tmp_path.iterdir()) == [out]


def test_an_earlier_backtest_is_replaced_as_a_whole_and_survives_a_failure(tmp_path, report):
    out = tmp_path / "out"
    with new_directory(out) as made:
        write_report(made, report)
        (made / "live.parquet").touch()
    with pytest.raises(RuntimeError), new_directory(out):
        raise RuntimeError
    assert (out / "live.parquet").exists()
    with new_directory(out) as made:
        write_report(made, report)
    assert not (out / "live.parquet").exists()
    assert list(tmp_path.iterdir()) == [out]


def test_a_directory_with_anything_else_in_it_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(BacktestError, match=r"--out .* is not empty and holds no earlier backtest"):
        check_out(tmp_path)
    (tmp_path / "report.json").write_text('{"kind": "another"}')
    with pytest.raises(BacktestError, match="--out"), new_directory(tmp_path):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    with pytest.raises(BacktestError, match="is not a directory"):
        check_out(tmp_path / "thesis.txt")


def test_what_was_put_into_the_directory_meanwhile_is_not_lost(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(BacktestError, match="is not empty"), new_directory(out):
        out.mkdir()
        (out / "thesis.txt").write_text("mine")
    assert (out / "thesis.txt").read_text() == "mine"


def test_an_empty_or_absent_directory_may_be_used(tmp_path):
    check_out(tmp_path)
    check_out(tmp_path / "new" / "deeper")
    with new_directory(tmp_path / "new" / "deeper"):
        pass
    assert (tmp_path / "new" / "deeper").is_dir()
