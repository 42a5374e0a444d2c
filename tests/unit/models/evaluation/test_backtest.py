"""A hand-made world of four users: 0 and 1 are warm at the cut, 2 becomes warm after it, 3 only repeats."""

import numpy as np
import pytest

from models.evaluation.backtest import MISS, judge, list_candidates, top_items, walk_frozen, walk_live
from models.evaluation.baselines import DecayedPopular
from models.evaluation.coverage import Coverage
from models.evaluation.eval_queries import EvalQueries, History, Stream
from models.evaluation.frozen import Frozen
from models.evaluation.item_to_item import ItemKnn
from models.logs.timeline import HISTORY

CUT = 6
#                     0  1  2  3  4  5 | 6  7  8  9 10 11 12
USERS = np.array([0, 1, 0, 3, 1, 0, 2, 0, 3, 2, 1, 0, 1])
ITEMS = np.array([0, 1, 2, 0, 2, 3, 1, 2, 0, 3, 4, 1, 3])
STREAM = Stream(USERS, ITEMS, 1000 + 10 * np.arange(13))
CATALOGUE = 4  # item 4 is first seen after the cut


class Recorder:
    """Scores items by fixed numbers; remembers what it was asked and told."""

    def __init__(self, name="recorder", values=(4.0, 3.0, 2.0, 1.0)):
        self.name = name
        self.values = np.array(values, np.float32)
        self.queries: list[EvalQueries] = []
        self.events: list[object] = []

    def scores(self, queries):
        self.queries.append(queries)
        self.events.append(queries.rows.tolist())
        return np.tile(self.values, (len(queries), 1))

    def learn(self, rows):
        self.events.append((rows.start, rows.stop))


@pytest.fixture
def history():
    return History(STREAM)


def walked(queries, place):
    return [item for item in queries.histories[place].tolist() if item >= 0]


def seen(queries, place):
    return sorted(queries.seen_item[queries.seen_query == place].tolist())


def test_frozen_asks_each_warm_user_once_for_the_next_unseen_watch(history):
    asked = history.next_unseen(CUT)
    # user 0 repeats 2 first, then watches 1; user 1 watches 4; user 2 is new; user 3 only repeats.
    assert asked.users.tolist() == [0, 1]
    assert asked.watched.tolist() == [11, 10]
    assert asked.before.tolist() == [CUT, CUT]


def test_a_frozen_history_ends_at_the_cut_and_not_at_the_watch(history):
    queries = history.queries(history.next_unseen(CUT))
    assert [walked(queries, place) for place in (0, 1)] == [[0, 2, 3], [1, 2]]
    assert [seen(queries, place) for place in (0, 1)] == [[0, 2, 3], [1, 2]]
    assert queries.targets.tolist() == [1, 4]
    assert queries.event_ms.tolist() == [1060, 1060]


def test_frozen_ranks_and_never_learns(history):
    recorder = Recorder()
    walk = walk_frozen([recorder], history, cut=CUT, catalogue=CATALOGUE)
    # user 0 has only item 1 left: rank 0. user 1's item 4 is unknown at the cut.
    assert walk.ranks["recorder"].tolist() == [0, MISS]
    assert all(isinstance(event, list) for event in recorder.events)


def test_live_asks_for_every_unseen_watch_of_a_user_who_is_warm_at_that_moment(history):
    asked = history.unseen_since(CUT)
    # row 6 is user 2's first watch, 7 and 8 are repeats
    assert asked.watched.tolist() == [9, 10, 11, 12]
    assert asked.before.tolist() == [9, 10, 11, 12]


def test_a_live_history_holds_everything_before_the_row_itself(history):
    queries = history.queries(history.unseen_since(CUT))
    assert walked(queries, 0) == [1]  # user 2, in the same block
    assert walked(queries, 2) == [0, 2, 3, 2]  # repeats included
    assert seen(queries, 2) == [0, 2, 3]  # each once
    assert walked(queries, 3) == [1, 2, 4]  # with an item that was unknown at the cut
    assert seen(queries, 3) == [1, 2, 4]


def test_live_learns_a_block_only_after_all_of_it_was_ranked(history):
    recorder = Recorder()
    walk = walk_live([recorder], history, cut=CUT, catalogue=CATALOGUE, block=4)
    assert recorder.events == [[9], (6, 10), [10, 11, 12], (10, 13)]
    # 3 behind 0, 2 (1 is seen); 4 unknown; 1 is all that is left; 3 behind 0.
    assert walk.ranks["recorder"].tolist() == [2, MISS, 0, 1]


