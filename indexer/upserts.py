"""From waiting rows to Milvus: deletions, then rows whose item's facts have changed, then touched rows, in bounded
batches, each one acknowledged before the next.

Before an item that was taken down is deleted its row is read and parked, so that its return does not have to wait for
the trainer. All writes may be repeated: a batch whose acknowledgement was lost is sent again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from indexer.errors import IndexMissing
from indexer.facts import Facts
from indexer.pending_writes import PendingWrites, Row, stack
from indexer.retry import Retry
from indexer.scalars import Scalars
from infra.platform import metrics

Floats = NDArray[np.float32]


class WritableIndex(Protocol):
    """What is needed of indexer.collection.Index."""

    def upsert(
        self, version: str, item_ids: list[str], vectors: Floats, steps: list[int], scalars: Sequence[Scalars]
    ) -> None: ...
    def delete(self, version: str, item_ids: list[str]) -> None: ...
    def vectors(self, version: str, item_ids: list[str]) -> Mapping[str, tuple[int, Floats]]: ...


def write_all(
    index: WritableIndex, rows: PendingWrites, facts: Facts, collections: Iterable[str], *, batch: int, patiently: Retry
) -> set[str]:
    """Write all that waits in `rows`; deletions and changed facts go to all `collections`.

    The versions whose collection turned out to be gone: their rows are lost with it, it has to be built again.
    """
    collections, lost = list(collections), set[str]()
    while deleted := rows.take_deleted(batch):
        for version in collections:
            try:
                _delete(index, rows, version, deleted, patiently)
            except IndexMissing:
                lost.add(version)
    while expired := rows.take_expired(batch):
        version, item_ids = expired
        try:
            _delete(index, rows, version, dict.fromkeys(item_ids, False), patiently)
        except IndexMissing:
            lost.add(version)
    while changed := rows.take_changed(batch):
        for version in collections:
            try:
                _rewrite(index, version, [i for i in changed if not rows.is_waiting(version, i)], facts, patiently)
            except IndexMissing:
                lost.add(version)
    while taken := rows.take_rows(batch):
        version, touched = taken
        try:
            _upsert(index, version, touched, facts, patiently)
        except IndexMissing:
            lost.add(version)
            rows.forget(version)
    return lost


def _delete(
    index: WritableIndex, rows: PendingWrites, version: str, deleted: Mapping[str, bool], patiently: Retry
) -> None:
    found = patiently(lambda: index.vectors(version, list(deleted)))
    if not found:
        return
    for item_id, (step, vector) in found.items():
        if deleted[item_id]:
            rows.park(version, item_id, Row(step, vector.astype("<f4").tobytes()))
    patiently(lambda: index.delete(version, list(found)))
    metrics.DELETED.inc(len(found))


def _rewrite(index: WritableIndex, version: str, item_ids: list[str], facts: Facts, patiently: Retry) -> None:
    """Those of the items that are in the index, with their vectors as they are: a row is written whole or not at all
    (an upsert that names some of the fields keeps the others on Milvus Lite only)."""
    found = patiently(lambda: index.vectors(version, item_ids)) if item_ids else {}
    if not found:
        return
    vectors, steps = np.stack([vector for _, vector in found.values()]), [step for step, _ in found.values()]
    scalars = [facts.of(item_id) for item_id in found]
    patiently(lambda: index.upsert(version, list(found), vectors, steps, scalars))
    metrics.INDEX_REWRITTEN.inc(len(found))


def _upsert(index: WritableIndex, version: str, touched: Mapping[str, Row], facts: Facts, patiently: Retry) -> None:
    vectors, steps = stack(touched.values()), [row.step for row in touched.values()]
    scalars = [facts.of(item_id) for item_id in touched]
    with metrics.BATCH_TIME.labels("upsert").time():
        patiently(lambda: index.upsert(version, list(touched), vectors, steps, scalars))
    metrics.BATCH_SIZE.labels("upsert").observe(len(touched))
    metrics.UPSERTED.inc(len(touched))
    now_ms = time.time() * 1000  # a measurement; nothing is decided by it
    for row in touched.values():
        if row.produced_ms:
            metrics.EVENT_TO_VECTOR.observe(max(0.0, now_ms - row.produced_ms) / 1000)
        if row.published_ms:
            metrics.INDEX_LAG.observe(max(0.0, now_ms - row.published_ms) / 1000)
