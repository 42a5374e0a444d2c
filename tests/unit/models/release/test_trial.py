"""A release on trial: its twin knows nothing of what it is asked, and what is spoilt is found by numbers."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest

from models.catalogue.context import ContextVocabulary
from models.evaluation.eval_queries import History, Stream
from models.evaluation.gate import Finding, Verdict
from models.logs.examples import queries_of
from models.logs.stored_log import store_frame
from models.ranking.ranker import Ranker
from models.release.asked_model import Asked, renumbered
from models.release.bundle import Bundle, read_bundle
from models.release.training import Trained, train_with_trial
from models.release.trial import (
    ITEM_MEAN,
    KNOWN_IMPRESSIONS,
    LIVE,
    POPULAR,
    TWIN,
    Rival,
    Trial,
    choose_cut,
    history_of,
    judge_ranker,
    judge_release,
)
from models.retrieval import candidate_learning
from models.retrieval.candidate_learning import learn_candidates
from models.retrieval.candidates import CandidateModel
from tests.unit.models.samples import RANKER, SETTINGS, START_MS, small_items, small_log, small_source, taste_log

ROWS, USERS, ITEMS = 4000, 250, 200
RECALLS = ("recall@10", "recall@100")
LIVE_ROWS = 3750  # what the live release has learnt
TOWERS, RANKERS = SETTINGS.model_copy(update={"epochs": 3}), RANKER.model_copy(update={"epochs": 1})


def frame() -> pl.DataFrame:
    return taste_log(ROWS, USERS, ITEMS)


def rival_of(bundle: Bundle) -> Rival:
    learnt_ms = bundle.manifest.learnt_ms + 1
    return Rival(bundle.manifest.version, learnt_ms, learnt_ms, bundle.model, bundle.ranker, why="")


class Scene(NamedTuple):
    """A live release of the log's beginning, and a new one of all of it with its trial."""

    live: Rival
    new: Trained
    final: tuple[CandidateModel, Ranker]

    @property
    def trial(self) -> Trial:
        assert self.new.trial is not None
        return self.new.trial

    def judge(
        self, trial: Trial | None = None, rival: Rival | None = None, final: CandidateModel | None = None
    ) -> Verdict:
        judged = (final or self.final[0], self.final[1])
        return judge_release(trial or self.trial, judged, rival or self.live, seed=1)


def options(directory: Path, number: int) -> dict:
    return {
        "settings": TOWERS,
        "ranker": RANKERS,
        "bundles_dir": directory,
        "created_ms": START_MS + 10**9 + number,
        "offsets": {},
    }


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    directory = tmp_path_factory.mktemp("bundles")
    past = store_frame(frame().head(LIVE_ROWS), tmp_path_factory.mktemp("past"), completed_s=18.0)
    learnt_ms = int(past.event_ms[-1])
    trained = train_with_trial(past, small_items(ITEMS), learnt_ms=learnt_ms, measure=False, **options(directory, 1))
    old = trained.manifest
    live = rival_of(read_bundle(directory / old.version))
    log = store_frame(frame(), tmp_path_factory.mktemp("log"), completed_s=18.0)
    new = train_with_trial(log, small_items(ITEMS), rival=live, **options(directory, 2))
    bundle = read_bundle(directory / new.manifest.version)
    return Scene(live, new, (bundle.model, bundle.ranker))


def shuffled(model: CandidateModel) -> CandidateModel:
    """The same with its items' vectors exchanged for one another's."""
    order = np.random.default_rng(1).permutation(len(model.vectors))
    return CandidateModel(
        model.item_ids,
        model.encoder,
        vectors=model.vectors[order],
        bias=model.bias[order] + 3 * np.arange(len(order), dtype=np.float32) % 7,
        query_rows=model.query_rows,
        popularity=model.popularity,
    )


def turned_over(model: CandidateModel) -> CandidateModel:
    """The same with what is liked last, and what is popular before it."""
    share = model.popularity.log_share()
    return CandidateModel(
        model.item_ids,
        model.encoder,
        vectors=-3 * model.vectors,
        bias=-3 * model.bias - 2 * share,
        query_rows=model.query_rows,
        popularity=model.popularity,
    )


def of(verdict: Verdict, metric: str, against: str) -> Finding:
    """The last finding of a metric: of the twin, or of what would go live, which comes behind."""
    return [each for each in verdict.findings if (each.metric, each.against) == (metric, against)][-1]


