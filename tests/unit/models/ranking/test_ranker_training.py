"""What a ranker learns, on examples that are small enough to say what it must."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from infra.platform.settings import Ranker as Settings
from models.ranking.features import FEATURES, numbers_of
from models.ranking.ranker import Ranker
from models.ranking.ranker_training import LEAST_ROWS, SIZES, default_hidden, fit_spaces, shape_of, train_ranker
from models.ranking.ranking_batch import Codes
from models.ranking.ranking_evaluation import predict
from models.ranking.ranking_examples import SCOPES, RankingExamples
from tests.unit.models.samples import RANKER, made_examples

SIZE = 800
QUICK = Settings(hidden=(8,), members=1, epochs=1, rate=1e-3, dropout=0.0, completion=False, least_count=5)
LONG = QUICK.model_copy(update={"epochs": 25, "rate": 0.02, "weight_decay": 0.0})


def of_only(*features: str, **changes: object) -> Settings:
    """Long training on these features and nothing else."""
    return LONG.model_copy(update={"without": tuple(f.name for f in FEATURES if f.name not in features), **changes})


def train(examples: RankingExamples, tmp_path: Path, settings: Settings = QUICK, **options: object) -> Ranker:
    return train_ranker(examples, tmp_path / "fit", settings=settings, **options)  # type: ignore[arg-type]


def two_items() -> RankingExamples:
    """`a` is watched for 40 s in half of its impressions: E[T] = 20 s. `b` for 8 s in a quarter: 2 s."""
    is_a, turn = np.arange(SIZE) % 2 == 0, np.arange(SIZE) // 2
    watched = np.where(is_a, turn % 2 == 0, turn % 4 == 0)
    target_s = np.where(watched, np.where(is_a, 40.0, 8.0), 0.0)
    return made_examples(target_s, watched, ids={"candidate": [["a"] if each else ["b"] for each in is_a]})


@pytest.fixture(scope="module")
def items() -> RankingExamples:
    return two_items()


@pytest.fixture(scope="module")
def mixed() -> RankingExamples:
    """Numbers and ids of both scopes that say something of the seconds."""
    rng = np.random.default_rng(1)
    hour, age, item = rng.uniform(0, 24, SIZE), rng.uniform(0, 100, SIZE), rng.integers(0, 6, SIZE)
    target_s = (hour + 10.0 * item) * (rng.random(SIZE) < 0.6)
    age[rng.random(SIZE) < 0.2] = np.nan
    ids = {
        "candidate": [[f"i{n}"] for n in item],
        "last_watched": [[f"i{m}" for m in range(n)] for n in item],
        "topics": [[f"t{n % 2}", "t3"] for n in item],
        "region": [["de"] if n % 3 else [] for n in item],
    }
    return made_examples(target_s, target_s > 18, ids=ids, numbers={"hour": hour, "age_h": age})


def check_equal(one: Ranker, other: Ranker) -> None:
    ours, theirs = one.to_arrays(), other.to_arrays()
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)
    assert one.spaces.names == other.spaces.names
    assert one.shape == other.shape


@pytest.mark.parametrize(
    ("objective", "of_a", "of_b"),
    [("unbiased", 20, 2), ("paper", 20 / (1 - 1 / 2), 2 / (1 - 1 / 4)), ("equal", 1, 1 / 3)],
)
def test_the_odds_are_those_of_the_objective(
    items: RankingExamples, tmp_path: Path, objective: str, of_a: float, of_b: float
):
    """E[T]; in the paper's form E[T] / (1 - P); where all weigh the same P / (1 - P)."""
    odds = predict(train(items, tmp_path, of_only("candidate", objective=objective)), items)
    assert odds[0::2].mean() == pytest.approx(of_a, rel=0.1)
    assert odds[1::2].mean() == pytest.approx(of_b, rel=0.1)


def test_the_second_head_learns_what_is_completed(items: RankingExamples, tmp_path: Path):
    ranker = train(items, tmp_path, of_only("candidate", completion=True))
    logits = ranker.logits(*served(items), np.arange(SIZE))
    completed = 1 / (1 + np.exp(-logits[:, 1]))
    np.testing.assert_allclose([completed[0::2].mean(), completed[1::2].mean()], [1 / 2, 1 / 4], atol=0.05)
    assert ranker.seconds(logits[:, 0], items.duration_s)[0] == pytest.approx(20, rel=0.15)


