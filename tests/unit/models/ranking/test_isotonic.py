"""Isotonic calibration: by hand, and what a ranker of the paper's weights promises with it."""

from pathlib import Path

import numpy as np
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from infra.platform.settings import Ranker as Settings
from models.ranking.features import FEATURES
from models.ranking.quantiles import fit_isotonic
from models.ranking.ranker import Ranker
from models.ranking.ranker_training import LEAST_MAPPED, MAPPED, train_ranker
from models.ranking.ranking_evaluation import predict
from models.ranking.ranking_examples import RankingExamples
from tests.unit.models.samples import made_examples

SIZE = 24_000
PAPER = Settings(
    hidden=(),
    members=1,
    epochs=2,
    rate=0.05,
    dropout=0.0,
    weight_decay=0.0,
    completion=False,
    objective="paper",
    without=tuple(feature.name for feature in FEATURES if feature.name != "candidate"),
)


def test_neighbours_that_fall_are_pooled_and_what_lies_beyond_the_ends_keeps_their_factor():
    found = fit_isotonic(np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 5.0, 3.0, 6.0]))
    np.testing.assert_allclose(found.points, [1, 2.5, 4])
    np.testing.assert_allclose(found.values, [2, 4, 6])
    np.testing.assert_allclose(found(np.array([0.5, 1, 1.75, 2.5, 8])), [1, 2, 3, 4, 12])


def test_equal_seconds_are_one_point_of_the_map():
    found = fit_isotonic(np.repeat([1.0, 2.0], 100), np.r_[np.arange(100.0), np.full(100, 200.0)])
    np.testing.assert_allclose(found.points, [1, 2])
    np.testing.assert_allclose(found.values, [49.5, 200])


@given(st.lists(st.tuples(st.floats(0, 600), st.floats(0, 600)), min_size=2, max_size=200))
def test_isotonic_calibration_changes_no_order(rows: list[tuple[float, float]]):
    expected_s, watched_s = np.array(rows).T
    asked = np.linspace(0.001, 700, 300)
    seconds = fit_isotonic(expected_s, watched_s)(asked)
    assert (np.diff(seconds) > 0).all()


def examples_of(size: int = SIZE) -> RankingExamples:
    """Five items that are watched for 20 s in a fifth to all but a tenth of their impressions, and else for none."""
    item = np.arange(size) % 5
    share = np.array([0.2, 0.4, 0.6, 0.8, 0.9])[item]
    watched = np.random.default_rng(1).random(size) < share
    return made_examples(20.0 * watched, watched, ids={"candidate": [[f"i{n}"] for n in item]})


@pytest.fixture(scope="module")
def examples() -> RankingExamples:
    return examples_of()


@pytest.fixture(scope="module")
def mapped(examples: RankingExamples, tmp_path_factory: pytest.TempPathFactory) -> Ranker:
    return train_ranker(examples, tmp_path_factory.mktemp("fit"), settings=PAPER.model_copy(update={"isotonic": True}))


@pytest.fixture(scope="module")
def plain(examples: RankingExamples, tmp_path_factory: pytest.TempPathFactory) -> Ranker:
    return train_ranker(examples, tmp_path_factory.mktemp("fit"), settings=PAPER)


def by_item(ranker: Ranker, examples: RankingExamples) -> np.ndarray:
    seconds = predict(ranker, examples)
    return np.array([seconds[start::5].mean() for start in range(5)])


def test_the_papers_weights_promise_the_seconds_that_are_watched(
    plain: Ranker, mapped: Ranker, examples: RankingExamples
):
    watched_s = np.array([examples.target_s[start::5].mean() for start in range(5)])
    assert (by_item(plain, examples)[2:] > 2 * watched_s[2:]).all(), "odds of E[T] / (1 - P) are no seconds"
    np.testing.assert_allclose(by_item(mapped, examples), watched_s, rtol=0.2)


def test_the_map_is_of_a_fit_that_has_not_seen_the_newest_and_changes_nothing_else(
    plain: Ranker, mapped: Ranker, examples: RankingExamples, tmp_path: Path
):
    for name, array in plain.to_arrays().items():
        np.testing.assert_array_equal(mapped.to_arrays()[name], array)
    rows = np.arange(SIZE)
    is_newest = rows >= SIZE - int(MAPPED * SIZE)  # all are of one moment: the last ones are the newest
    earlier = train_ranker(examples, tmp_path, settings=PAPER, rows=rows[~is_newest])
    said_s = predict(earlier.uncapped(), examples.take(rows[is_newest]))
    expected = fit_isotonic(said_s, np.asarray(examples.target_s[is_newest], np.float64))
    assert mapped.isotonic is not None and plain.isotonic is None
    np.testing.assert_array_equal(mapped.isotonic.points, expected.points)
    np.testing.assert_array_equal(mapped.isotonic.values, expected.values)


