"""The catalogue, what is counted and what was learnt of its items, as the console shows them: followed from topics.

A gateway whose console nobody opens follows nothing. What is read is kept encoded, so that a large catalogue takes
little memory; a search looks at every title, which is for a person's pace.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import structlog
from kafka.errors import KafkaError
from msgspec.structs import replace

from infra.platform.retrying import BackOff
from infra.platform.settings import Settings
from streams import topics
from streams.kafka.follow import TopicFollower
from streams.messages import Item, ItemVector, Refused, StatisticsRow, decode, encode

log = structlog.get_logger(__name__)

FOLLOWED = (topics.ITEMS, topics.ITEM_STATISTICS, topics.ITEM_VECTORS)
POLL_S = 0.5
MOST_FOUND = 50


class Counts(NamedTuple):
    """Decayed sums of an item, over all partitions."""

    impressions: float = 0.0
    watches: float = 0.0
    seconds: float = 0.0


class LearntRow(NamedTuple):
    """The newest row that the trainer has published of an item: when, and of which release."""

    at_ms: int
    version: str


class Catalogue:
    """Items by id. Written by one thread, read by others; a reader may see a record early or late, never half."""

    def __init__(self, max_bytes: int) -> None:
        self.is_whole = False  # all that was there when reading began has been read
        self._max_bytes = max_bytes
        self._items: dict[str, bytes] = {}
        self._titles: dict[str, str] = {}  # id and title, folded for the search
        self._counts: dict[str, dict[int, Counts]] = {}
        self._rows: dict[str, LearntRow] = {}

    def __len__(self) -> int:
        return len(self._items)

    def apply(self, record: Any) -> None:
        """Take over one record of `items`, `item-statistics` or `item-vectors`."""
        if record.topic.endswith(topics.ITEM_STATISTICS):
            self._count(record.value)
        elif record.key is not None:
            item_id = record.key.decode(errors="replace")
            if record.topic.endswith(topics.ITEM_VECTORS):
                self._learn(item_id, record.value, record.timestamp)
            else:
                self._keep(item_id, record.value)

    def item(self, item_id: str) -> Item | None:
        """The newest entry of an item, also of one that is not available; None when there is none any more."""
        encoded = self._items.get(item_id)
        return None if encoded is None else decode(Item, encoded, max_bytes=self._max_bytes)

    def title(self, item_id: str) -> str:
        """Its title, empty when none is known."""
        item = self.item(item_id)
        return "" if item is None else item.title

    def counts(self, item_id: str) -> Counts:
        parts = [*self._counts.get(item_id, {}).values()]
        return Counts(*map(sum, zip(*parts, strict=True))) if parts else Counts()

    def learnt_row(self, item_id: str) -> LearntRow | None:
        return self._rows.get(item_id)

    def search(self, text: str, most: int = MOST_FOUND) -> list[Item]:
        """Items whose id or title holds the text, whatever its case; the first so many, one of this very id first."""
        folded = text.casefold()
        ids = [text] if text in self._items else []
        for item_id, title in [*self._titles.items()]:
            if len(ids) >= most:
                break
            if folded in title and item_id != text:
                ids.append(item_id)
        return [item for item in map(self.item, ids) if item is not None]

    def _keep(self, item_id: str, value: bytes | None) -> None:
        if value is None:
            self._items.pop(item_id, None)
            self._titles.pop(item_id, None)
            return
        with suppress(Refused):
            item = decode(Item, value, max_bytes=self._max_bytes)
            unread = item.vector or item.description  # no page shows them
            shown = encode(replace(item, vector=(), description="")) if unread else value
            self._items[item_id], self._titles[item_id] = shown, f"{item_id}\n{item.title}".casefold()

    def _count(self, value: bytes | None) -> None:
        if value is None:
            return
        with suppress(Refused):
            row = decode(StatisticsRow, value, max_bytes=self._max_bytes)
            if row.scope == "item":
                found = Counts(row.impressions, row.watches, row.seconds)
                self._counts.setdefault(row.id, {})[row.partition] = found

    def _learn(self, item_id: str, value: bytes | None, at_ms: int) -> None:
        if value is None:
            self._rows.pop(item_id, None)
            return
        with suppress(Refused):
            row = decode(ItemVector, value, max_bytes=self._max_bytes)
            self._rows[item_id] = LearntRow(at_ms, sys.intern(row.version))


class CatalogueReader:
    """Follows the topics in a thread, from the first time that somebody asks for the catalogue."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._catalogue = Catalogue(settings.kafka.max_message_bytes)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="catalogue", daemon=True)
        self._lock = threading.Lock()

    @property
    def catalogue(self) -> Catalogue:
        with self._lock:
            if self._thread.ident is None and not self._stop.is_set():
                self._thread.start()
        return self._catalogue

    def close(self) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(10)

    def _run(self) -> None:
        waits = BackOff()
        while not self._stop.is_set():
            try:
                for record in self._records():
                    self._catalogue.apply(record)
            except (KafkaError, LookupError) as error:  # no broker, or no topic yet
                log.warning("the catalogue cannot be read", error=str(error))
                self._stop.wait(waits.next())

    def _records(self) -> Iterator[Any]:
        with TopicFollower(self._settings.kafka, *FOLLOWED) as follower:
            while not self._stop.is_set():
                yield from follower.poll(POLL_S)
                self._catalogue.is_whole = follower.caught_up