def served(examples: RankingExamples) -> tuple[dict, dict]:
    return examples.numbers, {n: Codes(e.codes.astype(np.int64), e.names, e.first) for n, e in examples.ids.items()}


def test_what_a_place_adds_is_learnt_apart_and_left_out_in_serving(tmp_path: Path):
    """Both items are worth the same. `a` mostly stands first, where everything is watched four times as long."""
    rng = np.random.default_rng(1)
    is_a = np.arange(SIZE) % 2 == 0
    first = rng.random(SIZE) < np.where(is_a, 0.9, 0.1)
    target_s = np.where(first, 40.0, 10.0)
    ids = {"candidate": [["a"] if each else ["b"] for each in is_a]}
    examples = made_examples(target_s, target_s > 18, ids=ids, position=np.where(first, 1, 2))
    naive, neutral = (
        predict(train(examples, tmp_path, of_only("candidate", position=position)), examples)
        for position in (False, True)
    )
    assert naive[is_a].mean() > 2 * naive[~is_a].mean()
    assert neutral[is_a].mean() == pytest.approx(neutral[~is_a].mean(), rel=0.15)


def test_d2q_learns_how_a_watch_compares_with_others_of_like_duration(tmp_path: Path):
    """Of each video a quarter is watched whole, of short ones and of long ones: liked is the same, seconds are not."""
    is_long, turn = np.arange(SIZE) % 2 == 0, np.arange(SIZE) // 2
    target_s = np.where(turn % 4 == 0, 1.0, 0.2) * np.where(is_long, 500.0, 50.0)
    numbers = {"retrieval_score": turn % 4 == 0}
    examples = made_examples(target_s, turn % 4 == 0, numbers=numbers)
    examples = dataclasses.replace(examples, duration_s=np.where(is_long, 500, 50).astype(np.float32))
    seconds = predict(train(examples, tmp_path, of_only("retrieval_score", target="d2q")), examples)
    for long in (True, False):
        liked, other = seconds[(is_long == long) & (turn % 4 == 0)], seconds[(is_long == long) & (turn % 4 != 0)]
        assert liked.mean() > 3 * other.mean()
    assert seconds[is_long].mean() == pytest.approx(10 * seconds[~is_long].mean(), rel=0.2)


def test_it_begins_at_the_mean_watch_time(tmp_path: Path):
    target_s = np.full(LEAST_ROWS, 500.0)
    hardly = QUICK.model_copy(update={"rate": 1e-9})
    found = predict(train(made_examples(target_s, target_s > 0), tmp_path, hardly), made_examples(target_s, target_s))
    np.testing.assert_allclose(found, 500, rtol=0.5)


def test_too_few_rows_train_nothing(items: RankingExamples, tmp_path: Path):
    assert not train(items, tmp_path, rows=np.arange(LEAST_ROWS - 1)).trained
    warm = train(items, tmp_path)
    assert train(items, tmp_path, rows=np.arange(0), warm=warm) is warm


def test_the_same_seed_gives_the_same_ranker_and_another_one_another(mixed: RankingExamples, tmp_path: Path):
    settings = Settings(hidden=(8, 4), members=2, epochs=2, dropout=0.3)
    one, again = (train(mixed, tmp_path / name, settings) for name in ("one", "again"))
    check_equal(one, again)
    other = train(mixed, tmp_path / "other", settings.model_copy(update={"seed": 2}))
    assert (predict(other, mixed) != predict(one, mixed)).any()
    nets = one.to_arrays()
    assert (nets["net.0.bias"] != nets["net.1.bias"]).any(), "members are trained apart"


def test_only_the_rows_that_are_given_are_learnt_from(mixed: RankingExamples, tmp_path: Path):
    rows, rng = np.arange(0, SIZE, 2), np.random.default_rng(2)
    target_s = np.asarray(mixed.target_s).copy()
    target_s[1::2] = rng.permutation(target_s[1::2]) * 3
    changed = dataclasses.replace(mixed, target_s=target_s)
    check_equal(train(mixed, tmp_path, rows=rows), train(changed, tmp_path, rows=rows))


