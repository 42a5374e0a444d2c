"""The start of an item that nobody has watched yet: at the mean of its channel, its topics and its other ids, not at
noise.

Means are shrunk towards the mean of all items, so that a channel with a single item does not make a twin of it.

Or at what a map says of its content (models.catalogue.content): a ridge regression of the rows of watched items on
their ids, titles, descriptions and vectors. Which of the two places better the validation days judge
(candidate_learning.content_gain); the bias is that of the means in either case.

And the admission of new items: those get a row that have been watched often enough. A stream brings ids that are seen
once and never again; each row they would take costs memory in the trainer and a write to the index (Monolith, 2022).
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.sparse as sp

from models.arrays import Doubles, Flags, Floats
from models.catalogue.catalogue import Catalogue
from models.catalogue.content import IDS_AND_TITLE, MOST_IDS, NO_CONTENT, Bag, ContentShape, Halves, ItemContent, bag_of

AT_ONCE = 100_000  # rows summed up together
DENSE_AT_ONCE = 8192  # vectors multiplied together
SHRINK = 2.0  # items' worth of the overall mean in each group's
RIDGE = 10.0  # watched items' worth of "says nothing" in each feature
TRUSTED = 3.0  # watches with which an item counts half of what one with very many does
CAPACITY = 100_000  # items without a row whose watches are counted


class Start(NamedTuple):
    """The first values of an item: output vector [D], bias, embedding on the user's side [D]."""

    vector: Floats
    bias: float
    query_row: Floats


@dataclass(frozen=True)
class ContentMap:
    """From content to a row: `weights` float32 [shape.rows, P] are what each feature adds to the mean of all, which
    comes last. They may be a mapped file."""

    weights: Floats
    shape: ContentShape = IDS_AND_TITLE

    def row_of(self, content: ItemContent) -> Floats:
        """float32 [P]: the row of an item of that content; a vector of another length says nothing. Costs in proportion
        to what the item says."""
        row = row_of(self.weights, bag_of(content, self.shape))
        if not self.shape.vector or len(content.vector) != self.shape.vector:
            return row
        return np.asarray(row + content.vector.astype(np.float32) @ self.weights[self.shape.buckets : -1])


class ColdStart:
    """Means of what items have learnt, by each id of each column of the catalogue (channel, topics, ...)."""

    def __init__(
        self,
        vectors: Floats,
        bias: Floats,
        query_rows: Floats,
        *,
        catalogue: Catalogue,
        learnt: Flags,
        content: ContentMap | None = None,
    ) -> None:
        """vectors and query_rows [N, D] and bias [N] by row of the catalogue; `learnt` bool [N]: whose are averaged.
        `content`: the map from content to vector and query row [2 D], in place of their means."""
        self._dim = vectors.shape[1]
        self._content = content
        learnt_rows = np.flatnonzero(learnt)
        names = catalogue.id_names if len(learnt_rows) else ()
        codes = {name: catalogue.id_table(name, MOST_IDS) for name in names}
        sums = {name: np.zeros((len(catalogue.id_values(name)), 2 * self._dim + 1)) for name in names}
        counts = {name: np.zeros(len(sums[name])) for name in names}
        total = np.zeros(2 * self._dim + 1)
        for start in range(0, len(learnt_rows), AT_ONCE):
            rows = learnt_rows[start : start + AT_ONCE]
            table = np.concatenate([vectors[rows], bias[rows, None], query_rows[rows]], axis=1)  # [R, P]
            total += table.sum(axis=0, dtype=np.float64)
            for name in names:
                own = codes[name][rows]  # [R, T], 0 for none
                for column in own.T:
                    np.add.at(sums[name], column, table)
                counts[name] += np.bincount(own.ravel(), minlength=len(counts[name]))
        self._overall = (total / max(len(learnt_rows), 1)).astype(np.float32)
        self._of_id = {name: self._means(sums[name], counts[name], catalogue.id_values(name)) for name in names}

    @property
    def content_shape(self) -> ContentShape:
        """What is read beside ids and title: nothing without a map."""
        return IDS_AND_TITLE if self._content is None else self._content.shape

    def place(self, content: ItemContent = NO_CONTENT) -> Start:
        """The start of an item of this content; ids that nobody has learnt from say nothing, and each column that says
        something counts alike. Only a map of content reads more than ids."""
        start = self._mean_of(content.ids)
        if self._content is None:
            return start
        placed = self._content.row_of(content)
        return Start(placed[: self._dim], start.bias, placed[self._dim :])

    def _mean_of(self, ids: Mapping[str, Sequence[str]]) -> Start:
        by_column = (
            _mean(known[value] for value in ids[name][:MOST_IDS] if value in known)
            for name, known in self._of_id.items()
            if name in ids
        )
        start = _mean(part for part in by_column if part is not None)
        start = self._overall if start is None else start
        return Start(start[: self._dim], float(start[self._dim]), start[self._dim + 1 :])

    def _means(self, sums: Doubles, counts: Doubles, names: Sequence[str]) -> dict[str, Floats]:
        """sums [C, P] and counts [C] by code, 0 is none."""
        means = (sums + SHRINK * self._overall) / (counts + SHRINK)[:, None]
        return {names[code]: means[code].astype(np.float32) for code in np.flatnonzero(counts).tolist() if code > 0}


