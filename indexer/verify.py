"""The proof that a collection that was just filled holds what its bundle says, and finds it.

Three questions, each of which a fault of another kind fails: how many rows, the vectors of a sample, and the best items
for some users that may exist, against an exact search of the bundle itself.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from indexer.build import BuildFailed, is_wanted
from indexer.collection import Index
from indexer.pending_writes import PendingWrites
from indexer.retry import Retry
from infra.platform import metrics
from models.release.bundle import Bundle
from models.retrieval.candidates import CandidateModel, with_one

Floats = NDArray[np.float32]
Places = NDArray[np.int64]

_SAMPLE = 64
_QUERIES, _MOST_HITS = 16, 500
_CHUNK = 100_000  # vectors that are looked at together
_CLOSE = 1e-4  # of a score: the sphere of an HNSW or an IVF costs some of float32's digits


def verify(
    index: Index, bundle: Bundle, rows: PendingWrites, *, expired: Set[str], least_recall: float, retry: Retry
) -> int:
    """The number of rows in a collection that was just filled (nothing must be waiting in `rows`). `expired`: items
    that the trainer let go of meanwhile, which may be in it or not.

    Raises BuildFailed that says what differs.
    """
    version, item_ids = bundle.manifest.version, bundle.model.item_ids
    wanted = [place for place, item_id in enumerate(item_ids) if is_wanted(item_id, rows)]
    certain = np.array([place for place in wanted if item_ids[place] not in expired], dtype=np.int64)
    count = retry(lambda: index.count(version))
    if not len(certain) <= count <= len(wanted):
        raise BuildFailed(f"collection of {version} holds {count} rows, its bundle has {len(wanted)} to show")
    _compare(index, bundle, _sample(certain, _SAMPLE), retry)
    recall = probe(index, bundle, certain, expired, retry) if len(certain) else 1.0
    metrics.INDEX_RECALL.set(recall)
    if recall < least_recall:
        raise BuildFailed(f"a search of the collection of {version} finds {recall:.3f} of the best, not {least_recall}")
    return count


def probe(index: Index, bundle: Bundle, places: Places, expired: Set[str], retry: Retry) -> float:
    """The mean recall of some searches among the items at `places` of the bundle; those in `expired` are passed over
    where they are found."""
    version, model = bundle.manifest.version, bundle.model
    hits = min(_MOST_HITS, len(places))
    queries = queries_of(model, _sample(places, _QUERIES))
    found = retry(lambda: index.search(version, queries, hits + len(expired)))
    known = [[item_id for item_id in ids if item_id not in expired][:hits] for ids, _ in found]
    return recall_of(known, model, places, queries, hits)


def queries_of(model: CandidateModel, places: Places) -> Floats:
    """float32 [B, dim]: users whose vector is between those of two items, with the users' side of popularity."""
    vectors = model.item_vectors(places)[:, :-1]  # [B, D]
    between: Floats = ((vectors + np.roll(vectors, 1, axis=0)) / 2).astype(np.float32)
    return with_one(between)


def recall_of(
    found: Sequence[Sequence[str]], model: CandidateModel, places: Places, queries: Floats, hits: int
) -> float:
    """Share of the `hits` best items at `places` that were found, mean over queries float32 [B, dim].

    An item that is as good as the last of them counts as one of them: which of many equal ones is found is chance.
    """
    least, anywhere = least_scores(model, places, queries, hits), set(chain.from_iterable(found))
    place_of = {item_id: place for place in places.tolist() if (item_id := model.item_ids[place]) in anywhere}
    recalls = []
    for ids, query, bound in zip(found, queries, least, strict=True):
        mine = np.array([place_of[item_id] for item_id in set(ids) if item_id in place_of], dtype=np.int64)
        scores = model.item_vectors(mine) @ query  # [K]
        recalls.append(np.count_nonzero(scores >= bound - _CLOSE * max(1.0, abs(bound))) / hits)
    return float(np.mean(recalls))


def least_scores(model: CandidateModel, places: Places, queries: Floats, hits: int) -> Floats:
    """float32 [B]: the score of the last of the `hits` best items at `places`, by an exact search."""
    best = np.full((len(queries), 0), -np.inf, np.float32)
    for start in range(0, len(places), _CHUNK):
        scores = queries @ model.item_vectors(places[start : start + _CHUNK]).T  # [B, CHUNK]
        best = np.concatenate([best, scores], axis=1)
        if best.shape[1] > hits:
            best = np.partition(best, best.shape[1] - hits, axis=1)[:, -hits:]
    least: Floats = best.min(axis=1)
    return least


def _compare(index: Index, bundle: Bundle, places: Places, retry: Retry) -> None:
    version, item_ids = bundle.manifest.version, bundle.model.item_ids
    found = retry(lambda: index.vectors(version, [item_ids[place] for place in places]))
    for place, vector in zip(places, bundle.model.item_vectors(places), strict=True):
        if item_ids[place] not in found or not np.array_equal(found[item_ids[place]][1], vector):
            raise BuildFailed(f"collection of {version} holds another vector than its bundle in row {place}")


def _sample(places: Places, most: int) -> Places:
    """Evenly over all of them."""
    return places[np.unique(np.linspace(0, max(0, len(places) - 1), min(most, len(places)), dtype=np.int64))]
