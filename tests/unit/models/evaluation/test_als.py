"""Only where the benchmark extra is installed: everywhere else the report says that ALS is left out."""

import numpy as np

from models.evaluation.als import Als
from models.evaluation.backtest import History, Stream, walk_live
from tests.harness.needs import ALS, needs


@needs(ALS)
def test_als_finds_what_alike_users_watch_and_repeats_itself():
    rng = np.random.default_rng(1)
    users = rng.integers(0, 40, 900)
    items = 2 * rng.integers(0, 10, 900) + users % 2  # even users watch even items
    stream = Stream(users, items, np.arange(900))
    history = History(stream)
    walks = []
    for _ in range(2):
        als = Als(stream, 250, 20, factors=4, regularization=0.1, alpha=5.0, seed=3)
        walks.append(walk_live([als], history, cut=250, catalogue=20).ranks["ALS"])
    np.testing.assert_array_equal(*walks)
    assert (walks[0] < 10).mean() > 0.95
