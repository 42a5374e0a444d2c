"""The exact mirror: the vectors of the live collection in memory, searched by comparing a query with all of them.

It is fed by the same records as the index. It answers when Milvus does not, it says how good Milvus' answers are
(serving/state/recall_audit.py), and it knows the vector of any item. It takes memory in proportion to the items, which
is why there is a limit to them (`serving.mirror_items`).

Few items are compared as they are, in float32. Of many only those are scored that can be among the best at all: rows
in int8 tell which (serving/state/int8_rows.py), and are a quarter of the bytes. Many queries at once are as quick in
float32, and a machine that has no product of int8 compares all in float32: with the same answers, but for the last bit
of a score, since a sum of BLAS depends on where a row stands.

An item that is down keeps its row, so that it can come back at once. It is taken out of every answer by its last
coordinate, the popularity, whose counterpart in every user vector is 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import repeat
from pathlib import Path

import numpy as np

from models.arrays import Flags, Floats, Rows
from models.catalogue.columns import Columns
from models.retrieval.table import GROWTH, ROOM, reserve
from models.threads import in_parts
from serving.state.best_rows import best_by_bounds, best_rows
from serving.state.int8_rows import SLACK, Int8Rows
from serving.state.patches import has_int8_product
from serving.state.shared_rows import map_numbers, write_numbers

DOWN = np.float32(-1e30)  # the last coordinate of an item that may not be shown
LEAST_SCORE = np.float32(-1e29)  # below it are items that are down
ROWS_OF_A_PART = 10_000  # compared by one thread, of a mirror that is compared by two
MANY_ROWS = 20_000  # are compared in int8
AT_ONCE = 1024  # rows written in int8 together, so that the processor's cache holds them
VECTORS = "mirror_vectors"  # a file of `save`
FEW_QUERIES = 4  # at once; with more of them BLAS is as quick in float32


def bytes_of_item(dim: int) -> int:
    """About what an item takes: its `dim` numbers, the same in int8, its id, its places, and what else is known."""
    return 5 * dim + 250


class Mirror:
    """`item_ids` with vectors float32 [N, D]. One writer; a search runs in the writer's thread."""

    def __init__(self, item_ids: Sequence[str], vectors: Floats, *, room: int = 0) -> None:
        """`room`: of how many items it is known that they will come."""
        self.item_ids: list[str] = []
        self._row_of: dict[str, int] = {}
        self._room = _reserve(max(ROOM, GROWTH * max(room, len(vectors))), vectors.shape[1])
        self._columns = Columns(
            popularity=np.zeros(0, np.float32),  # as it is when the item is not down
            down=np.zeros(0, np.bool_),
            catalogue_row=np.zeros(0, np.int64),
        )
        self._int8 = Int8Rows(len(self._room), self.dim) if has_int8_product() else None
        self._stale: set[int] = set()  # rows that have changed and are not in int8 yet
        self.extend(item_ids, vectors)

    @classmethod
    def opened(cls, directory: Path, item_ids: Sequence[str], dim: int) -> Mirror:
        """What `save` has written, mapped: with its item ids and the length of its vectors."""
        mirror, size = cls([], np.zeros((0, dim), np.float32)), len(item_ids)
        mirror._room = map_numbers(directory / VECTORS).view(-1, dim).numpy()
        if mirror._int8 is not None:
            mirror._int8 = Int8Rows.opened(directory, dim)
        mirror._columns.extend(size, popularity=mirror._room[:size, -1], down=False, catalogue_row=-1)
        mirror._row_of.update(zip(item_ids, range(size), strict=True))
        mirror.item_ids += item_ids
        return mirror

    def __len__(self) -> int:
        return len(self.item_ids)

    def save(self, directory: Path) -> None:
        """Write the vectors, in both forms, to files that can be mapped. No item is down and none has changed since."""
        assert not self._stale
        write_numbers(directory / VECTORS, self._room.size, [(0, self._vectors)])
        if self._int8 is not None:
            self._int8.save(directory, len(self))

    @property
    def dim(self) -> int:
        return int(self._room.shape[1])

    @property
    def catalogue_rows(self) -> Rows:
        """int64 [N]: each item's row in the catalogue, -1 for one that it does not know."""
        return self._columns["catalogue_row"]

    def put(self, item_id: str, vector: Floats, *, down: bool = False) -> None:
        """Set an item's vector, float32 [D]. Raises ValueError for one of another length or with non-finite numbers."""
        if vector.shape != (self.dim,) or not np.isfinite(vector).all():
            raise ValueError(f"vector must be {self.dim} finite numbers, got shape {vector.shape}")
        row = self._row_of.get(item_id)
        if row is None:
            row = self._append(item_id)
        self._room[row] = vector
        self._outdate(row)
        self._columns["popularity"][row] = vector[-1]
        self._columns["down"][row] = down
        self._hide(row)

    def extend(self, item_ids: Sequence[str], vectors: Floats) -> None:
        """Add items that are not here, with vectors float32 [N, D]."""
        first, end = len(self), len(self) + len(vectors)
        self._make_room(end)
        self._room[first:end] = vectors
        self._columns.extend(len(vectors), popularity=vectors[:, -1], down=False, catalogue_row=-1)
        self._row_of.update(zip(item_ids, range(first, end), strict=True))
        self.item_ids += item_ids
        if self._int8 is not None:
            self._write_int8(self._int8, np.arange(first, end))

    def set_catalogue_row(self, item_id: str, catalogue_row: int) -> None:
        """Set where the item's attributes are; one that is not here is passed over."""
        if (row := self._row_of.get(item_id)) is not None:
            self._columns["catalogue_row"][row] = catalogue_row

    def set_down(self, item_id: str, down: bool) -> None:
        """Take the item down, so that no search finds it, or bring it back. One that is not here is passed over."""
        row = self._row_of.get(item_id)
        if row is not None and self._columns["down"][row] != down:
            self._columns["down"][row] = down
            self._hide(row)

    def remove(self, item_id: str) -> None:
        """Let go of an item that has expired; the last row takes its place."""
        row = self._row_of.pop(item_id, None)
        if row is None:
            return
        last = self.item_ids.pop()
        if last != item_id:
            self.item_ids[row] = last
            self._row_of[last] = row
        self._room[row] = self._room[len(self.item_ids)]
        self._outdate(row)
        self._columns.remove(row)

    def rows(self, item_ids: Iterable[str]) -> Rows:
        """int64 [N], -1 for items that are not here."""
        return np.fromiter(map(self._row_of.get, item_ids, repeat(-1)), np.int64)

    def vectors(self, rows: Rows) -> Floats:
        """A copy, [N] -> [N, D], with the popularity as it is, also of items that are down; anything for -1."""
        if not len(self):
            return np.zeros((len(rows), self.dim), np.float32)
        vectors = self._room[rows]
        vectors[:, -1] = self._columns["popularity"][rows]
        return np.asarray(vectors)

    def scores(self, vectors: Floats, item_ids: Sequence[Sequence[str]]) -> list[Floats]:
        """Inner products of each query [B, D] with its own items; NaN for those that are not here."""
        found = []
        for query, own in zip(vectors, item_ids, strict=True):
            rows = self.rows(own)
            found.append(np.where(rows < 0, np.float32(np.nan), self.vectors(rows) @ query).astype(np.float32))
        return found

    def search(
        self, vectors: Floats, limit: int, allowed: Sequence[Flags | None] | None = None
    ) -> list[tuple[list[str], Floats]]:
        """The `limit` items with the largest inner product for each of vectors float32 [B, D], best first, ties in the
        order of rows. `allowed` bool [N] of a query: only these rows."""
        if not len(self) or not len(vectors) or limit < 1:
            return [([], np.zeros(0, np.float32))] * len(vectors)
        allowed = allowed or [None] * len(vectors)
        if self._int8 is not None and len(self) >= MANY_ROWS and len(vectors) <= FEW_QUERIES:
            found = self._best_of_bounds(self._int8, vectors, limit, allowed)
        else:
            products = zip(self._products(vectors), allowed, strict=True)
            found = [best_rows(_shown(scores, own), limit, LEAST_SCORE) for scores, own in products]
        ids = self.item_ids
        return [([ids[row] for row in rows.tolist()], scores) for rows, scores in found]

    def _best_of_bounds(
        self, int8: Int8Rows, queries: Floats, limit: int, allowed: Sequence[Flags | None]
    ) -> list[tuple[Rows, Floats]]:
        """The rows that are among the best by what they can score at most, scored."""
        changed = np.fromiter(self._stale, np.int64, len(self._stale))
        self._write_int8(int8, changed[changed < len(self)])  # together: many rows cost little more than one
        self._stale.clear()
        return [
            best_by_bounds(_shown(bounds, own), SLACK, limit, LEAST_SCORE, partial(self._scores, query))
            for query, bounds, own in zip(queries, int8.bounds(queries, len(self)), allowed, strict=True)
        ]

    def _products(self, queries: Floats) -> Floats:
        """[B, D] -> [B, N]. Rows times queries: the other way round BLAS copies all rows first, for a few queries."""
        vectors, size = self._vectors, len(self)
        products = np.empty((len(queries), size), np.float32)

        def compare(rows: slice) -> None:
            products[:, rows] = (vectors[rows] @ queries.T).T

        in_parts(compare, size, ROWS_OF_A_PART)
        return products

    def _scores(self, query: Floats, rows: Rows) -> Floats:
        """Inner products of a query [D] with rows [R], each in one way wherever it stands: equal rows score equal."""
        found = self._room[rows]
        return np.asarray(np.einsum("nd,d->n", found[:, :-1], query[:-1]) + found[:, -1] * query[-1])

    @property
    def _vectors(self) -> Floats:
        """[N, D]: the rows in use."""
        return self._room[: len(self)]

    def _outdate(self, row: int) -> None:
        if self._int8 is not None:
            self._stale.add(row)

    def _write_int8(self, int8: Int8Rows, rows: Rows) -> None:
        for first in range(0, len(rows), AT_ONCE):
            some = rows[first : first + AT_ONCE]
            int8.write(some, self._room[some], self._columns["popularity"][some])

    def _append(self, item_id: str) -> int:
        self._make_room(len(self) + 1)
        row = self._row_of[item_id] = self._columns.append(popularity=0.0, down=False, catalogue_row=-1)
        self.item_ids.append(item_id)
        return row

    def _make_room(self, rows: int) -> None:
        if rows <= len(self._room):
            return
        grown = _reserve(GROWTH * rows, self.dim)
        grown[: len(self)] = self._vectors
        self._room = grown
        if self._int8 is not None:
            self._int8 = self._int8.grown(len(grown), len(self))

    def _hide(self, row: int) -> None:
        """Write the last coordinate as it must be now."""
        down = self._columns["down"][row]
        self._room[row, -1] = last = DOWN if down else self._columns["popularity"][row]
        if self._int8 is not None:
            self._int8.set_last(row, last)


def _shown(scores: Floats, allowed: Flags | None) -> Floats:
    """[N] -> the same, with what is not allowed below all that is."""
    return scores if allowed is None else np.where(allowed, scores, DOWN)


def _reserve(rows: int, dim: int) -> Floats:
    """[rows, dim] of zeros that take memory only where they are written."""
    return np.asarray(reserve(rows * dim).view(rows, dim).numpy())
