"""Changes that are still to be written to the index: touched rows, coalesced per item, the items that must not be in
it, and those of which the catalogue says something new, so that their rows are written again.

An item that is taken down is unavailable, and the newest row that is known of it is held: a vector that arrives late
cannot bring it back, and the item's return can. Deletions are written before rows, and whatever deletes an
item also discards the rows of it that were waiting, so that the index ends as if each change had been written at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


class Row(NamedTuple):
    """An item's vector (little-endian float32) after `step`; `produced_ms` of the oldest watch in it that no search
    has seen yet, and `published_ms` when the oldest such row came into the topic; 0 for none."""

    step: int
    vector: bytes
    produced_ms: int = 0
    published_ms: int = 0


class PendingWrites:
    """Rows of the versions that are followed, waiting to be written. `len` is the number of changes waiting."""

    def __init__(self) -> None:
        self.unavailable: set[str] = set()
        self._waiting: dict[str, dict[str, Row]] = {}  # by version, by item
        self._held: dict[str, dict[str, Row]] = {}
        self._deleted: dict[str, bool] = {}  # by item: whether its row is held, not lost
        self._expired: dict[str, dict[str, None]] = {}  # by version: items to delete from this collection alone
        self._changed: dict[str, None] = {}  # items whose attributes have changed, in order
        self._since_ms: int | None = None

    def __len__(self) -> int:
        alone = len(self._deleted) + len(self._changed) + sum(len(items) for items in self._expired.values())
        return alone + sum(len(rows) for rows in self._waiting.values())

    @property
    def followed(self) -> set[str]:
        return set(self._waiting)

    def follow(self, version: str) -> None:
        """Take rows of this version from now on."""
        self._waiting.setdefault(version, {})
        self._held.setdefault(version, {})

    def forget(self, version: str) -> None:
        """Its collection is gone, and with it all that was waiting for it."""
        self._waiting.pop(version, None)
        self._held.pop(version, None)
        self._expired.pop(version, None)

    def put(self, version: str, item_id: str, row: Row, now_ms: int) -> None:
        """A row was touched; one of a version that is not followed is passed over."""
        if version not in self._waiting:
            return
        if item_id in self.unavailable:
            _keep_newest(self._held[version], item_id, row)
        else:
            _keep_newest(self._waiting[version], item_id, row)
            self._note_change(now_ms)

    def hold(self, version: str, item_id: str, row: Row) -> None:
        """Remember a row of an unavailable item, in case it returns."""
        if version in self._held and item_id in self.unavailable:
            _keep_newest(self._held[version], item_id, row)

    def take_down(self, item_id: str, now_ms: int) -> None:
        """The item must be found in no collection until it is brought back."""
        if item_id in self.unavailable:
            return
        self.unavailable.add(item_id)
        for version, waiting in self._waiting.items():
            if (row := waiting.pop(item_id, None)) is not None:
                _keep_newest(self._held[version], item_id, row)
        self._deleted.setdefault(item_id, True)
        self._note_change(now_ms)

    def bring_back(self, item_id: str, now_ms: int) -> None:
        """The item may be found again; its newest known row is put back."""
        if item_id not in self.unavailable:
            return
        self.unavailable.discard(item_id)
        if self._deleted.get(item_id):
            del self._deleted[item_id]  # it was not written yet: the row is still there
        for version, held in self._held.items():
            if (row := held.pop(item_id, None)) is not None:
                self.put(version, item_id, row._replace(produced_ms=0, published_ms=0), now_ms)

    def expire(self, item_id: str, now_ms: int) -> None:
        """The trainer has let go of the item; its next row brings it back."""
        for rows in (*self._waiting.values(), *self._held.values()):
            rows.pop(item_id, None)
        if item_id not in self.unavailable or item_id in self._deleted:
            self._deleted[item_id] = False
            self._note_change(now_ms)

    def expire_in(self, version: str, item_id: str, now_ms: int) -> None:
        """The same in one collection, for a word of the trainer that the others have heard before."""
        if version in self._waiting:
            self._waiting[version].pop(item_id, None)
            self._held[version].pop(item_id, None)
            self._expired.setdefault(version, {})[item_id] = None
            self._note_change(now_ms)

    def rewrite(self, item_id: str, now_ms: int) -> None:
        """The item's attributes have changed: the rows of it that are in the index say so from the next writing on."""
        self._changed[item_id] = None
        self._note_change(now_ms)

    def is_due(self, now_ms: int, window_ms: float, batch: int) -> bool:
        """Return whether to write now: the oldest change has waited for the window, or a batch is full."""
        return self._since_ms is not None and (now_ms - self._since_ms >= window_ms or len(self) >= batch)

    def take_deleted(self, most: int) -> dict[str, bool]:
        """Items to delete from every collection, and whether their rows are to be held; empty when none are left.
        They come before rows."""
        return _taken(self._deleted, most)

    def take_expired(self, most: int) -> tuple[str, list[str]] | None:
        """(version, items to delete from its collection); None when none are left. They come before rows."""
        for version, expired in self._expired.items():
            if expired:
                return version, list(_taken(expired, most))
        return None

    def take_changed(self, most: int) -> list[str]:
        """Items whose attributes have changed; empty when none are left. They come after deletions and before rows."""
        return list(_taken(self._changed, most))

    def is_waiting(self, version: str, item_id: str) -> bool:
        """Return whether a row of this item is about to be written, or must not be."""
        return item_id in self.unavailable or item_id in self._waiting.get(version, ())

    def take_rows(self, most: int) -> tuple[str, dict[str, Row]] | None:
        """(version, rows by item) to write; None when nothing is left."""
        for version, waiting in self._waiting.items():
            if waiting:
                return version, _taken(waiting, most)
        self._since_ms = None
        return None

    def _note_change(self, now_ms: int) -> None:
        if self._since_ms is None:
            self._since_ms = now_ms


def _taken(waiting: dict[str, T], most: int) -> dict[str, T]:
    """The first ones, taken out."""
    return {item_id: waiting.pop(item_id) for item_id in list(islice(waiting, most))}


def stack(rows: Iterable[Row]) -> NDArray[np.float32]:
    """float32 [N, dim]"""
    return np.stack([np.frombuffer(row.vector, dtype="<f4") for row in rows])


def problem_of(vector: bytes, dim: int) -> str | None:
    """Why a vector cannot go into an index of dimension `dim`; None when it can."""
    if len(vector) != 4 * dim:
        return f"vector has {len(vector)} bytes, the index takes {dim} float32 numbers ({4 * dim} bytes)"
    if not np.isfinite(np.frombuffer(vector, dtype="<f4")).all():
        return "vector has numbers that are not finite"
    return None


def _keep_newest(rows: dict[str, Row], item_id: str, row: Row) -> None:
    """The newest step wins; the oldest times stay, since the delays are counted from them."""
    known = rows.get(item_id)
    if known is None:
        rows[item_id] = row
        return
    newest = known if known.step > row.step else row
    rows[item_id] = newest._replace(
        produced_ms=_oldest(known.produced_ms, row.produced_ms),
        published_ms=_oldest(known.published_ms, row.published_ms),
    )


def _oldest(one_ms: int, other_ms: int) -> int:
    return min(one_ms, other_ms) if one_ms and other_ms else one_ms or other_ms
