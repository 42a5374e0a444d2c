"""The catalogue as the trainer keeps it: what places an item that nobody has watched yet.

Entries are kept without description and vector; these as what is read of them, two bytes a word and a number. Vectors
are held in bounded memory: which items a release has rows of is not known here, and those of whole catalogues may be
larger than all else that the trainer holds. Where they are more, those told longest ago are let go; an item that gets
its first watch after that is placed by the rest.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping

import numpy as np
from msgspec.structs import replace

from models.catalogue.catalogue import CHANNEL, TOPICS
from models.catalogue.content import NO_VECTOR, NO_WORDS, ItemContent, halves_of, word_codes
from streams.messages import Item

MOST_BYTES = 256 * 1024 * 1024  # of vectors: a million of 128 numbers


class ItemContents(Mapping[str, ItemContent]):
    """What items say of themselves, by id, as the `items` topic tells it."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes, self._bytes = most_bytes, 0  # of vectors
        self._items: dict[str, Item] = {}
        self._words: dict[str, bytes] = {}
        self._vectors: OrderedDict[str, bytes] = OrderedDict()  # the one told longest ago first

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __getitem__(self, item_id: str) -> ItemContent:
        item = self._items[item_id]
        words, vector = self._words.get(item_id), self._vectors.get(item_id)
        return ItemContent(
            ids_of(item),
            item.title,
            NO_WORDS if words is None else np.frombuffer(words, np.uint16),
            NO_VECTOR if vector is None else np.frombuffer(vector, np.float16),
        )

    def hear(self, item: Item) -> None:
        """Take over the newest entry of an item."""
        item_id = item.item_id
        self._items[item_id] = replace(item, description="", vector=())  # never away: another thread reads
        self._forget_more(item_id)
        if item.description:
            self._words[item_id] = word_codes(item.description).tobytes()
        if item.vector:
            self._vectors[item_id] = vector = halves_of(item.vector).tobytes()
            self._bytes += len(vector)
        while self._bytes > self._most_bytes:
            _, oldest = self._vectors.popitem(last=False)
            self._bytes -= len(oldest)

    def forget(self, item_id: str) -> None:
        """The item is no longer in the catalogue."""
        self._items.pop(item_id, None)
        self._forget_more(item_id)

    def _forget_more(self, item_id: str) -> None:
        self._words.pop(item_id, None)
        self._bytes -= len(self._vectors.pop(item_id, b""))


def ids_of(item: Item) -> dict[str, tuple[str, ...]]:
    """An item's ids by column, as models.catalogue.catalogue names them."""
    return {CHANNEL: (item.channel,) if item.channel else (), TOPICS: item.topics, **item.ids}
