"""The linear part where order counts: the best low-rank form of what is watched soon after what."""

import numpy as np

from models.logs.pairs import soon_after
from models.retrieval.linear import EVENNESS, ordered_factors


def small() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    users = np.sort(rng.integers(0, 30, 300))
    return users, rng.integers(0, 11, 300)


def test_all_directions_together_are_the_counts_themselves_with_popular_items_held_back():
    users, items = small()
    queries, outputs = ordered_factors(users, items, size=12, dim=12, seed=1)
    counts = np.bincount(items, minlength=12).astype(float)
    held = np.maximum(counts, 1) ** -EVENNESS
    expected = held[:, None] * (soon_after(users, items, 12).toarray() + np.diag(counts)) * held
    np.testing.assert_allclose(queries @ outputs.T, expected, atol=1e-4)
    assert (queries[11] == 0).all() and (outputs[11] == 0).all(), "nobody watched it"


def test_fewer_directions_keep_most_of_it_and_missing_ones_are_zero():
    users, items = small()
    whole, part = (np.matmul(q, o.T) for q, o in (
        ordered_factors(users, items, size=12, dim=dim, seed=1) for dim in (12, 6)
    ))  # fmt: skip
    assert 0 < np.square(whole - part).sum() < 0.2 * np.square(whole).sum()
    queries, outputs = ordered_factors(users, items, size=12, dim=20, seed=1)
    assert queries.shape == outputs.shape == (12, 20) and (queries[:, 12:] == 0).all()
    nothing = np.zeros(0, np.int64)
    assert (ordered_factors(nothing, nothing, size=3, dim=2, seed=1)[0] == 0).all()


def test_what_is_watched_next_is_spoken_for_more_than_what_was_watched_before():
    users, items = np.repeat(np.arange(40), 3), np.tile([0, 1, 2], 40)
    queries, outputs = ordered_factors(users, items, size=3, dim=3, seed=1)
    speaks = queries @ outputs.T
    assert speaks[1, 2] > 1.5 * speaks[1, 0]
