from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.state.best_rows import best_by_bounds, best_rows

LEAST = np.float32(-1e29)


def scoring(scores: np.ndarray, asked: list[int]) -> Callable[[np.ndarray], np.ndarray]:
    def score(rows: np.ndarray) -> np.ndarray:
        asked.extend(rows.tolist())
        return scores[rows]

    return score


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 400), st.integers(1, 60), st.sampled_from([0.0, 0.5, 5.0]))
def test_by_bounds_the_best_are_those_by_scores(seed: int, rows: int, limit: int, loose: float) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(-8, 8, rows).astype(np.float32)  # of few values: many ties
    scores[rng.random(rows) < 0.1] = -1e30  # down
    bounds = scores + (loose * rng.random(rows)).astype(np.float32)
    bounds[rng.random(rows) < 0.02] = np.nan
    expected, expected_scores = best_rows(scores, limit, LEAST)
    asked: list[int] = []
    found, found_scores = best_by_bounds(bounds, 0.0, limit, LEAST, scoring(scores, asked))
    assert found.tolist() == expected.tolist()
    assert found_scores.tolist() == expected_scores.tolist()
    assert len(asked) == len(set(asked)), "no row is scored twice"


def test_what_lies_below_its_bound_by_the_slack_is_found() -> None:
    scores = np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    bounds = np.array([9.0, 2.0, 3.0, 3.5], np.float32)  # the last one's score is above it, by half of one
    assert best_by_bounds(bounds.copy(), 0.0, 1, LEAST, scoring(scores, []))[0].tolist() == [3]
    bounds = np.array([3.9, 2.0, 3.0, 3.8], np.float32)
    scores[0] = 3.9
    assert best_by_bounds(bounds.copy(), 0.0, 1, LEAST, scoring(scores, []))[0].tolist() == [0]
    assert best_by_bounds(bounds.copy(), 0.2, 1, LEAST, scoring(scores, []))[0].tolist() == [3]


def test_close_bounds_let_few_rows_be_scored() -> None:
    scores = np.random.default_rng(1).standard_normal(50_000).astype(np.float32)
    asked: list[int] = []
    best_by_bounds(scores + np.float32(0.01), 0.0, 100, LEAST, scoring(scores, asked))
    assert 100 <= len(asked) < 200
