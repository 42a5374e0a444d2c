"""Four users, five items: every count and similarity can be worked out by hand."""

import numpy as np
import pytest
from scipy import sparse

from models.evaluation.als import Als
from models.evaluation.backtest import Recommender, walk_frozen, walk_live
from models.evaluation.baselines import PRIOR, DecayedPopular, Popular, SettingSelection, TimesRecency, choose
from models.evaluation.eval_queries import EvalQueries, History, Stream
from models.evaluation.item_to_item import MOST_WATCHES, Ease, ItemKnn, ease_weights, nearest, watch_matrix
from tests.harness.needs import ALS, needs

USERS = np.array([0, 1, 2, 3, 0, 1, 2, 0, 3, 1])
ITEMS = np.array([0, 0, 0, 3, 1, 1, 2, 0, 2, 4])
STREAM = Stream(USERS, ITEMS, np.arange(10))
CUT, CATALOGUE = 7, 4


def cases_of(*pasts: list[int]) -> EvalQueries:
    """Users with these watches behind them."""
    seen = [(place, item) for place, past in enumerate(pasts) for item in dict.fromkeys(past)]
    pairs = np.array(seen, np.int64).reshape(-1, 2)
    histories = np.full((len(pasts), 50), -1)
    for place, past in enumerate(pasts):
        histories[place, 50 - len(past) :] = past
    nothing = np.zeros(len(pasts), np.int64)
    return EvalQueries(nothing, nothing, nothing, histories, pairs[:, 0], pairs[:, 1], nothing)


ANYONE = cases_of([])


def test_popularity_of_all_time_counts_every_watch_before_the_cut():
    popular = Popular(STREAM, CUT, CATALOGUE, window=None, name="all")
    assert popular.scores(ANYONE).tolist() == [[3, 2, 1, 1]]
    popular.learn(slice(7, 10))  # 0 and 2; item 4 is not known
    assert popular.scores(ANYONE).tolist() == [[4, 2, 2, 1]]


def test_popularity_of_a_window_forgets_what_leaves_it():
    popular = Popular(STREAM, CUT, CATALOGUE, window=3, name="window")
    assert popular.scores(ANYONE).tolist() == [[0, 2, 1, 0]]
    popular.learn(slice(7, 9))  # the window is now rows 6, 7, 8
    assert popular.scores(ANYONE).tolist() == [[1, 0, 2, 0]]
    popular.learn(slice(9, 10))  # rows 7, 8, 9
    assert popular.scores(ANYONE).tolist() == [[1, 0, 1, 0]]
    shorter = Popular(STREAM, 1, CATALOGUE, window=2, name="window")
    shorter.learn(slice(1, 7))  # of a block longer than the window only the end is left
    assert shorter.scores(ANYONE).tolist() == [[0, 1, 1, 0]]


def test_decayed_popularity_halves_a_watch_every_half_life():
    popular = DecayedPopular(STREAM, 3, CATALOGUE, half_life=1)
    decayed = 1 / 4 + 1 / 2 + 1  # three watches of item 0
    share = (decayed + PRIOR * 4 / 7) / (decayed + PRIOR)
    assert popular.shares()[0] == pytest.approx(share)
    assert popular.shares().sum() == pytest.approx(1)
    assert popular.trend()[0] == pytest.approx(share / (4 / 7))


def test_decayed_popularity_learnt_in_blocks_is_that_of_the_whole():
    whole = DecayedPopular(STREAM, 9, CATALOGUE, half_life=3.0)
    blocks = DecayedPopular(STREAM, 2, CATALOGUE, half_life=3.0)
    for rows in (slice(2, 3), slice(3, 7), slice(7, 9)):
        blocks.learn(rows)
    np.testing.assert_allclose(blocks.shares(), whole.shares())


def test_popularity_is_the_same_for_everyone_and_may_be_overwritten():
    popular = DecayedPopular(STREAM, CUT, CATALOGUE, half_life=3)
    scores = popular.scores(cases_of([0], [1, 2]))
    assert scores[0].tolist() == scores[1].tolist() == popular.shares().astype(np.float32).tolist()
    scores[:] = 0
    assert (popular.scores(ANYONE) > 0).all()


def test_the_matrix_of_watches_has_each_pair_once():
    watched = watch_matrix(STREAM, 8, CATALOGUE)  # row 7 is a repeat
    assert watched.toarray().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]
    assert watch_matrix(STREAM, 0, CATALOGUE).shape == (0, CATALOGUE)


