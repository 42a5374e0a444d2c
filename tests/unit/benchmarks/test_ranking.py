"""The arithmetic of the ranker's benchmarks: a user's parts of several tenths are added up."""

import numpy as np

from models.evaluation.comparison import Ratio
from tests.benchmarks.ranking.ranking_rivals import added_up


def test_the_sums_of_a_user_who_is_in_several_tenths_are_added_up() -> None:
    first, second = Ratio(np.array([1.0, 2.0]), np.array([4.0, 4.0]), 2.0), Ratio(np.array([3.0]), np.array([8.0]), 2.0)
    both = added_up([first, second], [np.array([0, 2]), np.array([2])], 3)
    np.testing.assert_array_equal(both.above, [1, 0, 5])
    np.testing.assert_array_equal(both.below, [4, 0, 12])
    assert (both.value, both.users, both.scale) == (6 / 16, 2, 2.0)