@pytest.mark.parametrize("warm_from_disk", [False, True])
def test_a_warm_start_goes_on_from_the_earlier_networks_with_their_ids_and_quantiles(
    mixed: RankingExamples, tmp_path: Path, warm_from_disk: bool
):
    """Some id spaces are without any id, and still are when the ranker comes from a bundle."""
    warm = train(mixed, tmp_path / "long", LONG)
    assert warm.spaces.names["device"] == []
    if warm_from_disk:
        names = {space: known for space, known in warm.spaces.names.items() if known}
        warm = Ranker.from_arrays(warm.to_arrays(), warm.shape, names)
    still = LONG.model_copy(update={"epochs": 1, "rate": 1e-9})
    shifted = dataclasses.replace(mixed, numbers={s: values + 1 for s, values in mixed.numbers.items()})
    warmed = train(shifted, tmp_path / "warm", still, warm=warm)
    for name, array in warm.to_arrays().items():
        np.testing.assert_allclose(warmed.to_arrays()[name], array, atol=1e-6, err_msg=name)
    assert warmed.spaces.names == warm.spaces.names


@pytest.mark.parametrize("change", [{"hidden": (4,)}, {"without": ("hour",)}, {"target": "d2q"}])
def test_a_ranker_of_another_shape_is_no_start(mixed: RankingExamples, tmp_path: Path, change: dict[str, object]):
    warm, settings = train(mixed, tmp_path), QUICK.model_copy(update=change)
    check_equal(train(mixed, tmp_path, settings, warm=warm), train(mixed, tmp_path, settings))
    check_equal(train(mixed, tmp_path, QUICK, warm=train(mixed, tmp_path, settings)), train(mixed, tmp_path))


@pytest.mark.parametrize(
    "without",
    [
        ("hour", "candidate", "region"),
        tuple(feature.name for feature in FEATURES if feature.is_number),
        tuple(feature.name for feature in FEATURES if not feature.is_number),
    ],
)
def test_the_network_never_reads_a_feature_that_is_left_out(
    mixed: RankingExamples, tmp_path: Path, without: tuple[str, ...]
):
    rng, settings = np.random.default_rng(1), QUICK.model_copy(update={"without": without})
    numbers = {scope: np.asarray(mixed.numbers[scope]).copy() for scope in SCOPES}
    for scope in SCOPES:
        for column, feature in enumerate(numbers_of(scope)):
            if feature.name in without:
                numbers[scope][:, column] = rng.normal(size=SIZE)
    ids = {
        name: Codes(rng.permutation(named.codes), named.names) if name in without else named
        for name, named in mixed.ids.items()
    }
    other = dataclasses.replace(mixed, numbers=numbers, ids=ids)
    ranker = train(mixed, tmp_path, settings)
    if "candidate" not in without:  # else: its space is counted, and nothing of it is read
        check_equal(ranker, train(other, tmp_path, settings))
    np.testing.assert_array_equal(predict(ranker, other), predict(ranker, mixed))
    assert ranker.shape is not None
    assert not set(ranker.shape.features) & set(without)
    assert (predict(ranker, mixed) != predict(ranker, mixed)[0]).any() or len(without) > 10


def test_an_id_that_is_rare_among_clicked_impressions_is_as_good_as_unknown(tmp_path: Path):
    """`rare` has four clicks and five are needed; `passed-over` has many impressions and no click."""
    kinds = ["common"] * 500 + ["passed-over"] * 296 + ["rare"] * 4
    target_s = np.array([30.0] * 250 + [0.0] * 250 + [0.0] * 296 + [40.0] * 4)
    examples = made_examples(target_s, target_s > 18, ids={"candidate": [[kind] for kind in kinds]})
    ranker = train(examples, tmp_path, of_only("candidate"))
    assert ranker.spaces.names["item"] == ["common"]
    assert (ranker.to_arrays()["net.0.tables.item.weight"][0] == 0).all()
    asked = ["common", "rare", "passed-over", "never-seen", ""]
    logits = predict(ranker, made_examples(np.zeros(5), np.zeros(5), ids={"candidate": [[name] for name in asked]}))
    assert logits[1] == logits[2] == logits[3] == logits[4] != logits[0]
    known = train(examples, tmp_path, of_only("candidate", least_count=4))
    assert known.spaces.names["item"] == ["common", "rare"]


