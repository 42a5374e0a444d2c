"""The test of order: it finds an order that is there, and none where there is none."""

import numpy as np
import pytest

from models.evaluation.comparison import Estimate, Interval
from models.evaluation.eval_queries import EvalQueries, EvalQuery, History, Stream
from models.evaluation.order_test import NextItems, OrderTest, order_test, shuffled
from models.logs.pairs import KEPT, soon_after

USERS, WATCHES, ITEMS = 600, 12, 100


def stream_of(*, ordered: bool) -> Stream:
    """In order: after each item come three others only. Else: anything."""
    rng = np.random.default_rng(3)
    following = rng.integers(0, ITEMS, (ITEMS, 3))
    items = [rng.integers(0, ITEMS, USERS)]
    while len(items) < WATCHES:
        items.append(following[items[-1], rng.integers(0, 3, USERS)] if ordered else rng.integers(0, ITEMS, USERS))
    users = np.tile(np.arange(USERS), WATCHES)
    return Stream(users, np.concatenate(items), np.zeros(USERS * WATCHES, np.int64))


def judged(stream: Stream) -> OrderTest:
    cut, history = USERS * (WATCHES - 1), History(stream)
    return order_test(stream, history.next_unseen(cut), cut=cut, catalogue=ITEMS, seed=1)


def test_an_order_that_is_there_is_found_and_recommends_an_encoder_that_keeps_it():
    found = judged(stream_of(ordered=True))
    assert found.is_sequential and found.lost > 0.3
    assert "model.encoder = recent" in found.advice()


def test_where_there_is_none_the_average_will_do():
    found = judged(stream_of(ordered=False))
    assert not found.is_sequential and found.difference.low < 0 < found.difference.high
    assert "model.encoder = average" in found.advice()


@pytest.mark.parametrize(("low", "value", "verdict"), [(0.02, 0.03, True), (-0.01, 0.03, False), (0.001, 0.002, False)])
def test_the_verdict_needs_an_interval_without_zero_and_a_loss_worth_it(low: float, value: float, verdict: bool):
    found = OrderTest(Estimate(0.1, 0.01, 900), Estimate(0.1 - value, 0.01, 900), Interval(value, 0.01, low, 0.1))
    assert found.is_sequential is verdict


def test_of_a_long_log_the_newest_rows_are_looked_at(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("models.evaluation.order_test.MOST_ROWS", 8 * USERS)
    stream = stream_of(ordered=True)
    stream.items[: 2 * USERS] = 0  # so long ago that it would only be in the way
    assert judged(stream).ordered.value > 0.9


def test_nobody_to_ask_is_said():
    stream = stream_of(ordered=True)
    nobody = EvalQuery(*(np.zeros(0, np.int64),) * 3)
    found = order_test(stream, nobody, cut=100, catalogue=ITEMS, seed=1)
    assert not found.is_sequential and "Nobody could be asked" in found.advice()


def test_shuffling_keeps_what_each_user_watched_and_the_rows_behind_the_cut():
    stream = stream_of(ordered=True)
    cut = USERS * 10
    one, same, other = (shuffled(stream, cut, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.items, same.items)
    assert (one.items != other.items).any() and (one.items[:cut] != stream.items[:cut]).any()
    np.testing.assert_array_equal(one.items[cut:], stream.items[cut:])
    for user in (0, 7, USERS - 1):
        mine = stream.users[:cut] == user
        assert sorted(one.items[:cut][mine]) == sorted(stream.items[:cut][mine])


def test_what_was_watched_last_speaks_most_and_popular_items_are_held_back():
    users, items = np.array([0, 0, 1, 1, 1]), np.array([0, 1, 0, 1, 2])
    stream = Stream(users, items, np.zeros(5, np.int64))
    nothing = np.zeros(0, np.int64)
    histories = np.array([[-1, 0, 1]])
    queries = EvalQueries(np.array([5]), np.array([0]), np.array([-1]), histories, nothing, nothing, np.array([0]))
    speaks = np.diag([2**-0.5, 2**-0.5, 1]) @ soon_after(users, items, 3).toarray() @ np.diag([2**-0.5, 2**-0.5, 1])
    found = NextItems(stream, 5, 3).scores(queries)
    np.testing.assert_allclose(found[0], KEPT * speaks[0] + speaks[1], rtol=1e-5)