def test_blocks_cover_the_test_part_once_and_in_order(history):
    recorder = Recorder()
    walk_live([recorder], history, cut=CUT, catalogue=CATALOGUE, block=3)
    learnt = [event for event in recorder.events if isinstance(event, tuple)]
    assert learnt == [(6, 9), (9, 12), (12, 13)]


def test_the_same_cases_for_every_recommender(history):
    recorders = [Recorder("a"), Recorder("b")]
    walk_live(recorders, history, cut=CUT, catalogue=CATALOGUE, block=2)
    assert recorders[0].events == recorders[1].events


def test_what_follows_the_moment_changes_no_case(history):
    """The future may say anything: what a recommender is shown stays what it was."""
    rng = np.random.default_rng(1)
    users, items = rng.integers(0, 9, 300), rng.integers(0, 20, 300)
    changed = np.r_[items[:200], rng.permutation(items[200:])]
    one, other = (History(Stream(users, rows, np.arange(300))) for rows in (items, changed))
    before, after = one.queries(one.next_unseen(200)), other.queries(other.next_unseen(200))
    both = np.intersect1d(before.users, after.users)
    assert len(both) > 5
    for user in both:
        mine, theirs = np.flatnonzero(before.users == user)[0], np.flatnonzero(after.users == user)[0]
        np.testing.assert_array_equal(before.histories[mine], after.histories[theirs])
        assert seen(before, mine) == seen(after, theirs)


def test_lists_leave_out_what_was_watched(history):
    lists = {}

    def keep(queries, items, scores):
        for place, user in enumerate(queries.users.tolist()):
            lists[user] = items[place].tolist(), scores[place].tolist()

    recorders = [Recorder(), Recorder("second")]
    walk = walk_frozen(recorders, history, cut=CUT, catalogue=CATALOGUE, lists=keep)
    list_candidates(recorders[0], history, np.array([3]), keep, cut=CUT, catalogue=CATALOGUE)
    assert {user: items for user, (items, _) in lists.items()} == {
        0: [1, -1, -1, -1],
        1: [0, 3, -1, -1],
        3: [1, 2, 3, -1],
    }
    assert lists[1][1][:2] == [4.0, 1.0]
    assert len(walk) == 2, "a user who only repeats is no case"


def test_who_had_watched_nothing_is_asked_for_the_first_watch_with_an_empty_history(history):
    asked = history.first_ever(CUT)
    assert (asked.users.tolist(), asked.before.tolist(), asked.watched.tolist()) == ([2], [CUT], [6])
    queries = history.queries(asked)
    assert walked(queries, 0) == [] and seen(queries, 0) == []
    assert not set(asked.users.tolist()) & set(history.next_unseen(CUT).users.tolist())
    walk = walk_frozen([Recorder()], history, cut=CUT, catalogue=CATALOGUE, asked=asked, coverage=False)
    assert walk.ranks["recorder"].tolist() == [1] and walk.coverage == {}


def test_equal_scores_share_the_middle(history):
    queries = history.queries(history.next_unseen(0))
    scores = np.full((len(queries), 9), 7.0, np.float32)
    assert judge(scores, queries).tolist() == []
    queries = history.queries(history.next_unseen(CUT))
    assert judge(np.full((2, 6), 7.0, np.float32), queries).tolist() == [1, 1]  # three, four are left


def test_scores_that_are_not_finite_or_of_another_shape_are_refused(history):
    for values, message in (((1, np.nan, 0, 0), "broken: scores that are not finite"), ((1, 2), "broken: scores of")):
        with pytest.raises(ValueError, match=message):
            walk_frozen([Recorder("broken", values)], history, cut=CUT, catalogue=CATALOGUE)


def test_many_users_are_asked_in_batches_of_bounded_size(history, monkeypatch):
    monkeypatch.setattr("models.evaluation.backtest.CELLS", 4)
    recorder = Recorder()
    walk = walk_frozen([recorder], history, cut=CUT, catalogue=CATALOGUE)
    assert [len(queries) for queries in recorder.queries] == [1, 1]
    assert walk.ranks["recorder"].tolist() == [0, MISS]


