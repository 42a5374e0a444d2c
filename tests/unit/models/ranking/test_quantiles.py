import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.ranking.quantiles import Quantiles, WatchQuantiles, fit_quantiles, fit_watch_quantiles


def encode(table: Quantiles, *values: float) -> list[float]:
    encoded: list[float] = table.encode(np.array(values, np.float32)[:, None])[:, 0].tolist()
    return encoded


def fit(*values: float, points: int = 1000) -> Quantiles:
    return fit_quantiles(np.array(values, np.float32)[:, None], points)


def test_a_value_becomes_its_share_of_the_training_values():
    # mid-ranks 1/8, 3/8, 5/8, 7/8; 2.5 lies half way between 3/8 and 5/8, 3.2 a fifth of the way from 5/8 to 7/8
    np.testing.assert_allclose(encode(fit(1, 2, 3, 4), 1, 2.5, 3.2), [1 / 8, 1 / 2, 5 / 8 + 1 / 20], rtol=1e-6)


def test_equal_values_share_the_middle_of_their_ranks():
    np.testing.assert_allclose(encode(fit(0, 0, 0, 9), 0, 9), [1.5 / 4, 3.5 / 4])
    np.testing.assert_allclose(encode(fit(7, 7, 7), 6, 7, 8), [0.5, 0.5, 0.5])


def test_missing_stays_missing_and_is_not_zero():
    table = fit(1, np.nan, 3)
    assert np.isnan(encode(table, np.nan, np.inf, -np.inf)).all()
    np.testing.assert_allclose(encode(table, 1, 3), [1 / 4, 3 / 4])


def test_a_feature_without_training_values_is_missing_wherever_it_is_served():
    table = fit_quantiles(np.array([[np.nan, 1], [np.inf, 2]], np.float32))
    x = table.encode(np.array([[7.0, 1.5]], np.float32))
    assert np.isnan(x[0, 0])
    assert x[0, 1] == 0.5
    nothing = fit_quantiles(np.zeros((5, 0), np.float32))
    assert nothing.encode(np.zeros((3, 0), np.float32)).shape == (3, 0)


def test_values_beyond_the_training_range_stay_inside():
    first, last = encode(fit(*range(100)), -1e9, 1e9)
    assert 0 <= first < last < 1


def test_a_long_column_is_uniform_after_encoding():
    values = np.random.default_rng(1).lognormal(size=(20_000, 1)).astype(np.float32)
    x = fit_quantiles(values).encode(values)[:, 0]
    np.testing.assert_allclose(np.quantile(x, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.01)


numbers = st.floats(width=32, allow_nan=True, allow_infinity=True)


@settings(max_examples=150, deadline=None)
@given(arrays(np.float32, st.tuples(st.integers(1, 60), st.just(2)), elements=numbers), st.integers(2, 12))
def test_order_is_kept_and_every_number_lies_in_0_1(features: np.ndarray, points: int):
    table = fit_quantiles(features, points)
    x = table.encode(features)
    for values, encoded in zip(features.T, x.T, strict=True):
        known = np.isfinite(values)
        assert (np.isnan(encoded) == ~known).all()
        assert ((encoded[known] >= 0) & (encoded[known] < 1)).all()
        assert (np.diff(encoded[known][np.argsort(values[known], kind="stable")]) >= 0).all()


@settings(max_examples=50, deadline=None)
@given(arrays(np.float32, st.tuples(st.integers(1, 30), st.just(3)), elements=numbers))
def test_a_table_that_was_saved_and_loaded_encodes_the_same(features: np.ndarray):
    table = fit_quantiles(features, points=8)
    again = Quantiles(table.points.copy(), table.ranks.copy())
    np.testing.assert_array_equal(again.encode(features), table.encode(features))


# two groups, up to 60 s and beyond, and one for unknown durations; quantiles 0, 1/2 and 1
TABLE = WatchQuantiles(np.array([60], np.float32), np.array([[0, 10, 60], [0, 100, 300], [0, 20, 300]], np.float32))


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_a_quantile_is_of_the_group_of_its_duration_by_hand():
    durations = floats(60, 61, 1e9, np.nan, 60)
    np.testing.assert_allclose(TABLE.seconds(floats(0.5, 0.5, 1, 0.5, 0.75), durations), [10, 100, 300, 20, 35])
    # 10 s stand at the middle of three places, 50 s between the second and the third, 999 s behind all
    found = TABLE.quantile(floats(10, 50, 999, 0), floats(60, 60, 60, 60))
    np.testing.assert_allclose(found, [1.5 / 3, 2 / 3, 1, 0.5 / 3])


def test_a_quantile_beyond_0_1_is_the_last_one():
    assert TABLE.seconds(floats(-3, 7), floats(60, 60)).tolist() == [0, 60]


def test_durations_that_are_all_unknown_are_one_group():
    table = fit_watch_quantiles(floats(1, 2, 3), floats(np.nan, np.nan, np.nan))
    assert table.seconds(floats(0.5), floats(np.nan)).tolist() == [2]
    assert table.seconds(floats(0.5), floats(30)).tolist() == [2], "no group of its own: that of all"


pairs = st.lists(st.tuples(st.sampled_from([0.0, 3.0, 20.0, 600.0]), st.sampled_from([10.0, 60.0, 200.0, np.nan])))


@settings(max_examples=100, deadline=None)
@example([(3.0, 10.0)], 0.0, float(np.float32(1e-09)))  # between equal seconds
@given(pairs.filter(bool), st.floats(0, 1, width=32), st.floats(0, 1, width=32))
def test_there_and_back_order_is_kept_and_everything_is_finite(
    found: list[tuple[float, float]], one: float, other: float
):
    watch_s, duration_s = (np.array(column, np.float32) for column in zip(*found, strict=True))
    table = fit_watch_quantiles(watch_s, duration_s)
    quantiles = table.quantile(watch_s, duration_s)
    assert ((quantiles >= 0) & (quantiles <= 1)).all()
    low, high = (table.seconds(np.full(len(watch_s), q, np.float32), duration_s) for q in sorted((one, other)))
    assert (np.isfinite(low) & (low <= high) & (high <= watch_s.max())).all()
    assert (low >= watch_s.min()).all()


def test_back_from_a_quantile_are_about_the_same_seconds():
    rng = np.random.default_rng(1)
    duration_s = rng.choice([30.0, 300.0], 4000).astype(np.float32)
    watch_s = (duration_s * rng.random(4000)).astype(np.float32)
    table = fit_watch_quantiles(watch_s, duration_s)
    quantiles = table.quantile(watch_s, duration_s)
    np.testing.assert_allclose(quantiles.mean(), 0.5, atol=0.01)
    np.testing.assert_allclose(quantiles[duration_s < 100].mean(), 0.5, atol=0.02)
    np.testing.assert_allclose(table.seconds(quantiles, duration_s), watch_s, atol=6)
