"""The ranker of a release: what it is measured on, and retrieval scores of a model that had not seen the rows."""

from functools import partial

import numpy as np
import polars as pl
import pytest

from models.ranking.features import numbers_of
from models.ranking.impression_log import ImpressionLog
from models.ranking.item_statistics import ItemStatistics
from models.ranking.ranker import Ranker
from models.ranking.ranker_release import (
    LEAST_JUDGED,
    Served,
    UnseenScores,
    chosen_cap_s,
    learn_from_served,
    report_metrics,
)
from models.ranking.ranking_batch import HISTORY
from models.ranking.ranking_evaluation import predict
from models.ranking.ranking_examples import CAP_S, MOST_CAP_S, RankingExamples, cap_of
from models.release.bundle import Bundle
from models.retrieval.candidate_learning import learn_candidates
from tests.unit.models.samples import (
    RANKER,
    SETTINGS,
    START_MS,
    Viewer,
    Watch,
    scratch,
    small_exposures,
    small_items,
    small_log,
    small_source,
)

ROWS = 1200


@pytest.fixture(scope="module")
def exposures() -> ImpressionLog:
    return small_exposures(small_log(ROWS, users=20, step_ms=60_000, seed=4))


@pytest.fixture(scope="module")
def examples(exposures: ImpressionLog) -> RankingExamples:
    return exposures.examples("all")


def test_a_retrieval_score_is_given_only_to_rows_that_the_model_has_not_seen(bundle: Bundle, exposures: ImpressionLog):
    rows, since = np.arange(ROWS), 900
    score, best, rank, found = UnseenScores(bundle.model, exposures, since)(rows, np.asarray(exposures.pages[:ROWS]))
    for values in (score, best, rank):
        assert np.isnan(values[:since]).all()
        assert np.isfinite(values[since:]).all()
    assert not found[:since].any() and found[since:].all(), "all are among so few candidates"
    assert (score[since:] <= best[since:]).all()
    assert rank[since:].min() >= 1
    assert rank[since:].max() <= len(bundle.model.item_ids)
    completed = np.asarray(exposures.log.completed[since:])
    assert score[since:][completed].mean() > score[since:][~completed].mean(), "it knows what channel a viewer likes"


def test_the_place_is_the_one_among_the_candidates_and_what_was_watched_is_none(
    bundle: Bundle, exposures: ImpressionLog
):
    """Against all scores of one page, one by one; who is behind all candidates stands where the last of them does."""
    rows, most = np.arange(300, 330), 8
    asked, log = np.asarray(exposures.pages[rows]), exposures.log
    score, best, rank, found = UnseenScores(bundle.model, exposures, 0, most)(rows, asked)
    vectors = bundle.model.item_vectors()
    assert found.any() and not found.all()
    for at, row in enumerate(rows.tolist()):
        before = [earlier for earlier in range(asked[at]) if log.users[earlier] == log.users[row]]
        completed = [int(exposures.items(np.array([each]))[0]) for each in before if log.completed[each]][-HISTORY:]
        history = np.full((1, HISTORY), -1)
        history[0, HISTORY - len(completed) :] = completed
        user = bundle.model.encode(bundle.model.encoder.queries_of(history))[0]
        scores = vectors[:, :-1] @ user + vectors[:, -1]
        own = int(exposures.items(np.array([row]))[0])
        watched = set(exposures.items(np.array(before)).tolist())
        others = [scores[item] for item in range(len(vectors)) if item not in watched]
        assert score[at] == pytest.approx(scores[own], rel=1e-4)
        assert best[at] == pytest.approx(max([*others, scores[own]]), rel=1e-4)
        place = 1 + sum(other > scores[own] for other in others)
        assert (rank[at], found[at]) == (min(place, most), place <= most)


