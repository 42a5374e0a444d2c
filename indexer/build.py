"""From a bundle to a new collection: filled in batches, so that the live one is kept fresh in between.

Rows of unavailable items are held instead of written. Whatever goes wrong, the collection has no mark yet, so nobody
takes it for whole, and it is dropped and made again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import structlog

from indexer.collection import Index
from indexer.item_attributes import AttributeTable
from indexer.mips_to_l2 import longest_of
from indexer.pending_writes import PendingWrites, Row
from indexer.retry import Retry
from indexer.rollout import Stage
from indexer.schema import is_indexable
from infra.platform.fault_points import reached
from models.release.bundle import Bundle

log = structlog.get_logger(__name__)


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
    retry(lambda: _create(index, version, bundle.manifest.dim, longest, len(item_ids)))
    reached("indexer: collection created")
    refused = 0
    for start in range(0, len(item_ids), batch):
        places = np.arange(start, min(start + batch, len(item_ids)))
        vectors = bundle.model.item_vectors(places)
        wanted = [i for i, place in enumerate(places) if is_wanted(item_ids[place], rows)]
        hold_unavailable(bundle, rows, places)
        ids = [item_ids[places[i]] for i in wanted]
        if ids:
            _upsert(index, version, ids, vectors[wanted], attributes, retry)
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


def _create(index: Index, version: str, dim: int, longest: float, rows: int) -> None:
    """An attempt may have left half a collection behind."""
    index.drop(version)
    index.create(version, dim, longest=longest, rows=rows)


def _upsert(
    index: Index, version: str, ids: list[str], vectors: np.ndarray, attributes: AttributeTable, retry: Retry
) -> None:
    try:
        retry(lambda: index.upsert(version, ids, vectors, [0] * len(ids), [attributes.of(item_id) for item_id in ids]))
    except ValueError as error:
        raise BuildFailed(f"bundle {version}: {error}") from None