def test_the_twin_has_learnt_all_up_to_the_cut_and_nothing_behind_it(scene: Scene):
    trial = scene.trial
    event_ms = trial.training_set.dataset.event_ms
    assert trial.model.popularity.clock == trial.cut.row < len(event_ms)
    assert trial.cut.is_new and event_ms[trial.cut.row] >= scene.live.learnt_ms > event_ms[trial.cut.row - 1]
    assert scene.final[0].popularity.clock == len(event_ms), "what goes live has learnt all"
    assert trial.unseen is not None and min(trial.unseen.at_ms) >= scene.live.learnt_ms


def test_an_honest_release_passes_beside_the_live_one_and_what_is_popular(scene: Scene):
    verdict = scene.judge()
    assert verdict.outcome == "passed" and not verdict.notes
    assert {each.against for each in verdict.findings} == {LIVE, POPULAR, ITEM_MEAN, TWIN}
    recall = of(verdict, "recall@10", POPULAR)
    assert recall.better > 0.05 and recall.low > 0, "it knows what who likes"
    assert of(verdict, "ranker_calibration", LIVE).better is not None
    assert of(verdict, "coverage@100", LIVE).ours > 0.5
    assert scene.judge() == verdict, "the same seed says the same"


def test_a_release_whose_vectors_are_shuffled_is_refused_with_numbers(scene: Scene):
    verdict = scene.judge(scene.trial._replace(model=shuffled(scene.trial.model)))
    finding = of(verdict, "recall@10", LIVE)
    assert verdict.outcome == "refused" and finding.worse
    assert finding.ours < finding.theirs and finding.better == pytest.approx(finding.ours - finding.theirs)
    assert finding.low < finding.better < finding.high < 0 and finding.users > 100


def test_a_bundle_that_is_spoilt_though_its_twin_is_good_is_refused(scene: Scene):
    """A diverged last fit, rows in another order: it has seen the answers and knows less."""
    verdict = scene.judge(final=shuffled(scene.final[0]))
    assert verdict.outcome == "refused"
    assert {each.against for each in verdict.findings if each.worse} == {TWIN}


def test_the_first_release_is_judged_beside_what_is_popular(scene: Scene):
    verdict = scene.judge(rival=Rival())
    assert verdict.outcome == "passed"
    assert LIVE not in {each.against for each in verdict.findings}
    assert verdict.notes == ("not compared with a live release: no release is live yet",)
    bad = scene.judge(scene.trial._replace(model=turned_over(scene.trial.model)), Rival())
    assert bad.outcome == "refused" and of(bad, "recall@100", POPULAR).worse


def test_a_live_release_that_has_learnt_these_watches_itself_is_no_measure(scene: Scene):
    dataset = scene.trial.training_set.dataset
    learnt = choose_cut(dataset, int(dataset.event_ms[-1]) + 1)
    assert learnt is not None and not learnt.is_new and learnt.row == pytest.approx(0.9 * len(dataset), abs=2)
    verdict = scene.judge(scene.trial._replace(cut=learnt))
    assert LIVE not in {each.against for each in verdict.findings} and "has learnt all but too few" in verdict.notes[0]


def test_the_newest_tenth_is_held_out_or_what_the_live_release_has_not_learnt_of_it():
    dataset = small_source(frame(), small_items(ITEMS)).dataset
    tenth, event_ms = int(0.9 * len(dataset)), dataset.event_ms
    assert choose_cut(dataset, 0) == (tenth, True)
    later = int(0.94 * len(dataset))
    assert choose_cut(dataset, int(event_ms[later])) == (later, True)
    assert len(history_of(dataset).next_unseen(later)) >= 100


def test_too_few_users_in_the_newest_watches_make_no_trial_and_a_release_all_the_same(tmp_path: Path):
    assert choose_cut(small_source(small_log(600)).dataset, 0) is None
    log = store_frame(small_log(600), tmp_path / "log", completed_s=18.0)
    new = train_with_trial(log, None, rival=Rival(), **options(tmp_path, 1))
    assert new.trial is None
    assert new.manifest.metrics["cases"] > 0, "its validation days are the newest, as without a gate"
    assert new.manifest.files == train_with_trial(log, None, **options(tmp_path / "b", 1)).manifest.files


def test_an_impression_that_is_not_seen_judges_a_ranker_alone(scene: Scene):
    trial = scene.trial
    verdict = judge_ranker(trial.ranker, scene.final[1], trial.unseen, scene.live, seed=1)
    assert verdict.outcome == "passed" and {each.against for each in verdict.findings} == {LIVE, ITEM_MEAN, TWIN}
    assert judge_ranker(Ranker(), Ranker(), trial.unseen, scene.live, seed=1).outcome == "not judged"
    assert judge_ranker(trial.ranker, scene.final[1], None, scene.live, seed=1).outcome == "not judged"
    alone = judge_ranker(trial.ranker, scene.final[1], trial.unseen, Rival(), seed=1)
    assert LIVE not in {each.against for each in alone.findings} and "no release is live" in alone.notes[0]