def test_only_the_newest_items_of_a_heavy_user_count():
    items = np.r_[np.arange(MOST_WATCHES + 10), 3]  # item 3 is watched again at the end
    heavy = Stream(np.zeros(len(items), np.int64), items, np.arange(len(items)))
    kept = watch_matrix(heavy, len(items), MOST_WATCHES + 10).toarray()[0].astype(bool)
    assert kept.sum() == MOST_WATCHES
    assert kept[3] and not kept[[0, 1, 2, 4, 10]].any() and kept[11:].all()


def test_similarity_is_the_cosine_over_users():
    watched = sparse.csr_array(watch_matrix(STREAM, CUT, CATALOGUE))
    similar = nearest(watched, 10, 0.0).toarray()
    # item 0 by users 0, 1, 2; item 1 by 0, 1; item 2 by 2; item 3 by 3.
    expected = np.zeros((4, 4))
    expected[0, 1] = expected[1, 0] = 2 / np.sqrt(6)
    expected[0, 2] = expected[2, 0] = 1 / np.sqrt(3)
    np.testing.assert_allclose(similar, expected, rtol=1e-6)
    assert nearest(watched, 1, 0.0).toarray()[0].nonzero()[0].tolist() == [1]
    np.testing.assert_allclose(nearest(watched, 1, 2.0).toarray()[0, 1], 2 / (np.sqrt(6) + 2), rtol=1e-6)


def test_nearest_in_blocks_is_that_of_the_whole(monkeypatch):
    rng = np.random.default_rng(1)
    watched = sparse.csr_array((rng.random((40, 30)) < 0.2).astype(np.float32))
    whole = nearest(watched, 5, 1.0).toarray()
    monkeypatch.setattr("models.evaluation.item_to_item.BLOCK_ROWS", 7)
    np.testing.assert_array_equal(nearest(watched, 5, 1.0).toarray(), whole)
    assert ((whole > 0).sum(axis=1) <= 5).all()


def test_the_score_of_neighbours_is_the_sum_over_what_was_watched():
    knn = ItemKnn(STREAM, CUT, CATALOGUE, neighbours=10, shrink=0.0)
    one, two, both = knn.scores(cases_of([0], [1], [0, 1, 0]))
    np.testing.assert_allclose(both, one + two, rtol=1e-6)
    assert one[1] > one[2] > 0 and one[3] == 0


def test_heavy_users_count_less_between_neighbours():
    users, items = np.array([0, 0, 0, 0, 1, 1, 2, 2]), np.array([0, 1, 2, 3, 0, 2, 0, 4])
    knn = ItemKnn(Stream(users, items, np.arange(8)), 8, 5, neighbours=10, shrink=0.0)
    similar = knn.scores(cases_of([0]))[0]
    plain = nearest(watch_matrix(Stream(users, items, np.arange(8)), 8, 5), 10, 0.0).toarray()[0]
    assert similar[1] < plain[1], "only the user with four items connects 0 and 1"


def test_neighbours_are_refitted_after_so_many_watches():
    fixed, refitted = (
        ItemKnn(STREAM, CUT, CATALOGUE, neighbours=10, shrink=0.0, refit_events=every) for every in (None, 2)
    )
    for knn in (fixed, refitted):
        knn.learn(slice(7, 8))
        assert knn.scores(cases_of([3]))[0, 2] == 0
        knn.learn(slice(8, 9))  # user 3, who has watched 3, watches 2
    assert fixed.scores(cases_of([3]))[0, 2] == 0
    assert refitted.scores(cases_of([3]))[0, 2] > 0


def test_ease_solves_its_ridge_regression():
    rng = np.random.default_rng(1)
    watched = (rng.random((60, 12)) < 0.3).astype(np.float64)
    weights = ease_weights(sparse.csr_array(watched), 5.0)
    assert np.diag(weights).tolist() == [0] * 12
    for item in range(12):  # each column, all other items as inputs
        others = np.delete(np.arange(12), item)
        inputs = watched[:, others]
        expected = np.linalg.solve(inputs.T @ inputs + 5.0 * np.eye(11), inputs.T @ watched[:, item])
        np.testing.assert_allclose(weights[others, item], expected, atol=1e-5)