def test_the_map_is_kept_with_the_ranker(mapped: Ranker, examples: RankingExamples):
    again = Ranker.from_arrays(mapped.to_arrays(), mapped.shape, mapped.spaces.names)
    np.testing.assert_array_equal(predict(again, examples), predict(mapped, examples))
    assert mapped.in_bfloat16().isotonic is mapped.isotonic


def test_no_more_is_promised_than_the_cap_and_what_the_odds_exceed_it_by_keeps_its_order(mapped: Ranker):
    logits = np.log(np.array([1.0, mapped.cap_s, 2 * mapped.cap_s, 1e5], np.float32))
    seconds = mapped.seconds(logits, np.full(4, np.nan, np.float32))
    assert seconds[0] < seconds[1] < seconds[2] <= mapped.cap_s
    assert seconds[3] == pytest.approx(mapped.cap_s)


def test_too_few_examples_make_no_map_and_one_of_other_weights_is_not_kept(mapped: Ranker, tmp_path: Path):
    few = examples_of(int(0.9 * LEAST_MAPPED / MAPPED))
    wanted = PAPER.model_copy(update={"isotonic": True})
    with structlog.testing.capture_logs() as told:
        assert train_ranker(few, tmp_path / "new", settings=wanted).isotonic is None
        assert train_ranker(few, tmp_path / "warm", settings=wanted, warm=mapped).isotonic is None
    assert [each["event"] for each in told] == ["too few examples for ranker.isotonic: no map"] * 2
    assert {each["objective"] for each in told} == {"unbiased"}
    none = examples_of(50)
    assert train_ranker(none, tmp_path / "none", settings=wanted, warm=mapped) is mapped, "it stays as it was"


@pytest.mark.parametrize(
    ("said", "trained_with"),
    [
        ({"isotonic": True}, "unbiased"),
        ({"isotonic": False}, "paper"),
        ({"isotonic": True, "objective": "equal"}, "equal"),
    ],
)
def test_without_a_map_the_papers_weights_make_way_for_those_that_promise_seconds_unless_no_map_is_wanted(
    tmp_path: Path, said: dict[str, object], trained_with: str
):
    few = examples_of(3_000)
    ranker = train_ranker(few, tmp_path / "said", settings=PAPER.model_copy(update=said))
    assert ranker.shape is not None and (ranker.shape.objective, ranker.isotonic) == (trained_with, None)
    plain = PAPER.model_copy(update={"objective": trained_with})
    for name, array in train_ranker(few, tmp_path / "plain", settings=plain).to_arrays().items():
        np.testing.assert_array_equal(ranker.to_arrays()[name], array)


def test_a_warm_start_of_other_weights_begins_anew(plain: Ranker, examples: RankingExamples, tmp_path: Path):
    still = PAPER.model_copy(update={"epochs": 1, "rate": 1e-9})
    assert train_ranker(examples, tmp_path / "same", settings=still, warm=plain).spaces is plain.spaces
    other = still.model_copy(update={"objective": "unbiased"})
    assert train_ranker(examples, tmp_path / "other", settings=other, warm=plain).spaces is not plain.spaces


def test_the_progress_of_both_trainings_is_one(tmp_path: Path):
    size = round(LEAST_MAPPED / MAPPED)
    wanted = PAPER.model_copy(update={"isotonic": True, "epochs": 1})
    told: list[tuple[int, int]] = []
    train_ranker(examples_of(size), tmp_path, settings=wanted, progress=lambda *at: told.append(at))
    assert {total for _, total in told} == {2 * size - LEAST_MAPPED}
    done = [at for at, _ in told]
    assert done == sorted(done) and done[-1] == 2 * size - LEAST_MAPPED


def test_a_warm_start_goes_on_from_one_with_a_map(mapped: Ranker, examples: RankingExamples, tmp_path: Path):
    still = PAPER.model_copy(update={"isotonic": True, "epochs": 1, "rate": 1e-9})
    again = train_ranker(examples, tmp_path, settings=still, warm=mapped)
    assert again.spaces is mapped.spaces and again.isotonic is not None


def test_what_the_odds_exceed_the_cap_by_is_mapped_and_not_all_promised_the_cap(tmp_path: Path):
    """Items that are nearly always watched: the paper's odds of them are far beyond the cap, their seconds are not."""
    shares = np.array([0.3, 0.6, 0.9, 0.95, 0.98])
    item = np.arange(SIZE) % 5
    watched = np.random.default_rng(1).random(SIZE) < shares[item]
    examples = made_examples(20.0 * watched, watched, ids={"candidate": [[f"i{n}"] for n in item]}).capped(40.0)
    ranker = train_ranker(examples, tmp_path, settings=PAPER.model_copy(update={"isotonic": True}))
    promised = by_item(ranker, examples)
    assert ranker.cap_s == 40.0
    np.testing.assert_allclose(promised, 20 * shares, rtol=0.15)
    assert (np.diff(promised) > 0).all()
