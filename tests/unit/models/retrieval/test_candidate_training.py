"""One step and one training of the candidate generator: what it converges to, what it leaves alone."""

import numpy as np
import polars as pl
import pytest
import torch

from infra.backtest.recommenders import Live
from infra.platform.settings import Model, Trainer
from models.catalogue.content import ContentShape, ItemContent
from models.catalogue.content_table import NOTHING_SAID
from models.catalogue.context import ContextVocabulary
from models.evaluation.backtest import walk_live
from models.evaluation.baselines import DecayedPopular
from models.evaluation.comparison import paired
from models.evaluation.eval_queries import History, Stream
from models.logs.batches import epoch_batches
from models.logs.dataset import Dataset
from models.logs.examples import queries_of
from models.logs.training_set import TrainingSet, prepare
from models.retrieval import candidate_learning
from models.retrieval.candidate_learning import Learned, Training, learn_candidates, new_net, warm_start
from models.retrieval.candidate_training import Fit, TrainingData, choose_examples, example_weights, reservoir
from models.retrieval.candidates import CandidateModel, UserEncoder
from models.retrieval.checkpoint import ModelSelection
from models.retrieval.incremental import IncrementalTrainer
from models.retrieval.losses import Extra
from models.retrieval.net import CandidateNet
from models.retrieval.sampling import Negatives, find_hits
from models.retrieval.tower import TowerShape, UserTowers
from tests.benchmarks.quality.ablated import ABLATED, LeakyDataset, train
from tests.unit.models.samples import SETTINGS, small_items, small_log, small_source, stored, taste_log

ENCODERS = ("average", "recent", "attention")


@pytest.fixture(scope="module")
def source() -> TrainingSet:
    return small_source(items=small_items(70))  # ten items that nobody watches


@pytest.fixture(scope="module", params=ENCODERS)
def settings(request: pytest.FixtureRequest) -> Model:
    return SETTINGS.model_copy(update={"encoder": request.param, "epochs": 4})


def learn(source: TrainingSet, settings: Model) -> CandidateModel:
    return learn_candidates(
        source, settings, until=len(source.dataset), valid_from=None, items=len(source.catalogue)
    ).model


@pytest.fixture(scope="module")
def model(source: TrainingSet, settings: Model) -> CandidateModel:
    return learn(source, settings)


def test_the_same_seed_gives_the_same_model(source: TrainingSet, settings: Model, model: CandidateModel):
    again = learn(source, settings)
    np.testing.assert_array_equal(again.item_vectors(), model.item_vectors())
    np.testing.assert_array_equal(again.query_rows, model.query_rows)
    for name, weight in model.encoder.tower.state_dict().items():
        np.testing.assert_array_equal(again.encoder.tower.state_dict()[name], weight, err_msg=name)


def test_another_seed_gives_another_model_and_the_callers_random_numbers_are_left_alone(
    source: TrainingSet, settings: Model, model: CandidateModel
):
    torch.manual_seed(4)
    other = learn(source, settings.model_copy(update={"seed": 2}))
    after = torch.rand(1)
    assert (other.vectors != model.vectors).any()
    torch.manual_seed(4)
    assert after == torch.rand(1)


@pytest.mark.parametrize("skips", [0, 5])
def test_the_served_user_vector_is_the_trained_one(settings: Model, skips: int):
    source = small_source(items=small_items(70), skips=skips)
    net = new_net(source, settings, items=len(source.catalogue))
    for side in net.queries.sides.values():
        side.table.values.normal_()
    net.tower.eval()
    queries = source.dataset.queries(np.arange(200, 260))
    assert queries.skips.shape == (60, skips) and (not skips or (queries.skips >= 0).any())
    with torch.no_grad():
        trained = net.users(queries, []).numpy()
    towers = UserTowers(net.shape)
    towers.members[0].load_state_dict(net.tower.state_dict())
    encoder = UserEncoder(towers, net.words.values.numpy(), ContextVocabulary())
    np.testing.assert_allclose(encoder.encode(queries, net.queries.everything()), trained, atol=1e-6)


