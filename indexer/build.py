"""From a bundle to a new collection: filled in batches, so that the live one is kept fresh in between, and verified.

Verifying asks three questions, each of which a fault of another kind fails: how many rows, the vectors of a sample, and
the best items for some users that may exist, against an exact search of the bundle itself.

Rows of unavailable items are held instead of written. Whatever goes wrong, the collection has no mark yet, so nobody
takes it for whole, and it is dropped and made again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import numpy as np
import structlog
from numpy.typing import NDArray

from indexer.collection import Index
from indexer.item_attributes import AttributeTable
from indexer.mips_to_l2 import longest_of
from indexer.pending_writes import PendingWrites, Row
from indexer.retry import Retry
from indexer.rollout import Stage
from indexer.schema import is_indexable
from infra.platform import metrics
from infra.platform.fault_points import reached
from models.release.bundle import Bundle
from models.retrieval.candidates import CandidateModel, with_one

log = structlog.get_logger(__name__)

Floats = NDArray[np.float32]
Places = NDArray[np.int64]

_SAMPLE = 64
_QUERIES, _MOST_HITS = 16, 500
_CHUNK = 100_000  # vectors that are looked at together
_CLOSE = 1e-4  # of a score: the sphere of an HNSW or an IVF costs some of float32's digits


class BuildFailed(RuntimeError):
    """A collection does not hold what its bundle says; the text says what differs."""


@dataclass
class Build:
    """A collection that is being made. `bundle` and its batches are needed until it is filled and verified."""

    version: str
    bundle: Bundle | None
    batches: Iterator[int]
    stage: Stage = Stage.FILLING
    expired: set[str] = field(default_factory=set)  # let go of by the trainer meanwhile


def fill(
    index: Index, bundle: Bundle, rows: PendingWrites, attributes: AttributeTable, *, batch: int, retry: Retry
) -> Iterator[int]:
    """Make the collection of a bundle; yields the rows handled so far after each batch.

    Rows are upserted, so that a batch whose acknowledgement was lost can be sent again.
    """
    version, item_ids = bundle.manifest.version, bundle.model.item_ids
    longest = longest_of(bundle.model.item_vectors())

    def create() -> None:
        index.drop(version)  # an attempt may have left half a collection behind
        index.create(version, bundle.manifest.dim, longest=longest, rows=len(item_ids))

    retry(create)
    reached("indexer: collection created")
    refused = 0
    for start in range(0, len(item_ids), batch):
        places = np.arange(start, min(start + batch, len(item_ids)))
        vectors = bundle.model.item_vectors(places)
        wanted = [i for i, place in enumerate(places) if is_wanted(item_ids[place], rows)]
        hold_unavailable(bundle, rows, places)
        ids = [item_ids[places[i]] for i in wanted]
        if ids:
            known = [attributes.of(item_id) for item_id in ids]
            try:
                retry(partial(index.upsert, version, ids, vectors[wanted], [0] * len(ids), known))
            except ValueError as error:
                raise BuildFailed(f"bundle {version}: {error}") from None
        refused += sum(not is_indexable(item_ids[place]) for place in places)
        yield int(places[-1]) + 1
    if refused:
        log.warning("items left out, Milvus cannot hold their ids", version=version, items=refused)
    retry(lambda: index.flush(version))
    retry(lambda: index.load(version))


def hold_unavailable(bundle: Bundle, rows: PendingWrites, places: np.ndarray | None = None) -> None:
    """Hold the bundle's rows of unavailable items (among those at `places`), in case they return."""
    item_ids = bundle.model.item_ids
    places = np.arange(len(item_ids)) if places is None else places
    held = np.array([place for place in places if item_ids[place] in rows.unavailable], dtype=np.int64)
    for place, vector in zip(held, bundle.model.item_vectors(held), strict=True):
        rows.hold(bundle.manifest.version, item_ids[place], Row(0, vector.astype("<f4").tobytes()))


def is_wanted(item_id: str, rows: PendingWrites) -> bool:
    """Return whether a row of this item shall be in a new collection."""
    return item_id not in rows.unavailable and is_indexable(item_id)


def verify(
    index: Index, bundle: Bundle, rows: PendingWrites, *, expired: Set[str], least_recall: float, retry: Retry
) -> int:
    """The number of rows in a collection that was just filled (nothing must be waiting in `rows`). `expired`: items
    that the trainer let go of meanwhile, which may be in it or not. Raises BuildFailed that says what differs."""
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
    found = retry(lambda: index.search(version, queries, hits + len(expired), strong=True))
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
