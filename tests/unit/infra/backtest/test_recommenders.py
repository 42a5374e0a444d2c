"""Our own model in a walk: as released, and under the trainer that runs live."""

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from infra.backtest.recommenders import Live, Released, Without, parts_of, what_validation_said
from infra.platform.settings import Trainer
from models.catalogue.content import ContentShape, halves_of
from models.catalogue.content_table import ContentTable
from models.evaluation.backtest import Recommender, Walk, walk_frozen, walk_live
from models.evaluation.eval_queries import History, Stream
from models.logs.training_set import TrainingSet
from models.retrieval.candidate_learning import learn_candidates, tower_queries
from models.retrieval.candidates import CandidateModel
from models.retrieval.checkpoint import ModelSelection
from models.retrieval.cold_start import ContentMap
from tests.unit.models.samples import SETTINGS, small_items, small_log, small_source

HOUR_MS = 3_600_000


@dataclass(frozen=True)
class Scene:
    """A log, what of it lies before the cut, and a model that was trained on that."""

    source: TrainingSet
    history: History
    cut: int
    model: CandidateModel

    def released(self) -> Released:
        return Released(self.model, self.source, self.history)

    def live(self, **options: Any) -> Live:
        return Live(self.model, self.source, self.history, **({"settings": Trainer(), "seed": 1} | options))

    def still(self) -> Live:
        return self.live(settings=Trainer(learns="history"), name="still")

    def walk(self, *recommenders: Recommender) -> Walk:
        return walk_live(recommenders, self.history, cut=self.cut, catalogue=len(self.model.vectors), block=50)


@pytest.fixture(scope="module", params=[0, 8], ids=["completed watches", "and skips"])
def scene(request: pytest.FixtureRequest) -> Scene:
    """Ten items of the log become known only after the cut."""
    items = small_items().filter(~small_items()["item_id"].is_in([f"i{n}" for n in range(50, 60)]))
    early = small_log().with_row_index().filter(small_log()["item_id"].str.slice(1).cast(int) < 50)
    late = small_log().with_row_index().filter(small_log()["item_id"].str.slice(1).cast(int) >= 50)
    late = late.with_columns(event_ms=late["event_ms"].max() - (late.height - np.arange(late.height)) * 500)
    columns = small_log().columns
    source = small_source(early.select(columns).vstack(late.select(columns)), items, skips=request.param)
    dataset, cut = source.dataset, len(source.dataset) * 2 // 3
    history = History(Stream(*(np.asarray(c, np.int64) for c in (dataset.users, dataset.items, dataset.event_ms))))
    settings = SETTINGS.model_copy(update={"epochs": 3})
    learned = learn_candidates(source, settings, until=cut, valid_from=None, items=source.known_at(cut))
    return Scene(source, history, cut, learned.model)


def test_a_trainer_that_learns_nothing_ranks_as_the_release_does(scene: Scene):
    walk = scene.walk(scene.released(), scene.still())
    queries = tower_queries(scene.source.dataset, scene.history, scene.history.queries(walk.asked))
    known = (queries.items < len(scene.model.vectors)).all(axis=1)  # else the trainer knows more
    assert known.sum() > 100 and not known.all()
    np.testing.assert_array_equal(walk.ranks["tower"][known], walk.ranks["still"][known])


def test_new_items_are_placed_by_what_they_say_as_the_live_trainer_would(scene: Scene):
    model, shape, rng = copy.copy(scene.model), ContentShape(vector=4), np.random.default_rng(1)
    model.content = ContentMap(rng.normal(size=(shape.rows, 2 * model.dim - 2)).astype(np.float32), shape)
    vectors = halves_of(rng.normal(size=(len(scene.source.catalogue), 4)))
    source = replace(scene.source, said=ContentTable(vectors=vectors))
    live = Live(model, source, scene.history, settings=Trainer(learns="history"), seed=1)
    live.learn(slice(scene.cut, len(source.dataset)))
    new = int(source.dataset.items.max())
    assert new >= len(model.vectors)
    found = live._trainer.vectors(live._row_of[[new]])[0, :-1]
    np.testing.assert_allclose(found, model.content.row_of(source.content_of(new))[: model.dim - 1], rtol=1e-5)


def test_learning_live_changes_ranks_and_knows_new_items_in_histories(scene: Scene):
    catalogue, live, watched = len(scene.model.vectors), scene.live(), scene.history.stream.items[scene.cut :]
    assert catalogue < len(scene.source.catalogue)
    walk = scene.walk(live, scene.released())
    assert (walk.ranks["tower, live"] != walk.ranks["tower"]).any()
    late = watched >= catalogue
    assert late.any()
    assert (walk.ranks["tower"] == -1).sum() == (walk.ranks["tower, live"] == -1).sum() > 0
    assert len(live._trainer) == catalogue + len(np.unique(watched[late]))


