import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.ranking.quantiles import Quantiles, fit_quantiles


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
