"""Settings are chosen without a look at the test, by the walk that the test will make."""

import numpy as np
import pytest

import models.evaluation.baseline_choice as choice
from models.evaluation.baseline_choice import Baselines
from models.evaluation.eval_queries import History, Stream
from models.evaluation.split import split, validation_history

CUT, ROWS, CATALOGUE = 800, 1000, 30


def stream_of(future_seed: int) -> Stream:
    rng = np.random.default_rng(2)
    users, items = rng.integers(0, 40, ROWS), (CATALOGUE * rng.random(ROWS) ** 2).astype(np.int64)
    later = np.random.default_rng(future_seed)
    users[CUT:], items[CUT:] = later.integers(0, 40, ROWS - CUT), later.integers(0, CATALOGUE, ROWS - CUT)
    return Stream(users, items, 1000 * np.arange(ROWS))


def baselines_of(stream: Stream, *, live: bool) -> Baselines:
    parts = split(History(stream), CUT, live=live)
    return Baselines(stream, parts, catalogue=CATALOGUE, validation_catalogue=CATALOGUE - 1, live=live, block=25)


@pytest.fixture(autouse=True)
def without_als(monkeypatch):
    monkeypatch.setattr(choice, "als_is_installed", lambda: False)


@pytest.mark.parametrize("live", [False, True])
def test_another_future_changes_no_setting_and_no_number_of_the_choice(live):
    one, other = (baselines_of(stream_of(seed), live=live).fit() for seed in (7, 8))
    assert [entrant.tried for entrant in one] == [entrant.tried for entrant in other]
    assert [entrant.settings for entrant in one] == [entrant.settings for entrant in other]
    assert sum(len(entrant.tried) for entrant in one) > 10


@pytest.mark.parametrize("live", [False, True])
def test_validation_builds_before_its_part_and_the_test_before_the_cut(live, monkeypatch):
    stream, built = stream_of(7), []
    baselines = baselines_of(stream, live=live)
    whole = choice.DecayedPopular.__init__

    def record(self, stream, cut, catalogue, **settings):
        built.append((len(stream), cut, catalogue))
        whole(self, stream, cut, catalogue, **settings)

    monkeypatch.setattr(choice.DecayedPopular, "__init__", record)
    baselines.fit()
    validation = split(History(stream), CUT, live=live).validation
    assert validation < CUT
    assert set(built) == {(CUT, validation, CATALOGUE - 1), (ROWS, CUT, CATALOGUE)}
    assert built.count((ROWS, CUT, CATALOGUE)) == 2, "decayed popularity, and the recency of EASE"


def test_settings_of_a_live_backtest_are_chosen_by_a_live_walk():
    stream = stream_of(7)
    parts = split(History(stream), CUT, live=False)
    past = validation_history(stream, parts)
    asked = {False: past.next_unseen(parts.validation), True: past.unseen_since(parts.validation)}
    known = {live: int((past.targets(queries) < CATALOGUE - 1).sum()) for live, queries in asked.items()}
    assert known[True] > known[False] > 0
    for live in (False, True):
        decayed = baselines_of(stream, live=live).fit()[2]
        assert {estimate.n for _, estimate in decayed.tried} == {known[live]}


def test_every_baseline_is_there_and_what_is_not_is_named():
    baselines = baselines_of(stream_of(7), live=False)
    names = [entrant.name for entrant in baselines.fit()]
    assert names == [
        "popular, last 2%", "popular, all time", "popular, decayed", "item-kNN", "EASE x recency", "EASE"
    ]  # fmt: skip
    assert list(baselines.left_out) == ["ALS"] and "nextwatch[bench]" in baselines.left_out["ALS"]


def test_without_times_nothing_follows_recency_and_what_is_left_out_is_named():
    stream = stream_of(7)
    parts = split(History(stream), CUT, live=False)
    baselines = Baselines(
        stream, parts, catalogue=CATALOGUE, validation_catalogue=CATALOGUE, live=False, timed=False, learn_until=50
    )
    found = baselines.fit()
    assert [entrant.name for entrant in found] == ["popular, all time", "item-kNN", "EASE"]
    assert baselines.left_out["popular, decayed; EASE x recency"] == "the log has an order and no times"
    counts = found[0].recommender.scores(History(stream).queries(History(stream).next_unseen(CUT)))
    assert counts[0].sum() == 50, "the test is learnt for from what is before `learn_until`"


def test_progress_ends_at_its_total():
    steps = []
    baselines_of(stream_of(7), live=False).fit(lambda *step: steps.append(step))
    assert steps[0] == ("baselines", 0, 5) and steps[-1] == ("baselines", 5, 5)


def test_settings_are_tried_on_a_bounded_number_of_users(monkeypatch):
    monkeypatch.setattr(choice, "VALIDATION_USERS", 5)
    tried = baselines_of(stream_of(7), live=False).fit()[2].tried
    assert {estimate.n for _, estimate in tried} <= {4, 5}  # one item may be unknown


def test_refits_become_rarer_as_the_log_grows(monkeypatch):
    monkeypatch.setattr(choice, "REFIT_EVENTS", 10)
    frozen, live = (baselines_of(stream_of(7), live=mode).fit()[3].settings for mode in (False, True))
    assert (frozen["refit_events"], live["refit_events"]) == (None, 16)  # 2 % of 800