def test_tied_tables_are_one_while_they_are_learnt_and_two_when_they_are_frozen(source: TrainingSet):
    """What a watch moves is moved on both sides; the live trainer gets two tables of its own."""
    tied = learn(source, SETTINGS.model_copy(update={"tied": True, "epochs": 4}))
    watched = tied.popularity.totals() > 0
    np.testing.assert_array_equal(tied.vectors[watched], tied.query_rows[watched])
    assert not np.shares_memory(tied.vectors, tied.query_rows)
    apart = learn(source, SETTINGS.model_copy(update={"epochs": 4}))
    assert (apart.vectors != apart.query_rows).any()


def test_a_tied_training_begins_warm_from_what_histories_average(source: TrainingSet):
    settings = SETTINGS.model_copy(update={"tied": True})
    warm = learn(source, SETTINGS.model_copy(update={"epochs": 1}))
    net = new_net(source, settings, items=len(source.catalogue))
    warm_start(net, warm, source.catalogue, 0)
    for side in (net.queries, net.outputs):
        np.testing.assert_array_equal(side.own.values.numpy(), warm.query_rows)


def test_what_was_skipped_is_learnt_from():
    """Everybody skips one video, which nobody completes, and completes one that the other foretells."""
    rng, users = np.random.default_rng(2), 1500
    liked = rng.integers(0, 4, users)
    items = [40 + 5 * liked + rng.integers(0, 5, users), 10 * liked + rng.integers(0, 10, users)]
    frame = pl.DataFrame(
        {
            "user_id": [f"u{n}" for n in np.tile(np.arange(users), 2)],
            "item_id": [f"i{n}" for n in np.concatenate(items)],
            "event_ms": 1_700_000_000_000 + 1000 * np.arange(2 * users),
            "watch_s": np.repeat([2.0, 40.0], users),
        }
    )
    found = []
    for skips in (0, 5):
        source = small_source(frame, small_items(60).drop("channel", "topics"), skips=skips)
        model, rows = learn(source, SETTINGS.model_copy(update={"epochs": 4})), np.arange(users)
        assert model.encoder.tower.shape.skips == skips
        scores = model.encode(source.dataset.queries(rows)) @ model.vectors.T + model.item_vectors()[:, -1]
        best = [int(source.catalogue.item_ids[row].removeprefix("i")) // 10 for row in scores.argmax(axis=1).tolist()]
        found.append(np.mean(np.array(best) == liked))
    assert found[0] < 0.5 and found[1] > 0.9


def test_some_watches_of_either_kind_are_left_out_in_training_and_none_when_serving():
    source = small_source(skips=5)
    settings = SETTINGS.model_copy(update={"history_dropout": 0.5})
    fit = fit_on(source, len(source.dataset), settings)
    rows = np.arange(500, 700)
    whole, thin = source.dataset.queries(rows), fit._queries(rows, np.random.default_rng(1))
    for name in ("histories", "skips"):
        all_of, left = (getattr(queries, name) for queries in (whole, thin))
        assert set(left[left != all_of].tolist()) == {-1}
        assert (left >= 0).sum() / (all_of >= 0).sum() == pytest.approx(0.5, abs=0.05)


def test_items_that_nobody_watched_start_at_their_channel_and_topics(source: TrainingSet):
    model, catalogue = learn(source, SETTINGS), source.catalogue
    unwatched = catalogue.row("i65")
    rows = catalogue.rows([f"i{n}" for n in range(60)])
    same = [row for row in rows.tolist() if catalogue.channel_of(row) == catalogue.channel_of(unwatched)]
    other = [row for row in rows.tolist() if row not in same]
    near = (model.vectors[same] @ model.vectors[unwatched]).mean()
    assert near > (model.vectors[other] @ model.vectors[unwatched]).mean() + 0.1
    assert np.isfinite(model.item_vectors()).all()


TITLED = {0: "cooking pasta", 1: "racing cars", 2: "playing chess", 3: "feeding cats"}


def titled(told: bool) -> TrainingSet:
    """Tastes that nothing but the titles tell of, where they tell anything; of each sort two items without a watch."""
    titles = [f"{TITLED[n % 4 if told else n % 3]} {n}" for n in range(68)]
    items = pl.DataFrame({"item_id": [f"i{n}" for n in range(68)], "title": titles})
    return prepare(stored(taste_log(3000, 60, 60)), items, content=True)


def learnt_with_content(source: TrainingSet) -> Learned:
    settings = SETTINGS.model_copy(update={"content": True, "epochs": 4})
    rows = len(source.dataset)
    learned = learn_candidates(source, settings, until=rows, valid_from=int(0.8 * rows), items=len(source.catalogue))
    assert learned.selection.metrics["content_cases"] > 20
    return learned


def check_new_items_stand_near_their_kind(model: CandidateModel) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which items are new; the mean of the watched ones, and of each of their kinds less that."""
    watched = model.popularity.totals() > 0
    kind = np.array([int(item_id[1:]) % 4 for item_id in model.item_ids])
    middle = model.vectors[watched].mean(axis=0)
    vectors = model.vectors - middle
    means = np.stack([vectors[watched & (kind == each)].mean(axis=0) for each in range(4)])
    new = np.flatnonzero(~watched)
    assert len(new) >= 8
    assert ((vectors[new] @ means.T).argmax(axis=1) == kind[new]).all()
    return new, middle, means


def test_titles_place_new_items_where_the_validation_days_say_that_they_can():
    source = titled(True)
    model = learnt_with_content(source).model
    assert model.content is not None
    _, middle, means = check_new_items_stand_near_their_kind(model)
    trainer = IncrementalTrainer(model, source.catalogue, Trainer(), seed=1)
    row = trainer.add_item("another", ItemContent({}, "Pasta, feeding two"))
    late = trainer.add_item("late")
    trainer.describe("late", ItemContent({}, "Pasta, feeding two"))
    own = trainer.vectors(np.array([row, late]))[:, :-1]
    np.testing.assert_allclose(own[0], own[1], rtol=1e-4, atol=1e-5)
    assert ((own[0] - middle) @ means.T).argmax() in (0, 3)


def test_who_is_ranked_together_does_not_matter(source: TrainingSet, monkeypatch: pytest.MonkeyPatch):
    dataset, pairs = source.dataset, [(1.0, 6.0), (0.5, 0.0), (0.0, 0.0)]
    training = Training(source, SETTINGS, half_life_events=100.0, until=len(dataset) // 2, items=len(source.catalogue))
    history = History(Stream(*(np.asarray(c, np.int64) for c in (dataset.users, dataset.items, dataset.event_ms))))
    asked = history.next_unseen(training.until)
    together = candidate_learning.ranked(training, history, asked, pairs)
    monkeypatch.setattr(candidate_learning, "users_at_once", lambda items: 3)
    apart = candidate_learning.ranked(training, history, asked, pairs)
    assert len(asked) % 3 and len(asked) > 6
    for pair in pairs:
        np.testing.assert_array_equal(apart[pair], together[pair])


def test_few_enough_are_ranked_together_for_the_cache_and_for_memory():
    assert candidate_learning.users_at_once(100) == 1024
    assert candidate_learning.users_at_once(7583) == 65
    assert candidate_learning.users_at_once(100_000) == 32
    assert candidate_learning.users_at_once(10_000_000) == 3


@pytest.mark.parametrize("content", [True, False])
def test_columns_of_ids_that_are_named_as_content_stay_ids_whether_content_is_read_or_not(content: bool):
    items = pl.DataFrame({"item_id": ["i0", "i1"], "vector": ["landscape", "portrait"], "description": [["a"], ["b"]]})
    source = prepare(stored(taste_log(300, 20, 10)), items, content=content)
    ids = source.content_of(source.catalogue.item_ids.index("i1")).ids
    assert (ids["vector"], ids["description"]) == (("portrait",), ("b",))


def test_titles_that_say_nothing_of_tastes_place_nothing():
    assert learnt_with_content(titled(False)).model.content is None


SORTS = ("simmering garlic in oil", "engines on wet asphalt", "a bishop takes a pawn", "whiskers at dawn")


def said(column: str, told: bool, size: int = 24) -> TrainingSet:
    """As titled, by descriptions or by vectors: of each sort a direction, nearly as much noise, and any scale."""
    rng = np.random.default_rng(5)
    sort = np.arange(68) % (4 if told else 3)
    if column == "description":
        filler = ["about", "this", "video", "which", "we", "made", "with", "friends", "and", "love"]
        texts = [f"{' '.join(rng.permutation(filler))}: {SORTS[own]}, {at}" for at, own in enumerate(sort)]
        values = pl.Series(column, texts)
    else:
        directions = np.linalg.qr(rng.normal(size=(size, 4)))[0].T
        noise = rng.normal(0, 0.8 / size**0.5, (68, size))
        values = pl.Series(column, (rng.lognormal(3, 1, (68, 1)) * (directions[sort] + noise)).tolist())
    items = pl.DataFrame({"item_id": [f"i{n}" for n in range(68)]}).with_columns(values)
    return prepare(stored(taste_log(3000, 60, 60)), items, content=True)


@pytest.mark.parametrize(
    ("column", "shape"), [("vector", ContentShape(vector=24)), ("description", ContentShape(True))]
)
def test_a_description_or_a_vector_alone_places_new_items_near_their_kind(column: str, shape: ContentShape):
    """In the release and live; means of ids, of which there are none, place all at one point."""
    source = said(column, told=True)
    model, selection, _ = learnt_with_content(source)
    assert model.content is not None and model.content.shape == shape
    assert selection.metrics["content_gain"] > 0.3, "doublings that a watched item stands higher than by means"
    new, _, _ = check_new_items_stand_near_their_kind(model)
    trainer = IncrementalTrainer(model, source.catalogue, Trainer(), seed=1)
    twins = [trainer.add_item(f"twin of {row}", source.content_of(row)) for row in new.tolist()]
    live = trainer.vectors(np.array(twins))[:, :-1]
    np.testing.assert_allclose(live, model.vectors[new], rtol=1e-3, atol=1e-5)
    alone = learn_candidates(
        source, SETTINGS.model_copy(update={"epochs": 4}), until=len(source.dataset), valid_from=None, items=68
    ).model
    assert np.ptp(alone.vectors[new], axis=0).max() < 1e-6, "by means of ids"


@pytest.mark.parametrize("column", ["vector", "description"])
def test_descriptions_and_vectors_that_say_nothing_of_tastes_place_nothing(column: str):
    assert learnt_with_content(said(column, told=False)).model.content is None


def test_what_items_say_is_kept_only_for_a_map_and_compactly():
    source = said("vector", told=True)
    assert source.said.vectors is not None and source.said.vectors.dtype == np.float16
    assert (source.dataset.timeline_file.parent / "item_vectors.npy").is_file()
    said_of = {"title": ["A title", None], "vector": [[1.0, 2.0], None], "description": ["a b", ""]}
    items = pl.DataFrame({"item_id": ["i1", "i9"], **said_of})
    log = stored(taste_log(300, 60, 60))
    assert prepare(log, items).said == NOTHING_SAID
    told = prepare(log, items, content=True)
    by_id = {item_id: told.content_of(row) for row, item_id in enumerate(told.catalogue.item_ids)}
    np.testing.assert_allclose(by_id["i1"].vector, [0.447, 0.894], atol=1e-3)
    assert len(by_id["i1"].words) == 2 and not len(by_id["i9"].words)
    assert not by_id["i9"].vector.any() and not by_id["i2"].vector.any(), "of neither a word is known"


def test_without_the_setting_content_is_not_asked_about(model: CandidateModel):
    assert model.content is None


@pytest.mark.parametrize("sign", [1, -1])
def test_the_step_converges_to_the_full_softmax_and_with_the_sign_turned_round_it_does_not(sign: int):
    """Net, offsets and sample together, loss and gradients, against cross entropy over all items."""
    net = CandidateNet(TowerShape(8, (16,)), {}, 70, seed=1)
    rng = np.random.default_rng(1)
    net.bias.values.copy_(torch.from_numpy(rng.normal(size=(70, 1)).astype(np.float32)))
    targets = rng.integers(0, 70, 64)
    queries = queries_of(np.where(rng.random((64, 5)) < 0.8, rng.integers(0, 70, (64, 5)), -1))
    popularity = rng.normal(size=(64, 70)).astype(np.float32)
    share = rng.dirichlet(np.ones(70))
    drawn = rng.choice(70, 200_000, p=share)
    negatives = Negatives(drawn, (sign * np.log(len(drawn) * share[drawn])).astype(np.float32))

    def loss_of(negatives: Negatives) -> tuple[float, np.ndarray]:
        rows, places = net.distinct_items(np.concatenate([targets, negatives.rows]))
        extra = Extra(
            torch.from_numpy(popularity[np.arange(64), targets]),
            torch.from_numpy(popularity[:, negatives.rows] - negatives.log_expected),
            torch.from_numpy(find_hits(targets, negatives.rows, 70)),
        )
        losses, touched = net.losses(queries, rows, places[:64], places[64:], extra)
        losses.mean().backward()
        gradient = np.zeros((70, 8), np.float32)
        for table, at, leaf in touched:
            if table is net.outputs.own:
                gradient[at.numpy()] = leaf.grad.numpy()
        return float(losses.detach().mean()), gradient

    sampled, sampled_gradient = loss_of(negatives)
    full, full_gradient = loss_of(Negatives(np.arange(70), np.zeros(70, np.float32)))
    with torch.no_grad():
        logits = net.users(queries, []) @ torch.from_numpy(net.outputs.everything()).T + net.bias.values[:, 0]
        expected = torch.nn.functional.cross_entropy(logits + torch.from_numpy(popularity), torch.from_numpy(targets))
    np.testing.assert_allclose(full, expected, rtol=1e-5)
    error = np.linalg.norm(sampled_gradient - full_gradient) / np.linalg.norm(full_gradient)
    if sign > 0:
        np.testing.assert_allclose(sampled, full, rtol=0.01)
        assert error < 0.05
    else:
        assert abs(sampled / full - 1) > 0.1
        assert error > 0.3


def test_tied_tables_are_one_while_training_and_apart_in_the_model(source: TrainingSet):
    settings = SETTINGS.model_copy(update={"tied": True, "epochs": 2})
    net = new_net(source, settings, items=len(source.catalogue))
    assert net.outputs is net.queries
    model, apart = learn(source, settings), learn(source, settings.model_copy(update={"tied": False}))
    watched = model.popularity.totals() > 0
    np.testing.assert_array_equal(model.vectors[watched], model.query_rows[watched])
    assert (apart.vectors[watched] != apart.query_rows[watched]).any()
    assert np.abs(model.vectors[watched]).max() > 0.3, "it has learnt"


def test_an_ordered_linear_part_is_trained_and_served_alike(source: TrainingSet):
    rows = len(source.dataset)
    settings = SETTINGS.model_copy(update={"linear_order": True, "linear_dim": 6, "epochs": 2})
    learned = learn_candidates(source, settings, until=rows, valid_from=int(0.8 * rows), items=len(source.catalogue))
    shape = learned.model.encoder.tower.shape
    assert (shape.linear, shape.ordered) == (6, True)
    queries = source.dataset.queries(np.arange(200, 230))
    few = learned.model.encode(queries)
    with torch.inference_mode():
        many = learned.model.encoder.tower(learned.model.encoder.inputs(queries, learned.model.query_rows)).numpy()
    np.testing.assert_allclose(few, many, atol=2e-6)


def test_a_linear_part_of_no_weight_costs_no_numbers(source: TrainingSet):
    settings = SETTINGS.model_copy(update={"linear_dim": 6})
    training = Training(source, settings, half_life_events=500, until=len(source.dataset), items=len(source.catalogue))
    whole, without = (training.freeze(ModelSelection(0, linear=linear)) for linear in (6.0, 0.0))
    assert (whole.dim, without.dim) == (settings.dim + 6 + 1, settings.dim + 1)
    assert (whole.encoder.tower.shape.linear, without.encoder.tower.shape.linear) == (6, 0)
    queries = source.dataset.queries(np.arange(200, 230))
    np.testing.assert_array_equal(without.encode(queries), whole.encode(queries)[:, : settings.dim])
    np.testing.assert_array_equal(without.vectors, whole.vectors[:, : settings.dim])


def test_what_a_user_has_said_weighs_an_example_and_unwanted_watches_are_none():
    frame = taste_log(400, 20, 40).unique(["user_id", "item_id"], keep="first", maintain_order=True)
    frame = frame.with_columns(watch_s=pl.lit(40.0), signal=pl.lit(None, pl.String))
    said = ["dislike", "like", "like|share", None] * (len(frame) // 4 + 1)
    frame = frame.with_columns(signal=pl.Series(said[: len(frame)]))
    weights = {"like": 2.0, "share": 3.0, "dislike": 0.0}
    plain, weighed = (prepare(stored(frame), None, signals=signals) for signals in ({}, weights))
    assert plain.dataset.weights is None
    until = len(frame)
    data = TrainingData(weighed.dataset, until, len(weighed.catalogue), SETTINGS)
    at = np.arange(until) % 4
    assert data.rows.tolist() == np.flatnonzero(at != 0).tolist() == data.new_rows.tolist()
    expected = np.array([0, 2, 6, 1], np.float32)[at[data.rows]]
    np.testing.assert_allclose(data.weights, expected / expected.mean(), rtol=1e-5)
    np.testing.assert_array_equal(
        weighed.dataset.histories(np.array([until - 1])), plain.dataset.histories([until - 1])
    )
    linear = [
        Training(
            each,
            SETTINGS.model_copy(update={"linear_dim": 4}),
            half_life_events=500,
            until=until,
            items=len(each.catalogue),
        ).linear[0]
        for each in (plain, weighed)
    ]
    assert not np.allclose(*linear), "the linear part does not count them either"


def test_a_repeat_is_no_example():
    users, items = np.repeat(np.arange(10), 100), np.tile(np.repeat(np.arange(4), 25), 10)
    dataset = Dataset(users, items, np.arange(1000))
    assert choose_examples(dataset, dataset.new_rows(1000), SETTINGS).tolist() == list(range(0, 1000, 25))


def test_a_user_gives_so_many_examples_of_a_window_and_each_with_the_same_chance():
    users = np.repeat([0, 1, 2], [100, 3, 40])
    windows = np.r_[np.zeros(100), np.zeros(3), np.repeat([0, 1], 20)].astype(np.int64)
    kept = np.stack([reservoir(users, windows, 5, np.random.default_rng(seed)) for seed in range(300)])
    assert (kept[:, :100].sum(axis=1) == 5).all()
    assert kept[:, 100:103].all()
    assert (kept[:, 103:123].sum(axis=1) == 5).all()
    assert (kept[:, 123:].sum(axis=1) == 5).all()
    assert kept[:, :100].mean(axis=0).min() > 0
    assert kept[:, :100].mean(axis=0).max() < 0.15


def test_the_alternative_weighs_a_user_alike_whatever_their_number_of_examples():
    users = np.repeat([3, 8], [30, 2])
    weights = example_weights(users, SETTINGS.model_copy(update={"equal_users": True}))
    np.testing.assert_allclose([weights[:30].sum(), weights[30:].sum()], [16, 16], rtol=1e-6)
    assert (example_weights(users, SETTINGS) == 1).all()


def test_an_epoch_has_every_example_once_in_another_order():
    for examples, batch in ((1, 64), (1000, 64), (10_000, 256)):
        first, second = (
            np.concatenate(list(epoch_batches(examples, batch, np.random.default_rng(seed)))) for seed in (1, 2)
        )
        assert sorted(first.tolist()) == list(range(examples))
        assert examples == 1 or (first != second).any()


def test_pools_of_a_long_log_are_mixed_and_complete(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("models.logs.batches.CHUNK", 10)
    monkeypatch.setattr("models.logs.batches.POOL", 4)
    batches = list(epoch_batches(205, 32, np.random.default_rng(1)))
    assert sorted(np.concatenate(batches).tolist()) == list(range(205))
    assert {len(batch) for batch in batches[:-1]} == {32}


def test_progress_counts_every_step(source: TrainingSet):
    steps: list[tuple[int, int]] = []
    fit = fit_on(source, 400)
    for _ in range(2):
        fit.run_epoch(2, lambda done, total: steps.append((done, total)))
    assert [done for done, _ in steps] == list(range(1, len(steps) + 1))
    assert {total for _, total in steps} == {len(steps)}


def test_the_papers_example_age_is_learnt_from_and_zero_when_serving(source: TrainingSet):
    settings = SETTINGS.model_copy(update={"example_age": True, "age_window_h": 0.5})
    dataset = source.dataset
    ages = dataset.queries(np.array([0, 700]), age_window_ms=1_800_000, until=701).age
    assert ages[1] == 0
    np.testing.assert_allclose(ages[0], min(1, (dataset.event_ms[700] - dataset.event_ms[0]) / 1_800_000), rtol=1e-6)
    model = learn(source, settings)
    assert model.encoder.tower.shape.example_age
    assert (model.encoder.queries_of(np.array([[1]])).age == 0).all()


@pytest.mark.parametrize("ablation", ABLATED)
def test_every_ablation_changes_the_model_and_keeps_it_finite(source: TrainingSet, ablation: type[Training]):
    settings = SETTINGS.model_copy(update={"negatives": 16, "epochs": 2})
    plain = learn(source, settings)
    changed = train(ablation, source, settings, until=len(source.dataset), items=len(source.catalogue))
    assert np.isfinite(changed.item_vectors()).all()
    assert (changed.vectors != plain.vectors).any()


def test_a_history_of_the_ablation_leaks_what_came_after_and_a_real_one_does_not():
    users, items = np.arange(200) % 3, np.arange(200)  # the item is the row
    rows = np.arange(60, 120)
    for kind, leaks in ((Dataset, False), (LeakyDataset, True)):
        windows = kind(users, items, items).histories(rows)
        assert bool((windows > rows[:, None]).any()) is leaks
        assert not (windows == rows[:, None]).any()


def fit_on(source: TrainingSet, until: int, settings: Model = SETTINGS) -> Fit:
    data = TrainingData(source.dataset, until, len(source.catalogue), settings)
    return Fit(new_net(source, SETTINGS, items=len(source.catalogue)), data, settings)


def test_a_training_of_an_hour_on_small_logs_has_enough_steps():
    log = small_source(small_log(600))
    assert fit_on(log, len(log.dataset), Model(half_life_events=500)).batch == 64


def test_an_epoch_of_a_long_log_is_a_part_of_it(source: TrainingSet, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("models.retrieval.candidate_training.EPOCH_EXAMPLES", 300)
    fit = fit_on(source, len(source.dataset))
    assert len(fit.data.rows) > 600
    assert fit.steps == -(-300 // fit.batch)
    learnt: list[np.ndarray] = []
    monkeypatch.setattr(fit, "learn", lambda chosen, rate: learnt.append(chosen) or 0.0)
    for _ in range(2):
        fit.run_epoch(2, lambda done, total: None)
    one, other = (np.concatenate(learnt[at : at + fit.steps]) for at in (0, fit.steps))
    assert len(set(one.tolist())) == len(one) <= 300 + fit.batch
    assert set(one.tolist()) != set(other.tolist())


def test_where_nobody_has_a_taste_the_model_is_popularity_alone_and_not_worse_than_it():
    """Everybody watches by the same popularity: whatever a tower learns beside it is noise."""
    rng = np.random.default_rng(1)
    rows, items = 8000, 150
    watched = (items * rng.random(rows) ** 2).astype(int)
    frame = pl.DataFrame(
        {
            "user_id": [f"u{n}" for n in rng.integers(0, 600, rows)],
            "item_id": [f"i{n}" for n in watched],
            "event_ms": 1_700_000_000_000 + 1000 * np.arange(rows),
        }
    )
    source = small_source(frame, small_items(items))
    dataset = source.dataset
    cut = int(0.9 * rows)
    settings = SETTINGS.model_copy(update={"epochs": 2, "linear_dim": 4, "half_life_events": 0.0})
    learned = learn_candidates(source, settings, until=cut, valid_from=int(0.8 * rows), items=items)
    assert (learned.selection.weight, learned.selection.linear, learned.selection.epochs) == (0, 0, 0)
    queries = dataset.queries(np.arange(cut, rows))
    users = learned.model.encode(queries)
    assert (users == 0).all()
    np.testing.assert_allclose(learned.model.item_vectors()[:, -1], learned.model.popularity.log_share())
    history = History(Stream(*(np.asarray(c, np.int64) for c in (dataset.users, dataset.items, dataset.event_ms))))
    ours = Live(learned.model, source, history, settings=Trainer(), seed=1)
    theirs = DecayedPopular(history.stream, cut, items, half_life=learned.model.popularity.half_life_events)
    walk = walk_live([ours, theirs], history, cut=cut, catalogue=items, block=50)
    assert paired(("ours", walk.ranks[ours.name]), ("theirs", walk.ranks[theirs.name]), 10).value > -0.02
