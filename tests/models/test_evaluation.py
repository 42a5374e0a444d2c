import numpy as np

from models.bundle import Bundle
from models.evaluation import Positives, measure_recall, next_watch_cases, target_ranks


def test_a_rank_counts_the_better_items_that_are_not_seen():
    scores = np.array([[5.0, 4, 3, 2], [1, 9, 9, 9]], np.float32)
    ranks = target_ranks(scores, np.array([3, 0]), np.array([0]), np.array([1]))
    assert ranks.tolist() == [2, 3]


def test_equal_scores_share_the_middle():
    scores = np.array([[7.0, 7, 7, 7, 7]], np.float32)
    assert target_ranks(scores, np.array([0]), np.array([], int), np.array([], int)).tolist() == [2]


def test_a_case_is_the_first_unseen_watch_after_the_cut_with_the_history_before_it():
    users = np.array([0, 0, 1, 0, 2, 0, 1, 2])
    items = np.array([5, 6, 7, 5, 8, 9, 7, 4])
    cases = next_watch_cases(Positives(users, items), 4)
    # user 0: next is 9. user 1 only repeats 7, user 2 was unknown at the cut.
    assert cases.targets.tolist() == [9]
    assert cases.histories[0][-3:].tolist() == [5, 6, 5]
    assert (cases.histories[0][:-3] == -1).all()
    assert sorted(zip(cases.seen_case.tolist(), cases.seen_item.tolist(), strict=True)) == [(0, 5), (0, 5), (0, 6)]


def test_the_watch_right_at_the_cut_is_a_case():
    users, items = np.array([0, 1, 0, 1]), np.array([5, 6, 7, 8])
    assert next_watch_cases(Positives(users, items), 2).targets.tolist() == [7, 8]


def test_changing_what_comes_after_the_case_changes_no_history():
    rng = np.random.default_rng(1)
    users, items = rng.integers(0, 9, 300), rng.integers(0, 20, 300)
    before = next_watch_cases(Positives(users, items), 200)
    items[200:] = rng.permutation(items[200:])
    after = next_watch_cases(Positives(users, items), 200)
    shared = min(len(before), len(after))
    assert shared > 0
    np.testing.assert_array_equal(np.unique(before.histories, axis=0)[:1], np.unique(after.histories, axis=0)[:1])


def test_recall_of_nothing_is_no_number(bundle: Bundle):
    nothing = next_watch_cases(Positives(np.array([0, 1]), np.array([0, 1])), 1)
    assert measure_recall(bundle.model, nothing) == {"cases": 0.0}


def test_the_model_of_a_world_with_tastes_beats_popularity(bundle: Bundle):
    metrics = bundle.manifest.metrics
    assert metrics["cases"] > 30
    assert metrics["recall@10"] > metrics["popular_recall@10"] + 0.1
