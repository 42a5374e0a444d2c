"""On the sphere the nearest point is the one with the largest inner product."""

from __future__ import annotations

import numpy as np

from indexer.mips_to_l2 import inner_products, lift, lift_queries, longest_of, radius_for


def vectors(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 5)).astype(np.float32)


def test_the_nearest_lifted_vectors_are_those_with_the_largest_inner_products() -> None:
    items, queries = vectors(50, 0), vectors(4, 1)
    radius = radius_for(longest_of(items))
    lifted = lift(items, radius)
    np.testing.assert_allclose(np.linalg.norm(lifted, axis=1), radius, rtol=1e-5)
    for query, lifted_query in zip(queries, lift_queries(queries), strict=True):
        squared = np.square(lifted - lifted_query).sum(axis=1)
        np.testing.assert_allclose(inner_products(squared, query, radius), items @ query, atol=1e-4)
        assert np.argmin(squared) == np.argmax(items @ query)


def test_a_vector_beyond_the_sphere_stays_finite_and_keeps_its_own_numbers() -> None:
    lifted = lift(np.array([[30.0, 40.0]], np.float32), radius=10.0)
    assert lifted.tolist() == [[30.0, 40.0, 0.0]]


def test_lengths_by_hand() -> None:
    assert longest_of(np.array([[3.0, 4.0], [1.0, 0.0]], np.float32)) == 5.0
    assert longest_of(np.zeros((0, 2), np.float32)) == 0.0
    assert radius_for(5.0) == 10.0
    assert radius_for(0.0) == 2.0
