"""From pending writes to Milvus: deletions, then rows whose item has new attributes, then touched rows, in bounded
batches, each one acknowledged before the next.

Before an item that was taken down is deleted its row is read and held, so that its return does not have to wait for
the trainer. All writes may be repeated: a batch whose acknowledgement was lost is sent again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from indexer.collection import Index
from indexer.errors import IndexMissing
from indexer.item_attributes import AttributeTable
from indexer.pending_writes import PendingWrites, Row, stack
from indexer.retry import Retry
from infra.platform import metrics

Floats = NDArray[np.float32]


class Upserts:
    """Writes what waits in `rows` to `index`, `batch` items at a time."""

    def __init__(
        self, index: Index, rows: PendingWrites, attributes: AttributeTable, *, batch: int, retry: Retry
    ) -> None:
        self._index, self._rows, self._attributes = index, rows, attributes
        self._batch, self._retry = batch, retry

    def write_all(self, collections: Collection[str]) -> set[str]:
        """Write all that waits; deletions and new attributes go to all `collections`.

        The versions whose collection turned out to be gone: their rows are lost with it, it has to be built again.
        """
        lost = set[str]()
        for version, write in self._writes(collections):
            try:
                write()
            except IndexMissing:
                lost.add(version)
        return lost

    def _writes(self, collections: Collection[str]) -> Iterator[tuple[str, Callable[[], None]]]:
        """One batch after the other, in the order of the module, each for one collection."""
        rows, most = self._rows, self._batch
        while deleted := rows.take_deleted(most):
            yield from ((version, partial(self._delete, version, deleted)) for version in collections)
        while expired := rows.take_expired(most):
            yield expired[0], partial(self._delete, expired[0], dict.fromkeys(expired[1], False))
        while changed := rows.take_changed(most):
            yield from ((version, partial(self._rewrite, version, changed)) for version in collections)
        while touched := rows.take_rows(most):
            yield touched[0], partial(self._upsert, *touched)

    def _delete(self, version: str, deleted: Mapping[str, bool]) -> None:
        found = self._retry(lambda: self._index.vectors(version, list(deleted)))
        if not found:
            return
        for item_id, (step, vector) in found.items():
            if deleted[item_id]:
                self._rows.hold(version, item_id, Row(step, vector.astype("<f4").tobytes()))
        self._retry(lambda: self._index.delete(version, list(found)))
        metrics.DELETED.inc(len(found))

    def _rewrite(self, version: str, changed: list[str]) -> None:
        """Those of the items that are in the index, with their vectors as they are: a row is written whole or not at
        all (an upsert that names some of the fields keeps the others on Milvus Lite only)."""
        item_ids = [item_id for item_id in changed if not self._rows.is_waiting(version, item_id)]
        found = self._retry(lambda: self._index.vectors(version, item_ids)) if item_ids else {}
        if found:
            steps, vectors = zip(*found.values(), strict=True)
            self._write(version, list(found), np.stack(vectors), list(steps))
            metrics.INDEX_REWRITTEN.inc(len(found))

    def _upsert(self, version: str, touched: Mapping[str, Row]) -> None:
        try:
            with metrics.BATCH_TIME.labels("upsert").time():
                self._write(version, list(touched), stack(touched.values()), [row.step for row in touched.values()])
        except IndexMissing:  # a deletion may meet one that is about to be made, and is followed already; rows do not
            self._rows.forget(version)
            raise
        metrics.BATCH_SIZE.labels("upsert").observe(len(touched))
        metrics.UPSERTED.inc(len(touched))
        now_ms = time.time() * 1000  # a measurement; nothing is decided by it
        for row in touched.values():
            if row.produced_ms:
                metrics.EVENT_TO_VECTOR.observe(max(0.0, now_ms - row.produced_ms) / 1000)
            if row.published_ms:
                metrics.INDEX_LAG.observe(max(0.0, now_ms - row.published_ms) / 1000)

    def _write(self, version: str, item_ids: list[str], vectors: Floats, steps: list[int]) -> None:
        attributes = [self._attributes.of(item_id) for item_id in item_ids]
        self._retry(lambda: self._index.upsert(version, item_ids, vectors, steps, attributes))