def test_top_items_are_in_order_and_end_where_nothing_is_left():
    scores = np.array([[1, 5, -np.inf, 3], [2, 4, 2, 9]], np.float32)
    items, values = top_items(scores, 2)
    assert items.tolist() == [[1, 3], [3, 1]]
    assert values.tolist() == [[5, 3], [9, 4]]
    assert top_items(scores, 500)[0].tolist() == [[1, 3, 0, -1], [3, 1, 0, 2]]  # equal ones by row


def test_a_history_is_the_newest_fifty():
    users, items = np.zeros(120, np.int64), np.arange(120)
    queries = (history := History(Stream(users, items, items))).queries(history.unseen_since(100))
    assert queries.histories[0].tolist() == list(range(50, 100))
    assert queries.histories.shape == (20, HISTORY) and HISTORY == 50, "as in the paper"
    assert (queries.seen_query == 19).sum() == 119


def test_no_cases_are_an_empty_walk(history):
    end = len(STREAM)
    assert len(walk_frozen([Recorder()], history, cut=end, catalogue=5)) == 0
    assert len(walk_live([Recorder()], history, cut=end, catalogue=5)) == 0


def test_a_frozen_one_is_shown_what_was_watched_at_the_cut(history):
    recorder = Recorder()
    walk_live([Frozen(recorder, history, CUT, name="frozen")], history, cut=CUT, catalogue=CATALOGUE, block=4)
    assert all(isinstance(event, list) for event in recorder.events), "it learns nothing"
    shown = [(int(asked.users[at]), walked(asked, at)) for asked in recorder.queries for at in range(len(asked))]
    # user 2 came after the cut: nothing is known of them
    assert shown == [(2, []), (1, [1, 2]), (0, [0, 2, 3]), (1, [1, 2])]


def test_a_frozen_popularity_keeps_the_order_of_the_cut(history):
    still = DecayedPopular(STREAM, CUT, CATALOGUE, half_life=2)
    shares = still.shares()
    walk_live([Frozen(still, history, CUT, name="x")], history, cut=CUT, catalogue=CATALOGUE)
    np.testing.assert_array_equal(still.shares(), shares)


def test_what_was_watched_since_is_still_struck_out(history):
    knn = Frozen(ItemKnn(STREAM, CUT, CATALOGUE, neighbours=3, shrink=0.0), history, CUT, name="knn")
    walk = walk_live([knn], history, cut=CUT, catalogue=CATALOGUE)
    assert walk.ranks["knn"][3] <= 1  # user 1 has 0 and 3 left
    assert len(walk_frozen([knn], history, cut=CUT, catalogue=CATALOGUE)) == 2


SHARES = np.log(np.array([0.4, 0.3, 0.2, 0.05, 0.05]))


def test_coverage_is_the_share_of_items_in_anybodys_list():
    coverage = Coverage(SHARES)
    coverage.add(np.array([[0, 1], [0, 2]]))
    coverage.add(np.array([[0, -1]]))
    estimate = coverage.coverage(10)
    assert (estimate.value, estimate.n) == (3 / 5, 3)
    # Without the first list or the second one item of five is lost, without the third none.
    lost = np.array([1, 1, 0]) / 5
    assert estimate.se == pytest.approx(np.sqrt(2 / 3 * np.square(lost - lost.mean()).sum()))


def test_an_item_of_two_lists_of_one_batch_or_of_two_is_lost_with_neither():
    together, apart = Coverage(SHARES), Coverage(SHARES)
    together.add(np.array([[0], [0]]))
    apart.add(np.array([[0]]))
    apart.add(np.array([[0]]))
    assert together.coverage(10).se == apart.coverage(10).se == 0


def test_only_the_first_k_count():
    coverage = Coverage(np.log(np.full(60, 1 / 60)))
    coverage.add(np.arange(60)[None])
    assert [round(60 * coverage.coverage(k).value) for k in (10, 50, 100)] == [10, 50, 60]


def test_popularity_is_the_mean_log_share_of_what_is_shown():
    coverage = Coverage(SHARES)
    assert coverage.coverage(10).value == 0 and coverage.coverage(10).n == 0
    assert np.isnan(coverage.popularity(10).value), "no lists are no number"
    coverage.add(np.array([[0, 1], [2, -1]]))
    first, second = (np.log(0.4) + np.log(0.3)) / 2, np.log(0.2)
    assert coverage.popularity(10).value == pytest.approx((first + second) / 2)
    assert coverage.popularity(10).se == pytest.approx(abs(first - second) / 2)
    assert coverage.top_share(10).value == 0.25  # the top of five items is item 0