def matrix_of(bags: Iterable[Bag], shape: ContentShape = IDS_AND_TITLE) -> sp.csr_array:
    """float64 [N, shape.buckets]"""
    ends, buckets, values = array("q", [0]), array("i"), array("d")  # lists would take ten times as much
    for own, counts in bags:
        buckets.extend(own)
        values.extend(counts)
        ends.append(len(buckets))
    parts = np.array(values), np.array(buckets), np.array(ends)
    return sp.csr_array(parts, shape=(len(ends) - 1, shape.buckets))


def fit_content(bags: sp.csr_array, rows: Floats, watches: Doubles, vectors: Halves | None = None) -> Floats:
    """bags [n, S] and vectors [n, V] of items, rows [n, P] that they have learnt, by so many watches [n]. -> float32
    [S + V + 1, P]: what each feature adds to the mean of all, which comes last. Ridge regression; of the two equations
    that say the same the smaller one is solved."""
    trust = watches / (watches + TRUSTED)
    mean = np.average(rows, axis=0, weights=trust)
    own = np.empty((len(rows), 0), np.float16) if vectors is None else vectors
    solve = by_items if len(rows) < bags.shape[1] + own.shape[1] else by_features
    return np.concatenate([solve(bags, own, trust, rows - mean), mean[None]]).astype(np.float32)


def by_items(bags: sp.csr_array, vectors: Halves, trust: Doubles, targets: Floats) -> Doubles:
    """float64 [S + V, P]: the ridge's weights by the products of items with each other, [n, n]."""
    root = np.sqrt(trust)
    sparse, dense = sp.csr_array(sp.diags_array(root) @ bags), vectors * root[:, None]
    gram = (sparse @ sparse.T).toarray() + dense @ dense.T
    gram[np.diag_indices_from(gram)] += RIDGE
    share = scipy.linalg.solve(gram, targets * root[:, None], assume_a="pos", overwrite_a=True, overwrite_b=True)
    return np.concatenate([sparse.T @ share, dense.T @ share])


def by_features(bags: sp.csr_array, vectors: Halves, trust: Doubles, targets: Floats) -> Doubles:
    """float64 [S + V, P]: the ridge's weights by the products of features with each other, [S + V, S + V]. In double
    precision there are only so many vectors at once."""
    known, size = bags.shape[1], bags.shape[1] + vectors.shape[1]
    weighted = sp.csr_array(sp.diags_array(trust) @ bags).T
    gram, sums = np.zeros((size, size)), np.zeros((size, targets.shape[1]))
    gram[:known, :known], sums[:known] = (weighted @ bags).toarray(), weighted @ targets
    for start in range(0, len(vectors) if size > known else 0, DENSE_AT_ONCE):
        part = slice(start, start + DENSE_AT_ONCE)
        own = vectors[part] * trust[part, None]  # [B, V]
        gram[known:, known:] += own.T @ vectors[part].astype(np.float64)
        gram[:known, known:] += bags[part].T @ own
        sums[known:] += own.T @ targets[part]
    gram[known:, :known] = gram[:known, known:].T
    gram[np.diag_indices_from(gram)] += RIDGE
    added: Doubles = scipy.linalg.solve(gram, sums, assume_a="pos", overwrite_a=True, overwrite_b=True)
    return added


def row_of(content: Floats, bag: Bag) -> Floats:
    """float32 [P]: the mean, and what the features of a bag add to it."""
    buckets, values = bag
    return np.asarray(content[-1] + np.asarray(values, np.float32) @ content[np.asarray(buckets, np.int64)])


class Admission:
    """Counts the watches of items that have no row yet, in bounded memory: when it is full, the one that has waited
    longest without another watch is forgotten."""

    def __init__(self, after: int, capacity: int = CAPACITY) -> None:
        """An item is admitted with its watch number `after`."""
        self._after, self._capacity = after, capacity
        self._counts: OrderedDict[str, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._counts)

    def admits(self, item_id: str) -> bool:
        """Count one watch; whether the item may have a row from now on."""
        count = self._counts.pop(item_id, 0) + 1
        if count >= self._after:
            return True
        self._counts[item_id] = count
        if len(self._counts) > self._capacity:
            self._counts.popitem(last=False)
        return False


def _mean(parts: Iterable[Floats]) -> Floats | None:
    found = list(parts)
    return np.mean(found, axis=0, dtype=np.float32) if found else None
