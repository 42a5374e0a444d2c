"""The state that serving keeps in memory from topics: histories, the catalogue, statistics and what is trending.

Plain tables with one writer: the thread that answers requests applies what the feeds have read before each batch, so
nothing here needs a lock and a batch never sees half a change. Histories stay encoded until their user asks: most never
do while they are held, and bytes take a fifth of the memory of the objects they become.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import msgspec
import numpy as np
import polars as pl

from models.catalogue.catalogue import Catalogue
from models.catalogue.id_lists import lists_of
from models.ranking.item_statistics import ItemStatistics
from serving.state.fresh import FreshView
from serving.state.reading import read, refuse
from serving.state.trending_view import TrendingView
from streams import topics
from streams.erased_users import ErasedUsers
from streams.messages import Item, Refused, StatisticsRow, UserHistory

STAND_STILL_MS = 10_000  # what is known of items, at most: an outcome was known half an hour after the list anyway
MOST_HEARD = 2_000  # records that wait: more are taken over at once, since a batch of requests waits for that


class HistoryView:
    """The newest history of each user of the partitions that this worker owns, as far as the user was not erased."""

    def __init__(self, erased: ErasedUsers | None = None) -> None:
        self._encoded: dict[int, dict[bytes, bytes]] = {}  # by partition, by user id
        self._erased = erased

    def __len__(self) -> int:
        return sum(len(users) for users in self._encoded.values())

    def apply(self, partition: int, key: bytes | None, value: bytes | None) -> None:
        """Take over one record of `user-histories`; a tombstone forgets the user."""
        users = self._encoded.setdefault(partition, {})
        if key is None:
            refuse(topics.USER_HISTORIES, Refused("invalid", "history without a key"))
        elif value is None:
            users.pop(key, None)
        else:
            users[key] = value

    def keep(self, partitions: Iterable[int]) -> None:
        """Drop the users of all partitions but these."""
        kept = set(partitions)
        self._encoded = {number: users for number, users in self._encoded.items() if number in kept}

    def get(self, user_id: str, partition: int) -> UserHistory | None:
        """A user's history; None when there is none, or none that can be read (counted)."""
        encoded = self._encoded.get(partition, {}).get(user_id.encode())
        history: UserHistory | None = None
        if encoded is not None:
            history = read(topics.USER_HISTORIES, UserHistory, encoded)
        if history is not None and self._erased is not None:
            history = self._erased.begin(history)  # the history worker may not have come to it
        return history


