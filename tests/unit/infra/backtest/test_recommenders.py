"""Our own model in a walk: as released, and under the trainer that runs live."""

import numpy as np
import pytest

from infra.backtest.recommenders import Live, Released
from infra.platform.settings import Trainer
from models.evaluation.backtest import walk_frozen, walk_live
from models.evaluation.eval_queries import History, Stream
from models.logs.training_set import TrainingSet
from models.retrieval.candidate_learning import learn_candidates
from models.retrieval.candidates import CandidateModel
from tests.unit.models.samples import SETTINGS, small_items, small_log, small_source

HOUR_MS = 3_600_000


@pytest.fixture(scope="module")
def source() -> TrainingSet:
    """Ten items of the log become known only after the cut."""
    items = small_items().filter(~small_items()["item_id"].is_in([f"i{n}" for n in range(50, 60)]))
    early = small_log().with_row_index().filter(small_log()["item_id"].str.slice(1).cast(int) < 50)
    late = small_log().with_row_index().filter(small_log()["item_id"].str.slice(1).cast(int) >= 50)
    late = late.with_columns(event_ms=late["event_ms"].max() - (late.height - np.arange(late.height)) * 500)
    columns = small_log().columns
    return small_source(early.select(columns).vstack(late.select(columns)), items)


@pytest.fixture(scope="module")
def history(source: TrainingSet) -> History:
    dataset = source.dataset
    return History(Stream(*(np.asarray(c, np.int64) for c in (dataset.users, dataset.items, dataset.event_ms))))


@pytest.fixture(scope="module")
def cut(source: TrainingSet) -> int:
    return len(source.dataset) * 2 // 3


@pytest.fixture(scope="module")
def model(source: TrainingSet, cut: int) -> CandidateModel:
    return learn_candidates(source, SETTINGS, until=cut, valid_from=None, items=source.known_at(cut)).model


def test_a_trainer_that_learns_nothing_ranks_as_the_release_does(
    source: TrainingSet, history: History, cut: int, model: CandidateModel
):
    released = Released(model, source, history)
    still = Live(model, source, history, settings=Trainer(learns="history"), seed=1, name="still")
    walk = walk_live([released, still], history, cut=cut, catalogue=len(model.vectors), block=50)
    known = (history.cases(walk.asked).histories < len(model.vectors)).all(axis=1)  # else the trainer knows more
    assert known.sum() > 100
    np.testing.assert_array_equal(walk.ranks["tower"][known], walk.ranks["still"][known])


def test_learning_live_changes_ranks_and_knows_new_items_in_histories(
    source: TrainingSet, history: History, cut: int, model: CandidateModel
):
    catalogue = len(model.vectors)
    assert catalogue < len(source.catalogue)
    live = Live(model, source, history, settings=Trainer(), seed=1)
    released = Released(model, source, history)
    walk = walk_live([live, released], history, cut=cut, catalogue=catalogue, block=50)
    assert (walk.ranks["tower, live"] != walk.ranks["tower"]).any()
    late = history.stream.items[cut:] >= catalogue
    assert late.any()
    assert (walk.ranks["tower"] == -1).sum() == (walk.ranks["tower, live"] == -1).sum() > 0
    assert len(live._trainer) == catalogue + len(np.unique(history.stream.items[cut:][late]))


def test_vectors_are_taken_over_as_often_as_asked(
    source: TrainingSet, history: History, cut: int, model: CandidateModel
):
    def ranks(refresh_ms: int) -> np.ndarray:
        live = Live(model, source, history, settings=Trainer(), seed=1, refresh_ms=refresh_ms)
        return walk_live([live], history, cut=cut, catalogue=len(model.vectors), block=50).ranks["tower, live"]

    still = Live(model, source, history, settings=Trainer(learns="history"), seed=1, name="still")
    unlearnt = walk_live([still], history, cut=cut, catalogue=len(model.vectors), block=50).ranks["still"]
    at_once, never = ranks(0), ranks(1000 * HOUR_MS)
    assert (at_once != never).any()
    np.testing.assert_array_equal(never, unlearnt)


def test_the_scores_are_those_that_serving_would_give(
    source: TrainingSet, history: History, cut: int, model: CandidateModel
):
    cases = history.cases(history.next_unseen(cut)[:20])
    scores = Released(model, source, history).scores(cases)
    users = model.encode(model.encoder.queries_of(np.where(cases.histories < len(model.vectors), cases.histories, -1)))
    expected = users @ model.vectors.T + model.item_vectors()[:, -1]
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
    walk = walk_frozen([Released(model, source, history)], history, cut=cut, catalogue=len(model.vectors))
    assert len(walk) > 20
