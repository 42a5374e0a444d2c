import numpy as np

from models.quantiles import Quantiles, fit_quantiles


def encode(table: Quantiles, *values: float) -> np.ndarray:
    return table.encode(np.array(values, np.float32)[:, None])


def test_a_value_becomes_its_share_of_the_training_values_with_its_powers():
    table = fit_quantiles(np.array([[1.0], [2.0], [3.0], [4.0]], np.float32))
    # mid-ranks 1/8, 3/8, 5/8, 7/8; 2.5 lies half way between 3/8 and 5/8
    np.testing.assert_allclose(encode(table, 2.5), [[0.5, 0.25, np.sqrt(0.5), 0]], rtol=1e-6)


def test_equal_values_share_the_middle_of_their_ranks():
    table = fit_quantiles(np.array([[0.0], [0.0], [0.0], [9.0]], np.float32))
    np.testing.assert_allclose(encode(table, 0, 9)[:, 0], [1.5 / 4, 3.5 / 4])


def test_missing_is_its_own_value():
    table = fit_quantiles(np.array([[1.0], [np.nan], [3.0]], np.float32))
    np.testing.assert_array_equal(encode(table, np.nan, np.inf), [[0, 0, 0, 1]] * 2)


def test_values_beyond_the_training_range_stay_inside():
    table = fit_quantiles(np.arange(100, dtype=np.float32)[:, None])
    x = encode(table, -1e9, 1e9)[:, 0]
    assert 0 <= x[0] < x[1] < 1


def test_a_feature_without_training_values_is_missing_wherever_it_is_served():
    table = fit_quantiles(np.full((5, 1), np.nan, np.float32))
    np.testing.assert_array_equal(encode(table, 7.0), [[0, 0, 0, 1]])


def test_a_long_column_is_uniform_after_encoding():
    values = np.random.default_rng(1).lognormal(size=(20_000, 1)).astype(np.float32)
    x = fit_quantiles(values).encode(values)[:, 0]
    np.testing.assert_allclose(np.quantile(x, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.01)