class Attributes(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The attributes of an item that are kept, encoded: all that Catalogue.upsert takes, without the names of fields
    and the title."""

    channel: str | None
    topics: tuple[str, ...]
    duration_s: float | None
    published_ms: int | None
    language: str | None
    ids: dict[str, tuple[str, ...]]


AT_ONCE = 50_000  # items described together
LONGEST_TITLE = 200  # characters of a title that are kept
_ATTRIBUTES = msgspec.msgpack.Decoder(Attributes)


class CatalogueView:
    """The catalogue as the `items` topic tells it: what may be shown, and the attributes that a release's ranker reads.

    What was taken down is remembered, not only forgotten: the index may still hold it for a while.
    """

    def __init__(self, fresh_ms: float = 0.0, *, titles: bool = True) -> None:
        self.unavailable: set[str] = set()
        self._titles: dict[str, str] | None = {} if titles else None  # of those that have one
        self.fresh = FreshView(fresh_ms)
        self._attributes: dict[str, bytes] = {}  # of available items, in the order in which they came

    def __len__(self) -> int:
        return len(self._attributes)

    def __iter__(self) -> Iterator[str]:
        """The items that may be shown, oldest entry first."""
        return iter(self._attributes)

    def __reversed__(self) -> Iterator[str]:
        """The same, newest entry first; nothing is copied."""
        return reversed(self._attributes)

    def apply(self, key: bytes | None, value: bytes | None, now_ms: int | None = None) -> str | None:
        """Take over one record of `items`; the id of the item that changed. A tombstone or `available: false` takes it
        down. What is fresh is only kept where `now_ms` is given."""
        if value is None:
            return None if key is None else self._take_down(key.decode(errors="replace"))
        item: Item | None = read(topics.ITEMS, Item, value)
        if item is None:
            return None
        if not item.available:
            return self._take_down(item.item_id)
        self.unavailable.discard(item.item_id)
        attributes = Attributes(item.channel, item.topics, item.duration_s, item.published_ms, item.language, item.ids)
        self._attributes[sys.intern(item.item_id)] = msgspec.msgpack.encode(attributes)
        if self._titles is not None and (item.title or item.item_id in self._titles):
            self._titles[sys.intern(item.item_id)] = item.title[:LONGEST_TITLE]
        if now_ms is not None:
            self.fresh.put(item.item_id, item.published_ms, now_ms)
        return item.item_id

    def title(self, item_id: str) -> str:
        """What people call an item, cut; empty when that is not known, or not kept."""
        return self._titles.get(item_id, "") if self._titles else ""

    def describe(self, item_id: str, catalogue: Catalogue) -> None:
        """Write what is known of an item into a release's catalogue."""
        value = self._attributes.get(item_id)
        if value is None:
            catalogue.remove(item_id)
            return
        catalogue.upsert(item_id, **msgspec.structs.asdict(_ATTRIBUTES.decode(value)))

    def describe_all(self, catalogue: Catalogue) -> None:
        """The same for all items. May run beside the thread that applies records: list() of a dict or set is one step
        of the interpreter. What changes meanwhile is for the caller to describe again."""
        item_ids = list(self._attributes)
        for start in range(0, len(item_ids), AT_ONCE):
            some = {each: value for each in item_ids[start : start + AT_ONCE] if (value := self._attributes.get(each))}
            catalogue.upsert_all(_table([*some], [_ATTRIBUTES.decode(value) for value in some.values()]))
        for item_id in list(self.unavailable):
            self.describe(item_id, catalogue)

    def _take_down(self, item_id: str) -> str:
        self.unavailable.add(item_id)
        self._attributes.pop(item_id, None)
        if self._titles is not None:
            self._titles.pop(item_id, None)
        self.fresh.remove(item_id)
        return item_id


def _table(item_ids: list[str], attributes: list[Attributes]) -> pl.DataFrame:
    """What Catalogue.upsert_all takes."""
    names = dict.fromkeys(name for each in attributes for name, values in each.ids.items() if values)
    ids = {name: _lists([each.ids.get(name, ()) for each in attributes]) for name in names}
    columns = {
        "item_id": pl.Series(item_ids, dtype=pl.String),
        "channel": pl.Series([each.channel for each in attributes], dtype=pl.String),
        "topics": _lists([each.topics for each in attributes]),
        "duration_s": pl.Series([each.duration_s for each in attributes], dtype=pl.Float64),
        "published_ms": pl.Series([each.published_ms for each in attributes], dtype=pl.Int64),
        "language": pl.Series([each.language for each in attributes], dtype=pl.String),
    }
    return pl.DataFrame(columns | ({"ids": pl.DataFrame(ids).to_struct()} if ids else {}))


def _lists(rows: list[tuple[str, ...]]) -> pl.Series:
    names = pl.Series([*chain.from_iterable(rows)], dtype=pl.String)
    return lists_of(np.fromiter(map(len, rows), np.int64, len(rows)), names)


class StatisticsView:
    """Decayed sums over closed impressions of all partitions, as `item-statistics` tells them.

    What is heard is taken over together, so that what is known of items stands still in between: it says how things
    are at `known_ms`.
    """

    def __init__(self, kafka_partitions: int, half_life_h: float) -> None:
        self.statistics = ItemStatistics(half_life_h * 3_600_000, parts=kafka_partitions)
        self.known_ms = 0
        self._heard: list[Any] = []
        self._changes = 0

    @property
    def moment(self) -> tuple[int, int]:
        """Equal while nothing has changed."""
        return self.known_ms, self._changes

    def hear(self, record: Any) -> None:
        """A record of `item-statistics` waits until the next ones are due."""
        self._heard.append(record)

    def is_due(self, now_ms: int) -> bool:
        return abs(now_ms - self.known_ms) >= STAND_STILL_MS or len(self._heard) >= MOST_HEARD

    def due(self, now_ms: int) -> list[Any]:
        """The records that have waited, to be applied: from here on all is known as of now."""
        heard, self._heard, self.known_ms = self._heard, [], now_ms
        return heard

    def apply(self, key: bytes | None, value: bytes | None) -> None:
        """Take over one record of `item-statistics`; a tombstone leaves nothing of the row."""
        self._changes += 1
        if value is None:
            if key is not None:
                self._forget(key.decode(errors="replace"))
        elif (row := read(topics.ITEM_STATISTICS, StatisticsRow, value)) is not None:
            last = row.expected_s if row.scope == "calibration" else row.completions
            sums = row.impressions, row.watches, row.seconds, last
            try:
                self.statistics.set(row.scope, row.id, row.partition, row.as_of_ms, sums)
            except ValueError as error:
                refuse(topics.ITEM_STATISTICS, Refused("invalid", str(error)))

    def _forget(self, key: str) -> None:
        scope, _, rest = key.partition("/")
        partition, _, name = rest.partition("/")
        self.statistics.remove(scope, name, int(partition) if partition.isdecimal() and len(partition) < 10 else -1)


class ReadOffsets:
    """By topic the next offset of each partition: with them the features of an answer can be computed again."""

    def __init__(self) -> None:
        self._next: dict[str, list[int]] = {}

    def read(self, topic: str, partition: int, offset: int) -> None:
        places = self._next.setdefault(topic, [])
        places += [0] * (partition + 1 - len(places))
        places[partition] = offset + 1

    def of(self, topic: str) -> tuple[int, ...]:
        return tuple(self._next.get(topic, ()))

    def as_dict(self) -> dict[str, tuple[int, ...]]:
        return {topic: tuple(places) for topic, places in self._next.items()}


@dataclass(frozen=True)
class Views:
    """All views, and the offsets that they have read."""

    histories: HistoryView
    catalogue: CatalogueView
    trending: TrendingView
    statistics: StatisticsView
    read_offsets: ReadOffsets = field(default_factory=ReadOffsets)

    def settle(self, now_ms: int) -> None:
        """Take over what was heard of items, where it is time for it. Only from then on it counts as read."""
        if self.statistics.is_due(now_ms):
            for record in self.statistics.due(now_ms):
                self.statistics.apply(record.key, record.value)
                self.read_offsets.read(topics.ITEM_STATISTICS, record.partition, record.offset)