def test_ease_knows_only_the_most_watched_items_where_it_is_limited():
    ease = Ease(STREAM, CUT, CATALOGUE, l2=1.0, most_items=2)
    assert ease.items.tolist() == [0, 1]
    scores = ease.scores(cases_of([0, 2], [2]))
    assert scores[0, 1] > 0 and scores[0, [2, 3]].tolist() == [0, 0] and scores[1].tolist() == [0, 0, 0, 0]
    assert Ease(STREAM, 3, CATALOGUE, l2=1.0).items.tolist() == [0], "nobody has watched the others"


def test_recency_lifts_what_is_watched_more_than_it_used_to_be():
    class Constant:
        name = "constant"

        def scores(self, queries):
            return np.full((len(queries), 2), 0.5, np.float32)

        def learn(self, rows):
            pass

    items = np.r_[np.zeros(500, int), np.ones(500, int)]  # as many of each, 1 at the end
    stream = Stream(np.zeros(1000, np.int64), items, np.arange(1000))
    popularity = DecayedPopular(stream, 1000, 2, half_life=100)
    lifted = TimesRecency(Constant(), popularity, exponent=0.5, floor=0.1, name="lifted").scores(ANYONE)[0]
    trend, shares = popularity.trend(), popularity.shares()
    np.testing.assert_allclose(lifted, 0.5 * trend**0.5 + 0.1 * shares / shares.max(), rtol=1e-6)
    assert lifted[1] > lifted[0]


def test_recency_alone_decides_where_the_source_knows_nothing():
    popularity = DecayedPopular(STREAM, CUT, CATALOGUE, half_life=5)
    recent = TimesRecency(
        Ease(STREAM, CUT, CATALOGUE, l2=1.0), popularity, exponent=0.7, floor=0.01, name="ease x recency"
    )
    scores = recent.scores(ANYONE)[0]
    assert np.argsort(scores).tolist() == np.argsort(popularity.shares()).tolist()


def test_the_setting_is_chosen_by_mean_log_rank():
    ranks = {1: np.array([0, 1000]), 2: np.array([9, 9]), 3: np.array([9, 9])}

    def build(size: int) -> Recommender:
        return Popular(STREAM, CUT, CATALOGUE, window=size, name=str(size))

    choice = choose(build, [{"size": 1}, {"size": 2}, {"size": 3}], lambda recommender: ranks[int(recommender.name)])
    assert isinstance(choice, SettingSelection)
    assert choice.setting == {"size": 2}, "the first of equals"
    assert [estimate.value for _, estimate in choice.tried] == pytest.approx(
        [np.log2(1001) / 2, np.log2(10), np.log2(10)]
    )


@pytest.mark.parametrize(
    "build",
    [
        lambda stream: Popular(stream, 150, 20, window=30, name="x"),
        lambda stream: DecayedPopular(stream, 150, 20, half_life=30),
        lambda stream: ItemKnn(stream, 150, 20, neighbours=5, shrink=1.0, refit_events=40),
        lambda stream: Ease(stream, 150, 20, l2=2.0),
        lambda stream: TimesRecency(
            Ease(stream, 150, 20, l2=2.0),
            DecayedPopular(stream, 150, 20, half_life=30),
            exponent=1,
            floor=0.1,
            name="x",
        ),
    ],
    ids=["popular", "decayed", "knn", "ease", "recency"],
)
def test_every_baseline_walks_is_repeatable_and_does_not_see_the_future(build):
    rng = np.random.default_rng(4)
    users, items = rng.integers(0, 15, 300), (25 * rng.random(300) ** 2).astype(np.int64)
    changed = np.r_[items[:200], rng.integers(0, 20, 100)]
    streams = [Stream(users, rows, np.arange(300)) for rows in (items, items, changed)]
    walks = [
        walk_live([one := build(stream)], History(stream), cut=150, catalogue=20, block=25).ranks[one.name]
        for stream in streams
    ]
    assert len(walks[0]) > 20
    np.testing.assert_array_equal(walks[0], walks[1])
    early = int((History(streams[0]).unseen_since(150).watched < 200).sum())
    np.testing.assert_array_equal(walks[0][:early], walks[2][:early])
    frozen = walk_frozen([one := build(streams[0])], History(streams[0]), cut=150, catalogue=20)
    assert len(frozen) > 5 and (frozen.ranks[one.name] < 20).all()


@needs(ALS)
def test_als_finds_what_alike_users_watch_and_repeats_itself():
    """Where the benchmark extra is installed: everywhere else the report says that ALS is left out."""
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