def test_an_item_that_the_model_does_not_know_is_passed_over_in_what_a_viewer_has_watched():
    """The twin of a trial knows the items of before its cut, and later ones are in the histories of its requests."""
    frame, until = small_log(ROWS, users=20, step_ms=60_000, seed=4), 30
    undated = small_items().with_columns(published_ms=pl.lit(START_MS + 60_000 * ROWS))  # known from their first watch
    exposures, source = small_exposures(frame, undated), small_source(frame, undated, skips=5)
    known, settings = source.known_at(until), SETTINGS.model_copy(update={"epochs": 1})
    model = learn_candidates(source, settings, until=until, valid_from=None, items=known).model
    rows = np.arange(100, ROWS)
    asked, is_known = np.asarray(exposures.pages[rows]), exposures.items(rows) < known
    seen = exposures.completed_before(asked, HISTORY), exposures.skipped_before(asked, HISTORY)
    assert is_known.any() and all(watched.max() >= known for watched in seen)
    score, best, rank, found = UnseenScores(model, exposures, 0)(rows, asked)
    for values in (score, rank):
        assert np.isfinite(values[is_known]).all() and np.isnan(values[~is_known]).all()
    np.testing.assert_array_equal(found, is_known)
    assert np.isfinite(best).all()


def test_the_score_is_the_one_that_serving_gives_a_user_with_the_same_skips(exposures: ImpressionLog):
    until, items = len(exposures.training_set.dataset), len(exposures.catalogue)
    source = small_source(small_log(ROWS, users=20, step_ms=60_000, seed=4), skips=5)
    settings = SETTINGS.model_copy(update={"epochs": 1})
    model = learn_candidates(source, settings, until=until, valid_from=None, items=items).model
    assert source.catalogue.item_ids == exposures.catalogue.item_ids and model.encoder.tower.shape.skips == 5
    rows = np.arange(700, 720)
    asked, log = np.asarray(exposures.pages[rows]), exposures.log
    score = UnseenScores(model, exposures, 0)(rows, asked).score
    for at, row in enumerate(rows.tolist()):
        before = [earlier for earlier in range(asked[at]) if log.users[earlier] == log.users[row]]
        watches = [
            Watch(log.item_ids[log.items[each]], watch_s=log.watch_s[each], completed=bool(log.completed[each]))
            for each in before
        ]
        user = model.user_vectors([Viewer(watches)], 0)[0]
        own = exposures.items(np.array([row]))
        assert score[at] == pytest.approx(float(model.item_vectors(own)[0] @ user), rel=1e-4)


def test_the_report_is_of_unseen_rows_beside_the_items_mean(bundle: Bundle, examples: RankingExamples):
    metrics = report_metrics(bundle.ranker, examples)
    assert metrics["ranker_rows"] == ROWS
    assert metrics["ranker_weighted_loss"] < metrics["item_mean_weighted_loss"]
    assert metrics["ranker_mae_s"] < metrics["item_mean_mae_s"]
    assert 0.5 < metrics["ranker_xauc"] <= 1
    assert len([name for name in metrics if name.startswith("ranker_calibration_decile_")]) == 10
    assert all(np.isfinite(value) for value in metrics.values())


def test_there_is_no_report_of_an_untrained_ranker_or_of_too_few_rows(bundle: Bundle, examples: RankingExamples):
    assert report_metrics(Ranker(), examples) == {}
    assert report_metrics(bundle.ranker, examples.take(np.arange(LEAST_JUDGED - 1))) == {}


def test_what_was_served_is_learnt_whole_and_measured_on_its_newest_tenth(examples: RankingExamples):
    told: list[tuple[str, int, int]] = []
    settings, known = RANKER.model_copy(update={"epochs": 2}), ItemStatistics(5.0)
    trained = learn_from_served(
        Served(examples, known), scratch(), settings=settings, progress=lambda *step: told.append(step)
    )
    assert trained.ranker.trained
    assert trained.metrics["ranker_rows"] == pytest.approx(ROWS / 10, abs=1)
    assert trained.statistics is known, "what its examples were fed with goes on being fed"
    assert told[-1] == ("ranker", 2 * ROWS, 2 * ROWS)


