"""The linear part of retrieval: which items are watched by the same people, in a few dozen numbers per item.

A tower generalises and loses the particular; a co-occurrence model keeps it (EASE and its kin beat many deep models,
Dacrema et al., RecSys 2019). This is the best low-rank form of the items' normalised co-occurrence D^-a X'X D^-a, with
X users by items and D the items' watch counts, as in PureSVD (Cremonesi et al., RecSys 2010): it needs only products
with the sparse X, and it fits into the same inner product as the tower.

Where order tells much, counts of what is watched soon after what (models.logs.pairs) take the place of X'X.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from models.arrays import Floats, Rows
from models.logs.pairs import soon_after

POWER = 0.4  # a: how far popular items are held back on the user's side
MORE = 16  # directions beyond those asked for, that sharpen them
ROUNDS = 4  # of subspace iteration
ORDERED_ROUNDS = 2  # where order counts: with more directions, the last of which hardly differ
EVENNESS = 0.5  # how far popular items are held back on either side, where order counts


def item_factors(users: Rows, items: Rows, *, size: int, dim: int, seed: int) -> tuple[Floats, Floats]:
    """users int64 [K] and items int64 [K]: distinct pairs that were watched, of `size` items. -> what a history adds up
    for each item [size, dim] and what an item is on the other side [size, dim]; zero for items that nobody has watched.

    Their inner product is how much watching one speaks for the other. Fewer directions than `dim` leave zeros."""
    queries, outputs = np.zeros((size, dim), np.float32), np.zeros((size, dim), np.float32)
    people, user = np.unique(users, return_inverse=True)
    rank = min(dim, len(people), size)
    if rank == 0:
        return queries, outputs
    counts = np.bincount(items, minlength=size)
    held = np.maximum(counts, 1).astype(np.float32) ** -POWER  # [size]
    watched = sp.csr_matrix((held[items], (user, items)), shape=(len(people), size), dtype=np.float32)
    transposed = watched.T.tocsr()
    basis = np.random.default_rng(seed).standard_normal((size, min(rank + MORE, size)), dtype=np.float32)
    for _ in range(ROUNDS):
        basis, _ = np.linalg.qr(transposed @ (watched @ basis))
    seen = watched @ basis
    _, directions = np.linalg.eigh(seen.T @ seen)  # ascending
    factors = basis @ directions[:, ::-1][:, :rank]  # [size, rank]
    factors *= (counts > 0)[:, None]
    queries[:, :rank], outputs[:, :rank] = factors * held[:, None], factors / held[:, None]
    return queries, outputs


def ordered_factors(users: Rows, items: Rows, *, size: int, dim: int, seed: int) -> tuple[Floats, Floats]:
    """As item_factors, of watches in order of time: their inner product is how much watching one speaks for the other
    as what comes next. `dim` directions of the counts with each item's own on the diagonal."""
    queries, outputs = np.zeros((size, dim), np.float32), np.zeros((size, dim), np.float32)
    rank = min(dim, size)
    if rank == 0 or not len(items):
        return queries, outputs
    counts = np.bincount(items, minlength=size)
    held = np.maximum(counts, 1).astype(np.float32)
    evened = sp.diags_array(held**-POWER)
    pairs = soon_after(users, items, size) + sp.diags_array(counts.astype(np.float32))
    speaks = sp.csr_array(evened @ pairs @ evened)
    heard = sp.csr_array(speaks.T)
    basis = np.random.default_rng(seed).standard_normal((size, min(rank + MORE, size)), dtype=np.float32)
    for _ in range(ORDERED_ROUNDS):
        found, _ = np.linalg.qr(speaks @ basis)
        basis, _ = np.linalg.qr(heard @ found)
    spoken = speaks @ basis  # [size, rank + MORE]
    _, directions = np.linalg.eigh(spoken.T @ spoken)  # ascending
    best = directions[:, ::-1][:, :rank]
    scale = (held ** (POWER - EVENNESS) * (counts > 0))[:, None].astype(np.float32)
    queries[:, :rank], outputs[:, :rank] = scale * (spoken @ best), scale * (basis @ best)
    return queries, outputs
