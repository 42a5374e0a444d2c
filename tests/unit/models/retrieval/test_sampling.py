from collections.abc import Iterable

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.retrieval.sampling import WIDTH, Frequency, draw_negatives, find_hits, merged

ROWS = st.lists(st.integers(0, 6), max_size=12)


def test_an_item_weighs_one_on_average_however_often_it_is_drawn():
    targets = np.repeat(np.arange(10), [1, 2, 3, 4, 5, 6, 7, 8, 9, 55])
    share = np.bincount(targets, minlength=60) / len(targets)
    rng = np.random.default_rng(1)
    weights, draws = np.zeros(60), 3000
    for _ in range(draws):
        batch = rng.permutation(targets)[:50]
        rows, log_expected = draw_negatives(batch, share.take, items=60, negatives=40, in_batch=0.5, rng=rng)
        weights += np.bincount(rows, np.exp(-log_expected), minlength=60)
    np.testing.assert_allclose(weights / draws, 1, rtol=0.15)


def test_all_items_are_negatives_where_there_are_fewer_than_asked_for():
    rows, log_expected = draw_negatives(
        np.array([1, 1]), np.ones(9).take, items=9, negatives=10, in_batch=0.5, rng=np.random.default_rng(1)
    )
    assert rows.tolist() == list(range(9))
    assert (log_expected == 0).all()


@given(st.lists(st.integers(0, 40), max_size=120))
def test_merged_negatives_stand_for_all_that_were_drawn_at_a_width_that_products_like(drawn: list[int]):
    rows, counts = merged(np.array(drawn, np.int64))
    assert (np.bincount(rows, counts, minlength=41) == np.bincount(np.array(drawn, np.int64), minlength=41)).all()
    distinct = len(set(drawn))
    assert len(rows) == min(len(drawn), -(-distinct // WIDTH) * WIDTH)


@given(ROWS, ROWS)
def test_hits_are_all_pairs_of_the_same_item(targets: list[int], negatives: list[int]):
    found = find_hits(np.array(targets, np.int64), np.array(negatives, np.int64), 7)
    expected = [(b, s) for b, target in enumerate(targets) for s, item in enumerate(negatives) if item == target]
    assert sorted(zip(*found.tolist(), strict=True)) == expected


def follow(frequency: Frequency, batches: Iterable[np.ndarray], items: int) -> None:
    clock, last = 0, np.zeros(items, np.int64)
    for batch in batches:
        rows, counts = np.unique(batch, return_counts=True)
        clock += len(batch)
        frequency.add(rows, counts, clock - last[rows])
        last[rows] = clock


def test_the_share_is_learnt_from_the_gaps_between_occurrences():
    """Items of 20 %, 2 % and .2 % of a stream, started from nothing known."""
    rng = np.random.default_rng(2)
    share = np.array([0.2, 0.02, 0.002, 0.778])
    frequency = Frequency(np.zeros(4))
    follow(frequency, (rng.choice(4, 64, p=share) for _ in range(3000)), 4)
    np.testing.assert_allclose(frequency.shares(np.arange(4)), share, rtol=0.6)


def test_a_share_that_changes_is_followed():
    frequency = Frequency(np.array([0.5, 0.5]))
    rng = np.random.default_rng(3)
    follow(frequency, ((rng.random(64) < 0.05).astype(np.int64) for _ in range(500)), 2)
    np.testing.assert_allclose(frequency.shares(np.array([1])), [0.05], rtol=0.6)


def test_an_item_that_was_never_a_target_is_rare():
    frequency = Frequency(np.array([0.5, 0.5]))
    row = frequency.append()
    assert frequency.shares(np.array([row]))[0] < 0.1