def test_the_ids_of_a_space_are_counted_in_all_its_features_of_a_scope(monkeypatch: pytest.MonkeyPatch):
    """No two features of one scope share a space today; if one is declared, its ids count too."""
    ids = {"channel": [["a"]] * 2, "sources": [["b"], ["a"]]}
    examples = made_examples([20.0, 20.0], [True, True], ids=ids)
    names = ["", "a", "b"]
    shared = {"channel": Codes(np.array([[1], [1]]), names), "sources": Codes(np.array([[2], [1]]), names)}
    features = [dataclasses.replace(f, space="channel") if f.name == "sources" else f for f in FEATURES]
    monkeypatch.setattr("models.ranking.ranker_training.FEATURES", features)
    monkeypatch.setattr(
        "models.ranking.ranker_training.ids_of",
        lambda scope: tuple(f for f in features if not f.is_number and f.scope == scope),
        raising=False,
    )
    examples = dataclasses.replace(examples, ids=examples.ids | shared)
    found = fit_spaces(examples, np.arange(2), QUICK.model_copy(update={"least_count": 3}))
    assert found.names["channel"] == ["a"], "two of its clicks are a channel's, one is a source's"


def test_clicks_of_the_query_are_counted_at_the_examples_requests(mixed: RankingExamples):
    spaces = fit_spaces(mixed, np.arange(SIZE), QUICK.model_copy(update={"least_count": 1, "ids": 2}))
    clicked = [mixed.ids["candidate"].codes[row, 0] for row in np.flatnonzero(mixed.completed)]
    counts = np.bincount(clicked)
    assert (
        counts[[mixed.ids["candidate"].names.index(name) for name in spaces.names["item"]]].tolist()
        == (sorted(counts.tolist(), reverse=True)[:2])
    )
    assert spaces.names["region"] == ["de"]
    assert spaces.names["language"] == []


def test_the_shape_follows_examples_and_settings():
    least = sorted(least for least, _ in SIZES)
    assert [len(default_hidden(n)) for n in (0, 10**9)] == [2, 3]
    assert default_hidden(10**9) == (1024, 512, 256), "the paper's, where there is the data for it"
    widest = [default_hidden(n)[0] for n in least]
    assert widest == sorted(widest)
    assert default_hidden(least[1] - 1) == default_hidden(0) != default_hidden(least[1])
    spaces = fit_spaces(made_examples([1.0], [True], ids={"candidate": [["a"]]}), np.arange(1), Settings(least_count=1))
    shape = shape_of(spaces, 300, Settings(without=("channel", "age_h")))
    assert shape.hidden == default_hidden(300)
    assert "channel" not in shape.sizes
    assert (shape.sizes["item"], shape.sizes["topic"], shape.widths["topic"]) == (2, 1, 2)
    assert set(shape.features) == {f.name for f in FEATURES} - {"channel", "age_h"}


def test_progress_is_told_up_to_the_end(items: RankingExamples, tmp_path: Path):
    told: list[tuple[int, int]] = []
    settings = QUICK.model_copy(update={"members": 2, "epochs": 2})
    train(items, tmp_path, settings, progress=lambda *step: told.append(step))
    assert told[-1] == (4 * SIZE, 4 * SIZE)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_watch_times_of_any_size_and_no_watch_at_all_are_learnt_from(tmp_path: Path):
    for target_s in (np.zeros(LEAST_ROWS), np.full(LEAST_ROWS, 600.0), np.geomspace(1e-6, 600, LEAST_ROWS)):
        for objective in ("unbiased", "paper", "equal"):
            examples = made_examples(target_s, target_s > 18, numbers={"hour": np.full(LEAST_ROWS, np.inf)})
            ranker = train(examples, tmp_path, RANKER.model_copy(update={"objective": objective, "epochs": 2}))
            assert np.isfinite(predict(ranker, examples)).all()
