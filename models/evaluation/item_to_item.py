"""Item-to-item baselines: nearest neighbours by cosine, and EASE (Steck, WWW 2019), fitted on who watched what.

Weights are those of the cut (or of the last refit), histories are live: a user's whole past is summed, each item once.
Cost is kept in bounds by the newest `MOST_WATCHES` items of a user and, for EASE, whose weights are items times items,
by the most watched items; the rest scores 0 there.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.linalg import lapack

from models.arrays import Floats
from models.evaluation.eval_queries import EvalQueries, Stream
from models.logs.timeline import first_of_pair

MOST_WATCHES = 500  # of one user: pairs grow with the square
EASE_ITEMS = 10_000  # 400 MB of weights
BLOCK_ROWS = 512


class ItemKnn:
    """The sum of the similarities of what the user watched to an item: cosine over users, those with long histories
    counting less (inverse document frequency), damped by `shrink`, the `neighbours` most similar of each item."""

    name = "item-kNN"

    def __init__(
        self,
        stream: Stream,
        cut: int,
        catalogue: int,
        *,
        neighbours: int,
        shrink: float,
        refit_events: int | None = None,
    ) -> None:
        """`refit_events`: similarities are fitted anew after so many watches of a live walk."""
        self._stream, self._catalogue = stream, catalogue
        self._neighbours, self._shrink, self._refit_events = neighbours, shrink, refit_events
        self._fit(cut)

    def scores(self, queries: EvalQueries) -> Floats:
        return np.asarray((seen_matrix(queries, self._catalogue) @ self._similar).toarray())

    def learn(self, rows: slice) -> None:
        if self._refit_events is not None and rows.stop - self._fitted >= self._refit_events:
            self._fit(rows.stop)

    def _fit(self, cut: int) -> None:
        self._fitted = cut
        watched = watch_matrix(self._stream, cut, self._catalogue)
        lengths = np.maximum(1, np.asarray(watched.sum(axis=1)).ravel())
        weights = np.log1p(self._catalogue / lengths)  # [U]
        weighted = sparse.csr_array(sparse.diags_array(weights) @ watched, dtype=np.float32)
        self._similar = nearest(weighted, self._neighbours, self._shrink)


class Ease:
    """The linear model that predicts each item of a user from all others, in closed form with ridge `l2`."""

    name = "EASE"

    def __init__(self, stream: Stream, cut: int, catalogue: int, *, l2: float, most_items: int = EASE_ITEMS) -> None:
        watched = watch_matrix(stream, cut, catalogue)
        counts = np.asarray(watched.sum(axis=0)).ravel()
        there = np.argsort(-counts, kind="stable")[:most_items]
        self.items = np.sort(there[counts[there] > 0])  # [E] the items that it knows
        self._catalogue = catalogue
        self._weights = ease_weights(watched[:, self.items], l2)

    def scores(self, queries: EvalQueries) -> Floats:
        scores = np.zeros((len(queries), self._catalogue), np.float32)
        scores[:, self.items] = seen_matrix(queries, self._catalogue)[:, self.items] @ self._weights
        return scores

    def learn(self, rows: slice) -> None:
        """The inverse is not followed; the history that `scores` is given is."""


def watch_matrix(stream: Stream, cut: int, catalogue: int) -> sparse.csr_array:
    """float32 [U, C]: 1 where a user has watched an item before the cut, for the newest MOST_WATCHES of each."""
    newest_first = np.arange(cut)[::-1]
    users, items = np.asarray(stream.users[:cut])[::-1], np.asarray(stream.items[:cut])[::-1]
    kept = newest_first[first_of_pair(users, items)]
    kept = kept[stream.items[kept] < catalogue]
    kept = kept[np.argsort(stream.users[kept], kind="stable")]  # user by user, newest first
    owners = stream.users[kept]
    place = np.arange(len(kept)) - np.searchsorted(owners, owners)
    kept = kept[place < MOST_WATCHES]
    shape = (int(np.max(stream.users[:cut], initial=-1)) + 1, catalogue)
    pairs = (stream.users[kept], stream.items[kept])
    return sparse.csr_array((np.ones(len(kept), np.float32), pairs), shape=shape)


def seen_matrix(queries: EvalQueries, catalogue: int) -> sparse.csr_array:
    """float32 [B, C]: 1 where the case's user has watched the item before."""
    known = queries.seen_item < catalogue
    pairs = (queries.seen_query[known], queries.seen_item[known])
    return sparse.csr_array((np.ones(int(known.sum()), np.float32), pairs), shape=(len(queries), catalogue))


def nearest(weighted: sparse.csr_array, neighbours: int, shrink: float) -> sparse.csr_array:
    """float32 [C, C]: of each item (row) the most similar others by cosine over the users of weighted [U, C]."""
    by_item = sparse.csr_array(weighted.T)
    norms = np.sqrt(np.asarray(by_item.power(2).sum(axis=1)).ravel())
    blocks = [
        _nearest_of(sparse.csr_array(by_item[start : start + BLOCK_ROWS] @ weighted), start, norms, neighbours, shrink)
        for start in range(0, by_item.shape[0], BLOCK_ROWS)
    ]
    return sparse.csr_array(sparse.vstack(blocks))


def _nearest_of(
    products: sparse.csr_array, start: int, norms: Floats, neighbours: int, shrink: float
) -> sparse.csr_array:
    """products [R, C]: dot products of the items from `start` on with all items."""
    rows = np.repeat(np.arange(products.shape[0]), np.diff(products.indptr))
    similar = products.data / (norms[start + rows] * norms[products.indices] + shrink)
    similar[products.indices == start + rows] = -1.0  # not a neighbour of itself
    order = np.lexsort((products.indices, -similar, rows))
    place = np.arange(len(order)) - np.repeat(products.indptr[:-1], np.diff(products.indptr))
    kept = order[(place < neighbours) & (similar[order] > 0)]
    values = (similar[kept].astype(np.float32), (rows[kept], products.indices[kept]))
    return sparse.csr_array(values, shape=products.shape)


def ease_weights(watched: sparse.csr_array, l2: float) -> Floats:
    """float32 [E, E]: -P_ij / P_jj with P the inverse of the ridged Gram matrix, 0 on the diagonal. watched [U, E]."""
    gram = np.asfortranarray((watched.T @ watched).toarray(), np.float32)
    gram[np.diag_indices_from(gram)] += l2
    factor, failed = lapack.spotrf(gram, overwrite_a=True)
    inverse, failed_too = lapack.spotri(factor, overwrite_c=True)  # the upper triangle
    if failed or failed_too:
        raise ArithmeticError(f"EASE: the Gram matrix with l2 {l2} has no inverse")
    upper = np.triu(inverse)
    inverse = upper + np.triu(inverse, 1).T
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return np.ascontiguousarray(weights, np.float32)