def test_too_few_impressions_since_the_live_release_are_measured_with_those_it_has_learnt(examples: RankingExamples):
    at_ms = np.sort(np.asarray(examples.at_ms))
    quick = RANKER.model_copy(update={"epochs": 1})
    for since, rows, is_new in ((LEAST_JUDGED, LEAST_JUDGED, True), (LEAST_JUDGED - 1, ROWS / 10, False)):
        trained = learn_from_served(
            Served(examples, ItemStatistics(5.0)),
            scratch(),
            settings=quick,
            since_ms=int(at_ms[-since]),
            progress=lambda *_: None,
        )
        assert (trained.metrics["ranker_rows"], trained.is_new) == (pytest.approx(rows, abs=1), is_new)


def test_served_examples_that_are_too_few_train_nothing_and_no_examples_are_no_error(examples: RankingExamples):
    for few in (0, 60):
        trained = learn_from_served(
            Served(examples.take(np.arange(few)), ItemStatistics(5.0)),
            scratch(),
            settings=RANKER,
            progress=lambda *step: None,
        )
        assert not trained.ranker.trained
        assert trained.metrics == {}


def test_the_bundle_tells_how_its_ranker_did_on_rows_that_a_fit_had_not_seen(bundle: Bundle):
    metrics = bundle.manifest.metrics
    assert metrics["ranker_mae_s"] < metrics["item_mean_mae_s"]
    assert 0.5 < metrics["ranker_calibration"] < 2
    columns = [feature.name for feature in numbers_of("impression")]
    assert np.isfinite(bundle.ranker.quantiles["impression"].points[columns.index("retrieval_rank")]).all()


def test_the_data_choose_a_cap_of_twice_what_next_to_none_of_the_watches_reach():
    film_s = np.concatenate([np.zeros(9_000), np.full(9_989, 40.0), np.full(11, 5_400.0)]).astype(np.float32)
    assert cap_of(film_s) == 10_800, "one watch of a thousand is longer; what was not watched does not count"
    assert cap_of(np.full(10_000, 7.3, np.float32)) == 15
    assert cap_of(np.zeros(30_000, np.float32)) == cap_of(np.full(9_000, 7.3, np.float32)) == CAP_S, "too few to tell"
    assert cap_of(np.full(10_000, 1e9, np.float32)) == MOST_CAP_S


def test_the_cap_is_as_it_is_set_or_chosen_and_a_warm_start_keeps_one_that_is_about_the_same(bundle: Bundle):
    target_s = np.full(10_000, 100.0, np.float32)
    chosen = partial(chosen_cap_s, RANKER)
    assert (chosen(None, target_s), chosen(Ranker(), target_s)) == (200, 200)
    assert chosen_cap_s(RANKER.model_copy(update={"cap_s": 55.0}), bundle.ranker, target_s) == 55
    own = bundle.ranker.cap_s
    assert own == CAP_S, "its log is short"
    for times, kept in ((1.2, True), (0.85, True), (1.4, False), (0.7, False)):
        assert (chosen(bundle.ranker, np.full(10_000, own * times / 2, np.float32)) == own) == kept


def test_what_was_served_is_learnt_up_to_a_cap_of_its_own(examples: RankingExamples):
    release = learn_from_served(
        Served(examples, ItemStatistics(5.0)),
        scratch(),
        settings=RANKER.model_copy(update={"epochs": 1, "cap_s": 20.0}),
        progress=lambda *step: None,
    )
    assert np.asarray(examples.target_s).max() > 20
    assert release.unseen is not None and np.asarray(release.unseen.target_s).max() == 20
    assert release.ranker.cap_s == 20 == release.measured.cap_s
    assert predict(release.ranker, examples).max() <= 20