def test_impressions_that_the_live_ranker_has_learnt_judge_beside_all_but_it(scene: Scene):
    trial = scene.trial
    alone = judge_ranker(trial.ranker, scene.final[1], trial.unseen, scene.live, seed=1, is_new=False)
    assert {each.against for each in alone.findings} == {ITEM_MEAN, TWIN} and alone.notes == (KNOWN_IMPRESSIONS,)
    verdict = scene.judge(trial._replace(is_unseen_live=False))
    assert {each.metric for each in verdict.findings if each.against == LIVE} == {*RECALLS, "coverage@100"}
    assert verdict.notes == (KNOWN_IMPRESSIONS,)


def test_a_catalogue_too_large_to_ask_many_users_is_judged_by_the_least_that_tell(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(candidate_learning, "MOST_SCORES", ITEMS)  # one user's
    finding = of(scene.judge(), "recall@10", LIVE)
    assert finding.users == 100 and finding.better is not None


def test_a_model_of_another_numbering_answers_as_it_would_in_its_own(scene: Scene):
    """The live release knows other items in another order; one that it does not know stands behind all others."""
    trial, model = scene.trial, scene.trial.model
    order = np.random.default_rng(2).permutation(len(model.item_ids))[:-1]
    other = CandidateModel(
        [model.item_ids[row] for row in order],
        model.encoder,
        vectors=model.vectors[order],
        bias=model.bias[order],
        query_rows=model.query_rows[order],
        popularity=replace_counts(model, order),
    )
    history, catalogue = history_of(trial.training_set.dataset), len(model.item_ids)
    asked = history.next_unseen(trial.cut.row)[:40]
    own, foreign = (
        Asked(each, trial.training_set, history, catalogue, name="x", words=0).scores(history.queries(asked))
        for each in (model, other)
    )
    (unknown,) = set(range(catalogue)) - set(order.tolist())
    heard = (history.queries(asked).histories != unknown).all(axis=1)
    known = np.sort(order)
    np.testing.assert_allclose(foreign[heard][:, known] - own[heard][:, known], 0, atol=0.05)
    assert (foreign.argmin(axis=1) == unknown).all()


def replace_counts(model: CandidateModel, order: np.ndarray):
    arrays = {name: column[order] for name, column in model.popularity.arrays().items()}
    kind = type(model.popularity)
    return kind(
        model.popularity.half_life_events,
        arrays["count"],
        arrays["total"],
        arrays["touched"],
        clock=model.popularity.clock,
    )


def test_skips_are_read_in_the_numbering_of_whoever_is_asked_and_as_many_as_it_reads():
    """A model beside one of a log whose catalogue has the same items in another order."""
    settings = SETTINGS.model_copy(update={"epochs": 1})
    source = small_source(small_log(900), skips=3)
    model = learn_candidates(
        source, settings, until=len(source.dataset), valid_from=None, items=len(source.catalogue)
    ).model
    later = small_items().with_columns(published_ms=-small_items()["published_ms"] + 2 * START_MS - 10**9)
    other = small_source(small_log(900), later, skips=6)
    assert other.catalogue.item_ids != source.catalogue.item_ids
    scores = []
    for each in (source, other):
        dataset = each.dataset
        columns = (np.asarray(column, np.int64) for column in (dataset.users, dataset.items, dataset.event_ms))
        history = History(Stream(*columns))
        asked = Asked(model, each, history, len(each.catalogue), name="asked", words=0)
        queries = history.queries(history.next_unseen(len(dataset) - 60))
        scores.append(asked.scores(queries)[:, each.catalogue.rows(source.catalogue.item_ids)])
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)


def test_contexts_are_read_by_their_names_and_not_by_their_codes():
    ours = ContextVocabulary({"region": ("de", "fr"), "device": ("tv",)}, ("age", "gender"))
    theirs = ContextVocabulary({"device": ("phone", "tv"), "language": ("en",)}, ("gender",))
    queries = replace(
        queries_of(np.full((3, 2), -1)),
        context=np.array([[1, 1], [2, 0], [0, 1]]),
        traits=np.array([[0.1, 1], [0.2, np.nan], [0.3, 0]], np.float32),
    )
    read = renumbered(queries, ours, theirs)
    assert read.context.tolist() == [[2, 0], [0, 0], [2, 0]]
    np.testing.assert_array_equal(read.traits, np.array([[1], [np.nan], [0]], np.float32))