def test_what_is_of_no_weight_is_counted_and_not_learnt_live(scene: Scene):
    weights = np.ones(len(scene.source.dataset), np.float32)
    weights[scene.cut : scene.cut + 25] = 0
    dataset = replace(scene.source.dataset, weights=weights)
    unlike = replace(scene, source=replace(scene.source, dataset=dataset)).live()
    trainer, known = unlike._trainer, len(scene.model.vectors)
    clock, vectors = trainer.popularity.clock, trainer._vectors.values[:known].clone()
    unlike.learn(slice(scene.cut, scene.cut + 25))
    assert trainer.popularity.clock == clock + 25, "it was watched all the same"
    assert trainer._vectors.values[:known].equal(vectors)
    unlike.learn(slice(scene.cut + 20, scene.cut + 30))
    assert not trainer._vectors.values[:known].equal(vectors)


def test_vectors_are_taken_over_as_often_as_asked(scene: Scene):
    at_once, never = (scene.walk(scene.live(refresh_ms=ms)).ranks["tower, live"] for ms in (0, 1000 * HOUR_MS))
    assert (at_once != never).any()
    np.testing.assert_array_equal(never, scene.walk(scene.still()).ranks["still"])


def test_the_scores_are_those_that_serving_would_give(scene: Scene):
    model, history = scene.model, scene.history
    queries = history.queries(history.next_unseen(scene.cut)[:20])
    scores = scene.released().scores(queries)
    inputs = tower_queries(scene.source.dataset, history, queries)
    histories, skips = (np.where(each < len(model.vectors), each, -1) for each in (inputs.histories, inputs.skips))
    users = model.encode(model.encoder.queries_of(histories, skips))
    expected = users @ model.vectors.T + model.item_vectors()[:, -1]
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
    assert len(walk_frozen([scene.released()], history, cut=scene.cut, catalogue=len(model.vectors))) > 20


def test_a_part_that_is_left_out_says_nothing_and_the_others_what_they_said(scene: Scene):
    model, history = scene.model, scene.history
    queries = history.queries(history.next_unseen(scene.cut)[:20])
    whole, shape = scene.released().scores(queries), model.encoder.tower.shape
    parts = parts_of(model)
    assert parts == ["towers", *(["linear part"] * bool(shape.linear)), "popularity", *(["skips"] * bool(shape.skips))]
    without = {part: Without(part, model, scene.source, history).scores(queries) for part in parts}
    if shape.linear:
        said = whole * 3 - sum(without[part] for part in ("towers", "linear part", "popularity"))
        np.testing.assert_allclose(said, whole - model.bias, rtol=1e-3, atol=1e-4)
    log_share = model.item_vectors()[:, -1] - model.bias
    np.testing.assert_allclose(whole - without["popularity"], np.tile(log_share, (len(whole), 1)), atol=1e-4)
    if shape.skips:
        assert (without["skips"] != whole).any()


def test_validation_tells_what_linear_part_and_skips_earn_as_if_the_model_were_asked_without_them():
    source = small_source(skips=8)
    dataset, rows = source.dataset, len(source.dataset)
    settings = SETTINGS.model_copy(update={"epochs": 1, "linear_dim": 6, "tied": True, "skips": 8})
    learned = learn_candidates(source, settings, until=rows, valid_from=rows // 2, items=len(source.catalogue))
    selection, model = learned.selection, learned.earlier
    assert model is not None and selection.weight and selection.linear
    history = History(Stream(*(np.asarray(c, np.int64) for c in (dataset.users, dataset.items, dataset.event_ms))))
    parts = [Without(part, model, source, history) for part in parts_of(model)]
    walk = walk_frozen([Released(model, source, history), *parts], history, cut=rows // 2, catalogue=len(model.vectors))
    log_rank = {name: np.log2(1.0 + ranks) for name, ranks in walk.ranks.items()}
    for name, part in (("linear", "without linear part"), ("skips", "without skips")):
        earned = log_rank[part] - log_rank["tower"]
        assert selection.metrics[f"{name}_gain"] == pytest.approx(earned.mean(), abs=0.02)
        assert selection.metrics[f"{name}_gain_se"] == pytest.approx(earned.std() / len(earned) ** 0.5, rel=0.1)
    assert selection.metrics["skips_gain"] != selection.metrics["linear_gain"] != 0


def test_the_report_says_what_validation_said_of_the_parts():
    metrics = {"linear_gain": 0.07, "linear_gain_se": 0.01, "recall@10": 0.1}
    said = "doublings of rank on validation (± two standard errors): linear part +0.070 ± 0.020"
    assert what_validation_said(ModelSelection(1, metrics=metrics)) == said
    both = ModelSelection(1, metrics=metrics | {"skips_gain": -0.01, "skips_gain_se": 0.002})
    assert what_validation_said(both) == f"{said}, skips -0.010 ± 0.004"
    assert what_validation_said(ModelSelection(1)) == ""
