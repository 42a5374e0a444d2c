"""The catalogue as the trainer keeps it: what places an item that nobody has watched yet.

Entries are kept without description and vector; these as what is read of them, two bytes a word and a number. Vectors
are held in bounded memory: which items a release has rows of is not known here, and those of whole catalogues may be
larger than all else that the trainer holds. Where they are more, those told longest ago are let go; an item that gets
its first watch after that is placed by the rest.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace

from models.catalogue.catalogue import CHANNEL, TOPICS
from models.catalogue.content import NO_VECTOR, NO_WORDS, ItemContent, halves_of, word_codes
from streams.messages import Item

MOST_BYTES = 256 * 1024 * 1024  # of vectors: 680,000 of 128 numbers
ENTRY_BYTES = 130  # of a vector, beside its numbers


class Entry(NamedTuple):
    """What is kept of an item: all else it says, codes of its description's words, its vector in half precision."""

    item: Item
    words: bytes = b""
    vector: bytes = b""


class ItemContents(Mapping[str, ItemContent]):
    """What items say of themselves, by id, as the `items` topic tells it. One thread hears, others may read: an entry
    is changed as a whole. `reads_content` False: descriptions and vectors are passed over."""

    def __init__(self, most_bytes: int = MOST_BYTES, *, reads_content: bool = True) -> None:
        self._most_bytes, self._bytes = most_bytes, 0  # of vectors
        self._reads_content = reads_content
        self._entries: dict[str, Entry] = {}
        self._vectors: OrderedDict[str, int] = OrderedDict()  # the bytes of each, the one told longest ago first

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __getitem__(self, item_id: str) -> ItemContent:
        item, words, vector = self._entries[item_id]
        return ItemContent(
            ids_of(item),
            item.title,
            np.frombuffer(words, np.uint16) if words else NO_WORDS,
            np.frombuffer(vector, np.float16) if vector else NO_VECTOR,
        )

    def hear(self, item: Item) -> None:
        """Take over the newest entry of an item."""
        words = vector = b""
        if self._reads_content:
            words = word_codes(item.description or "").tobytes()
            vector = halves_of(item.vector or ()).tobytes()
        self._entries[item.item_id] = Entry(replace(item, description="", vector=()), words, vector)
        self._forget_vector(item.item_id)
        if vector:
            self._vectors[item.item_id] = len(vector) + ENTRY_BYTES
            self._bytes += len(vector) + ENTRY_BYTES
        while self._bytes > self._most_bytes:
            oldest, size = self._vectors.popitem(last=False)
            self._bytes -= size
            self._entries[oldest] = self._entries[oldest]._replace(vector=b"")

    def forget(self, item_id: str) -> None:
        """The item is no longer in the catalogue."""
        self._entries.pop(item_id, None)
        self._forget_vector(item_id)

    def _forget_vector(self, item_id: str) -> None:
        self._bytes -= self._vectors.pop(item_id, 0)


def ids_of(item: Item) -> dict[str, tuple[str, ...]]:
    """An item's ids by column, as models.catalogue.catalogue names them."""
    return {CHANNEL: (item.channel,) if item.channel else (), TOPICS: item.topics, **item.ids}
