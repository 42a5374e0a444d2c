"""Pairs that are watched soon after each other, counted by hand."""

import numpy as np

from models.logs.pairs import BACKWARDS, FADING, REACH, soon_after


def test_near_pairs_count_more_and_what_came_before_counts_in_part():
    users, items = np.array([0, 1, 0, 0, 1]), np.array([2, 0, 0, 1, 2])  # 0 watched 2 0 1, and 1 watched 0 2
    found = soon_after(users, items, 4).toarray()
    far = 2**-FADING
    expected = np.zeros((4, 4))
    expected[2, 0] = 1 + BACKWARDS
    expected[0, 2] = BACKWARDS + 1
    expected[0, 1], expected[1, 0] = 1, BACKWARDS
    expected[2, 1], expected[1, 2] = far, BACKWARDS * far
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_an_item_is_no_pair_with_itself_and_pairs_end_at_a_users_last_watch_and_at_their_reach():
    assert soon_after(np.array([0, 0, 1]), np.array([1, 1, 0]), 2).nnz == 0
    items = np.arange(REACH + 2)
    found = soon_after(np.zeros(len(items), np.int64), items, len(items)).toarray()
    assert found[0, REACH] > 0 and found[0, REACH + 1] == 0
    assert soon_after(np.zeros(0, np.int64), np.zeros(0, np.int64), 3).shape == (3, 3)
