import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.ranking.watch_quantiles import WatchQuantiles, fit_watch_quantiles

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
