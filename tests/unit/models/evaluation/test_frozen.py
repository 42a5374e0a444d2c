import numpy as np

from models.evaluation.backtest import walk_frozen, walk_live
from models.evaluation.baselines import DecayedPopular
from models.evaluation.eval_queries import History
from models.evaluation.frozen import Frozen
from models.evaluation.item_to_item import ItemKnn
from tests.unit.models.evaluation.test_backtest import CATALOGUE, CUT, STREAM, Recorder, walked

HISTORY = History(STREAM)


def test_a_frozen_one_is_shown_what_was_watched_at_the_cut():
    recorder = Recorder()
    walk_live([Frozen(recorder, HISTORY, CUT, name="frozen")], HISTORY, cut=CUT, catalogue=CATALOGUE, block=4)
    assert all(isinstance(event, list) for event in recorder.events), "it learns nothing"
    shown = [(int(asked.users[at]), walked(asked, at)) for asked in recorder.queries for at in range(len(asked))]
    # user 2 came after the cut: nothing is known of them
    assert shown == [(2, []), (1, [1, 2]), (0, [0, 2, 3]), (1, [1, 2])]


def test_a_frozen_popularity_keeps_the_order_of_the_cut():
    still = DecayedPopular(STREAM, CUT, CATALOGUE, half_life=2)
    shares = still.shares()
    walk_live([Frozen(still, HISTORY, CUT, name="x")], HISTORY, cut=CUT, catalogue=CATALOGUE)
    np.testing.assert_array_equal(still.shares(), shares)


def test_what_was_watched_since_is_still_struck_out():
    knn = Frozen(ItemKnn(STREAM, CUT, CATALOGUE, neighbours=3, shrink=0.0), HISTORY, CUT, name="knn")
    walk = walk_live([knn], HISTORY, cut=CUT, catalogue=CATALOGUE)
    assert walk.ranks["knn"][3] <= 1  # user 1 has 0 and 3 left
    assert len(walk_frozen([knn], HISTORY, cut=CUT, catalogue=CATALOGUE)) == 2
