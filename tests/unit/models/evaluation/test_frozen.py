import numpy as np

from models.evaluation.backtest import walk_frozen, walk_live
from models.evaluation.baselines import DecayedPopular
from models.evaluation.eval_queries import History, Stream
from models.evaluation.frozen import Frozen
from models.evaluation.item_to_item import ItemKnn

CUT, CATALOGUE = 6, 4
USERS = np.array([0, 1, 0, 3, 1, 0, 2, 0, 3, 2, 1, 0, 1])
ITEMS = np.array([0, 1, 2, 0, 2, 3, 1, 2, 0, 3, 4, 1, 3])
STREAM = Stream(USERS, ITEMS, 1000 + 10 * np.arange(13))
HISTORY = History(STREAM)


class Recorder:
    name = "recorder"

    def __init__(self):
        self.seen, self.learnt = {}, []

    def scores(self, queries):
        for place, row in enumerate(queries.rows.tolist()):
            history = [item for item in queries.histories[place].tolist() if item >= 0]
            self.seen[int(queries.users[place]), len(self.seen)] = history, row
        return np.zeros((len(queries), CATALOGUE), np.float32)

    def learn(self, rows):
        self.learnt.append(rows)


def shown():
    recorder = Recorder()
    frozen = Frozen(recorder, HISTORY, CUT, name="frozen")
    walk_live([frozen], HISTORY, cut=CUT, catalogue=CATALOGUE, block=4)
    assert recorder.learnt == []
    return [(user, history) for (user, _), (history, _) in recorder.seen.items()]


def test_a_frozen_one_is_shown_what_was_watched_at_the_cut():
    # user 2 came after the cut: nothing is known of them
    assert shown() == [(2, []), (1, [1, 2]), (0, [0, 2, 3]), (1, [1, 2])]


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
