"""No score lies above its bound, whatever vectors and queries look like; and bounds are close."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.state.int8_rows import SLACK, Int8Rows, in_int8

SHAPES = ["normal", "heavy", "one number", "sparse", "popular", "tiny", "denormal", "huge", "zero"]


def numbers(rng: np.random.Generator, shape: str, rows: int, dim: int) -> np.ndarray:
    found = rng.standard_normal((rows, dim)).astype(np.float32)
    if shape == "heavy":
        found = rng.standard_t(1.5, (rows, dim)).astype(np.float32)
    elif shape == "one number":
        found[np.arange(rows), rng.integers(0, dim, rows)] *= 1e4
    elif shape == "sparse":
        found[rng.random((rows, dim)) < 0.9] = 0
    elif shape == "popular":
        found[:, -1] *= 1e6
    elif shape == "tiny":
        found *= np.float32(1e-25)
    elif shape == "denormal":
        found *= np.float32(1e-40)
    elif shape == "huge":
        found *= np.float32(1e15)
    elif shape == "zero":
        found[::2] = 0
    return found


def rows_of(vectors: np.ndarray) -> Int8Rows:
    rows = Int8Rows(len(vectors), vectors.shape[1])
    rows.write(np.arange(len(vectors)), vectors, vectors[:, -1])
    return rows


@settings(deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(SHAPES),
    st.sampled_from(SHAPES),
    st.sampled_from([2, 5, 65, 100, 257]),
    st.booleans(),
)
def test_no_score_lies_above_its_bound(seed: int, of_rows: str, of_queries: str, dim: int, is_along: bool) -> None:
    rng = np.random.default_rng(seed)
    vectors, queries = numbers(rng, of_rows, 40, dim), numbers(rng, of_queries, 3, dim)
    if is_along:  # what int8 has left of a row: the worst query that there is
        whole, scales, _ = in_int8(vectors[:3, :-1], vectors[:3, -1])
        queries[:, :-1] = vectors[:3, :-1] - whole * scales[:, None]
    exact = queries.astype(np.float64) @ vectors.astype(np.float64).T
    assert (rows_of(vectors).bounds(queries, 40) + SLACK >= exact).all()


def test_bounds_are_close_where_vectors_look_drawn() -> None:
    rng = np.random.default_rng(1)
    vectors, queries = numbers(rng, "normal", 1000, 257), numbers(rng, "normal", 4, 257)
    exact = queries @ vectors.T
    gap = rows_of(vectors).bounds(queries, 1000) - exact
    assert gap.max() < 0.3 * exact.std()


def test_a_row_written_again_is_as_if_it_had_been_so_from_the_beginning() -> None:
    rng = np.random.default_rng(2)
    vectors, queries = numbers(rng, "normal", 30, 70), numbers(rng, "normal", 2, 70)
    rows = rows_of(numbers(rng, "heavy", 30, 70))
    rows.write(np.arange(30)[::-1], vectors[::-1], vectors[::-1, -1])
    np.testing.assert_array_equal(rows.bounds(queries, 30), rows_of(vectors).bounds(queries, 30))
    np.testing.assert_array_equal(rows.grown(90, 30).bounds(queries, 30), rows_of(vectors).bounds(queries, 30))


def test_large_ones_are_compared_in_blocks_and_parts_with_the_same_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    vectors, queries = numbers(rng, "normal", 100, 70), numbers(rng, "normal", 2, 70)
    whole = rows_of(vectors).bounds(queries, 100)
    monkeypatch.setattr("serving.state.int8_rows.ROWS_OF_A_PART", 30)
    monkeypatch.setattr("serving.state.int8_rows.BLOCK", 7)
    np.testing.assert_allclose(rows_of(vectors).bounds(queries, 100), whole, rtol=1e-5)


def test_it_takes_at_most_three_tenths_of_the_rows_in_float32() -> None:
    rows = Int8Rows(1000, 257)
    taken = sum(numbers.numel() * numbers.element_size() for numbers in rows._tensors)
    assert taken <= 0.3 * 1000 * 257 * 4
