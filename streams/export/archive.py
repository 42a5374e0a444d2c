"""The events in the topics, read to their end as what training takes: a team can start without any log.

Watches and searches go to disk as they are read, so that topics may hold more than memory does. A repeated or forwarded
event is the same user, item and time, which a stored log has once. What is from before its user was erased is left
out.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import structlog
from msgspec.structs import replace

from infra.platform.settings import Settings
from models.logs.log import CONTEXT_COLUMNS, CONTEXT_NAMES, LATEST_MS, LONGEST_ID, MOST_ID_COLUMNS, SIGNAL
from models.logs.row_batches import BATCH_ROWS
from models.logs.stored_log import LogWriter, StoredLog
from models.logs.stored_searches import StoredSearches, store_search_batches
from streams import topics
from streams.erasure.erase_users import read_erased_users
from streams.history.signals import said_of_items
from streams.kafka.follow import TopicFollower, read_to_end
from streams.messages import Item, Refused, SearchEvent, SignalEvent, WatchEvent, decode

logger = structlog.get_logger(__name__)

Progress = Callable[[str, int, int], None]
Row = tuple[Any, ...]
Said = dict[tuple[str, str], list[str]]  # by user and item, the kinds of signals that stand

WATCH_SCHEMA: dict[str, Any] = {
    "user_id": pl.String,
    "item_id": pl.String,
    "event_ms": pl.Int64,
    "watch_s": pl.Float64,
    "duration_s": pl.Float64,
    **dict.fromkeys(CONTEXT_NAMES, pl.String),
    "signed_in": pl.Boolean,
    "gender": pl.Float64,
    "age": pl.Float64,
    SIGNAL: pl.String,
}
ITEM_SCHEMA: dict[str, Any] = {
    "item_id": pl.String,
    "channel": pl.String,
    "topics": pl.List(pl.String),
    "duration_s": pl.Float64,
    "published_ms": pl.Int64,
}
SEARCH_SCHEMA: dict[str, Any] = {"user_id": pl.String, "query": pl.String, "event_ms": pl.Int64}


class Archive(NamedTuple):
    """The log of all watches, the searches of its users (None: there are none), the catalogue, and how many watches and
    searches were unusable, or of users who were erased since.

    `offsets`: by `topic/partition` the next offset of `training-examples`. They are taken before the watches are read,
    so every example below them comes from a watch that is here.
    """

    log: StoredLog
    searches: StoredSearches | None
    items: pl.DataFrame
    refused: int
    erased: int
    offsets: dict[str, int]


def store_archive(settings: Settings, directory: Path, progress: Progress = lambda stage, done, total: None) -> Archive:
    """Read `watch-events`, `search-events` and `items` from their beginning to their present end, and `signals` before
    where a watch may weigh more or less by them; events go to `directory`. Raises LogError when there are no watches.
    """
    with TopicFollower(settings.kafka, topics.TRAINING_EXAMPLES) as follower:
        offsets = {f"{topic}/{partition}": end for (topic, partition), end in follower.ends().items()}
    reader = _Reader(settings, progress)
    said: Said = {}
    if settings.model.signal_weights:
        said = said_of_items(reader.events(topics.SIGNALS, SignalEvent))
    with LogWriter(directory, completed_s=settings.history.completed_s, source=topics.WATCH_EVENTS) as writer:
        for frame in _frames(
            (_watch_row(event, said) for event in reader.events(topics.WATCH_EVENTS, WatchEvent)), WATCH_SCHEMA
        ):
            writer.add(frame)
        log = writer.finish(progress)
    rows = ((event.user_id, event.query, event.event_ms) for event in reader.events(topics.SEARCH_EVENTS, SearchEvent))
    searches = store_search_batches(
        _frames(rows, SEARCH_SCHEMA), log, buckets=settings.model.search_tokens, source=topics.SEARCH_EVENTS
    )
    return Archive(log, searches if len(searches) else None, reader.items(), reader.refused, reader.erased, offsets)


class _Reader:
    """Reads whole topics, message by message."""

    def __init__(self, settings: Settings, progress: Progress) -> None:
        self.refused = self.erased = 0
        self._erased = read_erased_users(settings)
        self._settings, self._progress = settings, progress

    def events(self, topic: str, kind: Any) -> Iterator[Any]:
        """Yield what can be used, and count the rest."""
        for _, message, produced_ms in self._messages(topic, kind):
            if message is None:
                self.refused += 1
            elif self._erased.is_from_before(message.user_id, message.event_ms, produced_ms):
                self.erased += 1
            else:
                yield message

    def items(self) -> pl.DataFrame:
        """The catalogue as it is now. What is unreadable counts as taken down: the indexer reports it."""
        items: dict[bytes | None, tuple[Item, array[float]]] = {}
        for key, item, _ in self._messages(topics.ITEMS, Item):
            if item is None:
                items.pop(key, None)
            else:
                items[key] = lighter(item, content=self._settings.model.content)
        return item_frame([item for item, _ in items.values()], [vector for _, vector in items.values()])

    def _messages(self, topic: str, kind: Any) -> Iterator[tuple[bytes | None, Any, int]]:
        """Key, message and time of each record; no message for a tombstone and for what cannot be read."""
        kafka = self._settings.kafka
        for record in read_to_end(kafka, topic, progress=partial(self._progress, topic)):
            try:
                message = decode(kind, record.value, max_bytes=kafka.max_message_bytes, latest_ms=LATEST_MS)
            except Refused:
                message = None
            yield record.key, message, record.timestamp


def _frames(rows: Iterable[Row], schema: dict[str, Any]) -> Iterator[pl.DataFrame]:
    rows = iter(rows)
    while batch := list(islice(rows, BATCH_ROWS)):
        yield pl.DataFrame(batch, schema=schema, orient="row")


def _watch_row(event: WatchEvent, said: Said) -> Row:
    """In the context a name that is longer than a log takes is not known."""
    known = (getattr(event.context, name, None) for name in CONTEXT_COLUMNS)
    context = (None if isinstance(value, str) and len(value) > LONGEST_ID else value for value in known)
    kinds = said.get((event.user_id, event.item_id))
    signal = None if kinds is None else "|".join(kinds)
    return (event.user_id, event.item_id, event.event_ms, event.watch_s, event.duration_s, *context, signal)


def lighter(item: Item, *, content: bool) -> tuple[Item, array[float]]:
    """An item without its vector, and that in 4 bytes a number: as Python's own they would take 32, of all items.
    Where no map of `content` is to be learnt, neither vector nor description is kept."""
    if not content:
        return replace(item, description="", vector=()), array("f")
    return replace(item, vector=(), description=item.description or ""), array("f", item.vector or ())


def item_frame(items: list[Item], vectors: Sequence[array[float]] = ()) -> pl.DataFrame:
    """A catalogue as training takes it; `title`, `description`, `ids` and `vector` only when an item has some.
    `vectors`: one of each item, empty for none. While a team goes over to vectors of another length the topic has both:
    those of the length that most items have are taken."""
    frame = pl.DataFrame({name: [getattr(item, name) for item in items] for name in ITEM_SCHEMA}, schema=ITEM_SCHEMA)
    for name in ("title", "description"):
        if any(getattr(item, name) for item in items):
            frame = frame.with_columns(pl.Series(name, [getattr(item, name) for item in items], pl.String))
    if sizes := Counter(len(vector) for vector in vectors if vector):
        (size, count), *_ = sizes.most_common(1)
        if others := sizes.total() - count:
            logger.warning("items have vectors of several lengths", taken=size, items=count, others=others)
        fit = np.array([len(vector) == size for vector in vectors])
        taken = pl.Series("vector", np.stack([vector for vector in vectors if len(vector) == size], dtype=np.float32))
        place = pl.Series(np.where(fit, np.cumsum(fit) - 1, -1)).replace(-1, None)  # of each item in what is taken
        frame = frame.with_columns(taken.cast(pl.List(pl.Float32)).gather(place))
    names = list(dict.fromkeys(name for item in items for name in item.ids))[:MOST_ID_COLUMNS]
    if not names:
        return frame
    ids = {name: [list(item.ids.get(name, ())) for item in items] for name in names}
    return frame.with_columns(pl.DataFrame(ids, schema=dict.fromkeys(names, pl.List(pl.String))).to_struct("ids"))
