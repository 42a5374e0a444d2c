"""From a record of `items` or `item-vectors` to a change of the rows that wait to be written; no service is spoken to.

A record that `is_written` was handled before (by us or by who was here before us): a row in it is in every collection
that was whole then. It is read again all the same, for the collection that is catching up and for the items that are
unavailable, whose rows are held in memory only. So an item that returned while nobody wrote, or before its rows were
read again, stays out of the index until they are: else it would come back without a row, or with an old one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from indexer.item_attributes import AttributeTable, attributes_of
from indexer.pending_writes import PendingWrites, Row, problem_of
from indexer.schema import is_indexable
from streams.messages import Item, ItemVector, Refused, decode


@dataclass
class Targets:
    """The collections that take rows, with their vectors' length. `catching_up`: the one among them that has not yet
    seen all of `item-vectors`, made from a bundle of `made_ms`."""

    dims: dict[str, int] = field(default_factory=dict)
    catching_up: str = ""
    made_ms: int = 0

    def drop(self, version: str) -> None:
        self.dims.pop(version, None)
        self.catching_up = "" if self.catching_up == version else self.catching_up


@dataclass
class Intake:
    """Turns records into changes of `rows` and `attributes`. `is_opening`: until what was there at the start has been
    read, and `returning` then go back into the index."""

    rows: PendingWrites
    attributes: AttributeTable
    max_bytes: int
    is_opening: bool = False
    returning: set[str] = field(default_factory=set)

    def hear_item(self, key: bytes | None, value: bytes | None, *, is_written: bool, now_ms: int) -> None:
        """A catalogue entry: what is unavailable is taken down, what it says otherwise goes to the item's rows. Raises
        Refused."""
        if value is None:
            self._take_down(_id_of(key), now_ms)
            return
        item = decode(Item, value, max_bytes=self.max_bytes)
        if not item.available:
            self._take_down(item.item_id, now_ms)
            return
        was_unavailable = item.item_id in self.rows.unavailable
        is_new = self.attributes.set(item.item_id, attributes_of(item))
        if was_unavailable and self.is_opening and not is_written:
            self.returning.add(item.item_id)
            return
        self.rows.bring_back(item.item_id, now_ms)
        if (is_new or was_unavailable) and not is_written and is_indexable(item.item_id):
            self.rows.rewrite(item.item_id, now_ms)

    def opened(self, now_ms: int) -> None:
        """All rows were read again since the start: who has returned goes back into the index."""
        self.is_opening = False
        for item_id in self.returning:
            self.rows.bring_back(item_id, now_ms)
        self.returning.clear()

    def hear_vector(
        self,
        key: bytes | None,
        value: bytes | None,
        targets: Targets,
        *,
        is_written: bool,
        now_ms: int,
        published_ms: int = 0,
    ) -> str | None:
        """A touched row, or the tombstone of an item that the trainer has let go of; the item's id in that case.
        `published_ms`: the record's own time. Raises Refused."""
        if key == b"":
            decode(ItemVector, value, max_bytes=self.max_bytes)
            return None  # the trainer's own bookkeeping
        item_id = _id_of(key)
        if value is None:
            if not is_written:
                if is_indexable(item_id):
                    self.rows.expire(item_id, now_ms)
                return item_id
            if published_ms > targets.made_ms and is_indexable(item_id):  # else the release may have the item again
                self.rows.expire_in(targets.catching_up, item_id, now_ms)
            return None
        if is_written and not targets.catching_up and item_id not in self.rows.unavailable:
            return None
        message = decode(ItemVector, value, max_bytes=self.max_bytes)
        if message.version in targets.dims:
            _check(item_id, message, targets.dims[message.version])
            if not is_written:
                row = Row(message.step, message.vector, message.produced_ms, published_ms)
                self.rows.put(message.version, item_id, row, now_ms)
            elif message.version == targets.catching_up:
                self.rows.put(message.version, item_id, Row(message.step, message.vector), now_ms)
            else:
                self.rows.hold(message.version, item_id, Row(message.step, message.vector))
        return None

    def _take_down(self, item_id: str, now_ms: int) -> None:
        self.attributes.forget(item_id)
        self.returning.discard(item_id)
        if is_indexable(item_id):  # what Milvus cannot hold it cannot be asked to delete either
            self.rows.take_down(item_id, now_ms)


def _check(item_id: str, message: ItemVector, dim: int) -> None:
    """Raises Refused when a row cannot go into an index of this dimension."""
    if problem := problem_of(message.vector, dim):
        raise Refused("invalid", f"item {item_id}, version {message.version}: {problem}")
    if message.query_row and (problem := problem_of(message.query_row, dim - 1)):
        raise Refused("invalid", f"item {item_id}, version {message.version}, on the user's side: {problem}")
    if not is_indexable(item_id):
        raise Refused("invalid", "item id has control characters or is longer than 1024 bytes")


def _id_of(key: bytes | None) -> str:
    if not key:
        raise Refused("invalid", "record without a key: the key is the item's id")
    try:
        return key.decode()
    except UnicodeDecodeError:
        raise Refused("malformed", "key is not UTF-8") from None
