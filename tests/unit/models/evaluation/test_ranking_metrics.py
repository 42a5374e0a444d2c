"""Metrics of a ranking by hand, and against the definition over all pairs."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.evaluation.ranking_metrics import calibration, pair_loss, top_seconds, user_auc, xauc_parts


def xauc(predicted, watched_s):
    ordered, pairs = xauc_parts(predicted, watched_s)
    return ordered.sum() / pairs.sum() if pairs.sum() else np.nan


def gauc(users, score, completed):
    _, auc, rows = user_auc(users, score, completed)
    return (auc * rows).sum() / rows.sum() if len(rows) else np.nan


def test_the_weighted_loss_is_the_share_of_seconds_below_something_unwatched_by_hand():
    # group 7: 30 s is above both unwatched ones, 10 s below one of the two; group 3: a tie; group 9 has no pair
    groups = np.array([7, 7, 7, 7, 3, 3, 9])
    score = np.array([5.0, 2.0, 3.0, 1.0, 4.0, 4.0, 1.0])
    seconds = np.array([30.0, 10.0, 0.0, 0.0, 8.0, 2.0, 50.0])
    watched = np.array([True, True, False, False, True, False, True])
    found = pair_loss(groups, score, seconds, watched)
    by_group = dict(zip(found.groups.tolist(), zip(found.weight, found.misordered, strict=True), strict=True))
    assert by_group == {3: (8, 4), 7: (40, 5)}
    assert found.misordered.sum() / found.weight.sum() == pytest.approx((4 + 5) / 48)


def test_xauc_by_hand():
    # pairs by watch time: (1, 2) and (1, 3) in order, (2, 3) turned round; the two of 5 s are no pair
    assert xauc(np.array([1.0, 4.0, 3.0]), np.array([1.0, 2.0, 3.0])) == pytest.approx(2 / 3)
    assert xauc(np.array([1.0, 2.0, 2.0]), np.array([5.0, 5.0, 9.0])) == pytest.approx((1 + 0.5) / 2)


def test_gauc_weighs_users_by_their_rows_by_hand():
    users = np.array([1, 1, 1, 2, 2, 3])
    completed = np.array([True, False, False, True, False, True])
    score = np.array([2.0, 1.0, 3.0, 5.0, 5.0, 9.0])  # user 1: one of two pairs, user 2: a tie, user 3: no pair
    found = user_auc(users, score, completed)
    assert [column.tolist() for column in found] == [[1, 2], [0.5, 0.5], [3, 2]]
    better = np.array([4.0, 1.0, 3.0, 5.0, 5.0, 9.0])
    assert gauc(users, better, completed) == pytest.approx((3 * 1 + 2 * 0.5) / 5)


def test_the_first_place_of_a_page_by_hand():
    groups = np.array([4, 4, 2, 2, 2, 8])
    score = np.array([1.0, 2.0, 3.0, 3.0, 1.0, 9.0])
    seconds = np.array([50.0, 7.0, 10.0, 20.0, 99.0, 5.0])
    found = top_seconds(groups, score, seconds)
    assert [column.tolist() for column in found] == [[2, 4], [15, 7]], "ties share; a single row is no choice"


def test_calibration_by_decile_by_hand():
    predicted, watched = np.array([4.0, 1.0, 3.0, 2.0]), np.array([8.0, 0.0, 6.0, 0.0])
    low, high = calibration(predicted, watched, deciles=2)
    assert high == (3.5, 7.0, 0.5)
    assert low[:2] == (1.5, 0.0)
    assert np.isnan(low[2])
    assert len(calibration(predicted, watched)) == 4, "parts without rows are left out"


def test_nothing_to_judge_is_no_number_and_no_error():
    none, flags = np.zeros(0), np.zeros(0, np.bool_)
    rows = np.zeros(0, np.int64)
    assert [len(column) for column in pair_loss(rows, none, none, flags)] == [0, 0, 0]
    assert np.isnan(xauc(none, none))
    assert np.isnan(gauc(rows, none, flags))
    assert [len(column) for column in top_seconds(rows, none, none)] == [0, 0]
    assert calibration(none, none) == []
    one = np.ones(1)
    assert np.isnan(xauc(one, one))
    assert np.isnan(gauc(rows + 1, none, flags))


row = st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 3))
rows = st.lists(row, max_size=25).map(lambda found: np.array(found, np.int64).reshape(-1, 3).T)


def put_right(better: float, worse: float) -> float:
    return 1.0 if better > worse else 0.5 if better == worse else 0.0


@settings(max_examples=200, deadline=None)
@given(rows)
def test_every_metric_is_what_its_definition_says_over_all_pairs(columns: np.ndarray):
    group, score, level = columns
    seconds, watched = level * 10.0, level > 1  # 10 s are seconds, and no completed watch
    n = range(len(group))

    pairs = [(a, b) for a in n for b in n if group[a] == group[b] and watched[a] and not watched[b]]
    weight, wrong = 0.0, 0.0
    for a in n:
        others = [b for x, b in pairs if x == a]
        if others:
            weight += seconds[a]
            wrong += seconds[a] * np.mean([1 - put_right(score[a], score[b]) for b in others])
    _, weights, misordered = pair_loss(group, score.astype(float), seconds, watched)
    assert (misordered.sum(), weights.sum()) == pytest.approx((wrong, weight))

    differing = [(a, b) if seconds[a] > seconds[b] else (b, a) for a, b in combinations(n, 2) if level[a] != level[b]]
    right = [put_right(score[a], score[b]) for a, b in differing]
    ours = xauc(score.astype(float), seconds)
    assert ours == pytest.approx(np.mean(right)) if right else np.isnan(ours)
    ordered, counted = xauc_parts(score.astype(float), seconds)
    for a in n:
        of_row = [put_right(score[x], score[y]) for x, y in differing if a in (x, y)]
        assert (ordered[a], counted[a]) == (pytest.approx(sum(of_row)), len(of_row))

    total = size = 0.0
    for user in set(group[[a for a, _ in pairs]].tolist()):
        of_user = [put_right(score[a], score[b]) for a, b in pairs if group[a] == user]
        total += np.mean(of_user) * np.sum(group == user)
        size += np.sum(group == user)
    found = gauc(group, score.astype(float), watched)
    assert found == pytest.approx(total / size) if size else np.isnan(found)

    first = {
        int(g): np.mean(seconds[(group == g) & (score == score[group == g].max())])
        for g in set(group.tolist())
        if np.sum(group == g) > 1
    }
    of_group, top_s = top_seconds(group, score.astype(float), seconds)
    assert dict(zip(of_group.tolist(), top_s.tolist(), strict=True)) == pytest.approx(first)
