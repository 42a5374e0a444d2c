import numpy as np
import pytest

from models.retrieval.popularity import (
    NEVER,
    PRIOR_SHARE,
    Popularity,
    Snapshots,
    choose_half_life,
    decayed_sum,
    popularity_of,
)


def by_hand(events: list[int], item: int, half_life: float, items: int) -> float:
    """log((c + m p) / (sum c + m)) from the definition."""
    weights = [0.5 ** ((len(events) - 1 - n) / half_life) for n in range(len(events))]
    count = sum(weight for weight, event in zip(weights, events, strict=True) if event == item)
    share = (events.count(item) + 1) / (len(events) + items)
    prior = PRIOR_SHARE * half_life
    return float(np.log((count + prior * share) / (sum(weights) + prior)))


def test_log_share_is_the_number_computed_by_hand():
    events = [0, 1, 1, 2, 1, 0, 0, 0]
    popularity = Popularity.empty(4, 3.0)
    popularity.add(np.array(events[:3]))
    popularity.add(np.array(events[3:]))
    expected = [by_hand(events, item, 3.0, 4) for item in range(4)]
    np.testing.assert_allclose(popularity.log_share(), expected, rtol=1e-5)
    np.testing.assert_allclose(popularity.log_share(np.array([2, 0])), [expected[2], expected[0]], rtol=1e-5)


def test_counting_in_one_call_or_in_many_is_the_same():
    events = np.random.default_rng(1).integers(0, 5, 100)
    once, often = Popularity.empty(5, 10.0), Popularity.empty(5, 10.0)
    once.add(events)
    for event in events:
        often.add(np.array([event]))
    np.testing.assert_allclose(np.exp(often.log_share()).sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(once.log_share(), often.log_share(), rtol=1e-6)
    np.testing.assert_allclose(once.counts().sum(), decayed_sum(100, 10.0), rtol=1e-9)


def test_an_examples_offset_knows_nothing_of_its_own_watch_or_a_later_one():
    events = np.random.default_rng(1).integers(0, 5, 40)
    rows, items = np.arange(40), np.arange(5)
    own, others = Snapshots(events, 5, 10.0, every=10).offsets(rows, events, items)
    changed = events.copy()
    changed[20:] = 0  # what comes after the third snapshot was taken
    again = Snapshots(changed, 5, 10.0, every=10).offsets(rows, events, items)
    np.testing.assert_array_equal(again[1][:30], others[:30])
    np.testing.assert_array_equal(again[0][:30], own[:30])
    changed[19] = (changed[19] + 1) % 5
    assert (Snapshots(changed, 5, 10.0, every=10).offsets(rows, events, items)[1][20:30] != others[20:30]).any()


def test_a_snapshot_is_the_popularity_of_then():
    events = np.random.default_rng(1).integers(0, 5, 25)
    _, others = Snapshots(events, 5, 10.0, every=10).offsets(np.array([24]), events[24:], np.arange(5))
    np.testing.assert_allclose(others[0], popularity_of(events[:20], 5, 10.0).log_share(), rtol=1e-6)


def test_an_examples_offsets_are_the_snapshots_of_its_own_row_whatever_others_are_asked_for():
    events = np.random.default_rng(1).integers(0, 5, 200)
    snapshots = Snapshots(events, 5, 10.0, every=10)
    rows, others, minus = np.array([199, 3, 121, 128, 3]), np.array([4, 0, 4]), np.array([0.5, 1.0, 0.0], np.float32)
    own, found = snapshots.offsets(rows, events[rows], others, minus)
    shares = [popularity_of(events[: row // 10 * 10], 5, 10.0).log_share() for row in rows]
    np.testing.assert_allclose(own, [share[item] for share, item in zip(shares, events[rows], strict=True)], rtol=1e-6)
    np.testing.assert_allclose(found, [share[others] - minus for share in shares], rtol=1e-6)


def test_snapshots_of_many_items_are_further_apart(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("models.retrieval.popularity.SNAPSHOT_CELLS", 1000)
    assert Snapshots(np.zeros(50, np.int64), 100, 10.0, every=1).every == 5


def test_a_restored_row_counts_as_before():
    events = np.random.default_rng(1).integers(0, 5, 100)
    popularity, restored = Popularity.empty(5, 10.0), Popularity.empty(5, 10.0)
    popularity.add(events)
    for row in range(5):
        restored.restore(row, *(column[0] for column in popularity.stored(np.array([row]))))
    np.testing.assert_array_equal(restored.log_share(), popularity.log_share())


def test_a_new_item_is_finite_and_below_all_watched_ones():
    popularity = Popularity.empty(3, 10.0)
    popularity.add(np.array([0, 1, 2]))
    row = popularity.append()
    assert np.isfinite(popularity.log_share()[row])
    assert popularity.log_share().argmin() == row


def test_the_half_life_is_the_one_that_foresees_the_stream():
    """What is watched changes every 2,000 watches, or never."""
    rng = np.random.default_rng(1)
    changing = np.concatenate([rng.choice(rng.permutation(300)[:30], 2000) for _ in range(15)])
    still = rng.choice(300, 30_000, p=rng.dirichlet(np.full(300, 0.3)))
    assert choose_half_life(changing, 300, since=22_000) <= 1000
    assert choose_half_life(still, 300, since=22_000) >= 16_000


def test_what_never_decays_is_the_share_of_all_watches_and_a_constant_of_the_training():
    items = np.array([0, 1, 1, 2, 1])
    popularity = popularity_of(items, 4, NEVER)
    share = np.exp(popularity.log_share())
    assert share.sum() == pytest.approx(1) and share[3] > 0
    assert share[1] > share[0] == pytest.approx(share[2])
    np.testing.assert_array_equal(popularity.counts(), [1, 3, 1, 0])
    own, others = Snapshots(items, 4, NEVER).offsets(np.array([0, 4]), np.array([1, 2]), np.arange(4))
    np.testing.assert_allclose(own, popularity.log_share(np.array([1, 2])))
    np.testing.assert_allclose(others, np.tile(popularity.log_share(), (2, 1)))
