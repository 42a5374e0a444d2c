"""What the topics hold, read to their end as the tables that training takes: a team can start without any log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import polars as pl

from infra.settings import Settings
from models.log import MOST_ID_COLUMNS
from streams import topics
from streams.follow import TopicFollower
from streams.messages import Item, Refused, WatchEvent, decode

Progress = Callable[[str, int, int], None]

WATCH_COLUMNS = {
    "user_id": pl.String(),
    "item_id": pl.String(),
    "event_ms": pl.Int64(),
    "watch_s": pl.Float64(),
    "duration_s": pl.Float64(),
}


class Archive(NamedTuple):
    """Watches (user_id, item_id, event_ms, watch_s, duration_s) and catalogue, and how many messages were unusable.

    `offsets`: by `topic/partition` the next offset of `training-examples`. They are taken before the watches are read,
    so every example below them comes from a watch that is here.
    """

    watches: pl.DataFrame
    items: pl.DataFrame
    refused: int
    offsets: dict[str, int]


def read_archive(settings: Settings, progress: Progress = lambda stage, done, total: None) -> Archive:
    """Read `watch-events` and `items` from their beginning to their present end."""
    with TopicFollower(settings.kafka, topics.TRAINING_EXAMPLES) as follower:
        offsets = {f"{topic}/{partition}": end for (topic, partition), end in follower.ends().items()}
    watches, refused = _read_watches(settings, progress)
    return Archive(watches, _read_items(settings, progress), refused, offsets)


def _read_watches(settings: Settings, progress: Progress) -> tuple[pl.DataFrame, int]:
    rows: dict[str, list[Any]] = {name: [] for name in WATCH_COLUMNS}
    seen: set[str] = set()  # a forwarded or repeated event counts once
    refused = 0
    with TopicFollower(settings.kafka, topics.WATCH_EVENTS) as follower:
        total = sum(follower.lags().values())
        done = 0
        while not follower.caught_up:
            for record in follower.poll(0.5):
                done += 1
                try:
                    event = decode(WatchEvent, record.value, max_bytes=settings.kafka.max_message_bytes)
                except Refused:
                    refused += 1
                    continue
                if event.event_id not in seen:
                    seen.add(event.event_id)
                    for name, column in rows.items():
                        column.append(getattr(event, name))
            progress("watch-events", done, total)
    return pl.DataFrame(rows, schema=WATCH_COLUMNS), refused


def _read_items(settings: Settings, progress: Progress) -> pl.DataFrame:
    items: dict[bytes, Item] = {}
    with TopicFollower(settings.kafka, topics.ITEMS) as follower:
        total = sum(follower.lags().values())
        done = 0
        while not follower.caught_up:
            for record in follower.poll(0.5):
                done += 1
                try:
                    items[record.key] = decode(Item, record.value)
                except Refused:  # a tombstone, or unreadable: the indexer reports
                    items.pop(record.key, None)
            progress("items", done, total)
    return item_frame(list(items.values()))


def item_frame(items: list[Item]) -> pl.DataFrame:
    """A catalogue as training takes it; `ids` only when an item has some."""
    frame = pl.DataFrame(
        {
            "item_id": [item.item_id for item in items],
            "channel": [item.channel for item in items],
            "topics": [list(item.topics) for item in items],
            "duration_s": [item.duration_s for item in items],
            "published_ms": [item.published_ms for item in items],
        },
        schema={
            "item_id": pl.String,
            "channel": pl.String,
            "topics": pl.List(pl.String),
            "duration_s": pl.Float64,
            "published_ms": pl.Int64,
        },
    )
    names = list(dict.fromkeys(name for item in items for name in item.ids))[:MOST_ID_COLUMNS]
    if not names:
        return frame
    ids = {name: [list(item.ids.get(name, ())) for item in items] for name in names}
    return frame.with_columns(pl.DataFrame(ids, schema=dict.fromkeys(names, pl.List(pl.String))).to_struct("ids"))
