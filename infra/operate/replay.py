"""Replay a log: send its rows as watch events, in their order of time, as fast as asked.

A row's event id comes from what the row says, so a replay that is repeated, or broken off and started again, changes
nothing: every reader passes over an event id that it has seen. The log is checked as a whole before the first event is
sent; a replay that reports success has an acknowledgement for every event.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any

import polars as pl

from infra.operate.progress import Step, no_progress
from infra.operate.sending import Due, Keyed, SendError, open_producer, require_as_designed, send_all
from infra.platform.settings import Settings
from models.logs.log import CONTEXT_COLUMNS, Log, items_from_frame, log_from_frame, read_items, read_log
from streams.history.log_rows import row_id
from streams.messages import Context, Item, WatchEvent, encode
from streams.topics import ITEMS, WATCH_EVENTS


@dataclass(frozen=True)
class Replayed:
    """Numbers of what was sent and acknowledged. `duplicates` are rows of the log that were there before, `exposures`
    those of 0 seconds, which are no watches."""

    items: int
    watches: int
    duplicates: int
    exposures: int
    wall_s: float

    @property
    def events_per_s(self) -> float:
        return self.watches / self.wall_s if self.wall_s > 0 else 0.0


def replay(
    log: Path | pl.DataFrame,
    settings: Settings,
    *,
    speed: float | None = None,
    mapping: Mapping[str, str] | None = None,
    items: Path | pl.DataFrame | None = None,
    restamp: bool = False,
    progress: Step = no_progress,
) -> Replayed:
    """Send a log to `watch-events`, after its catalogue `items`, if given, to `items`.

    `speed` 2 plays it in half the time it took, None as fast as the broker takes it. `restamp` moves the events' times
    to now (see restamped).
    Raises LogError for a row that cannot be used, SendError when the broker does not take the events.
    """
    if speed is not None and not speed > 0:
        raise SendError(f"speed must be above 0 (or none at all: as fast as possible), got {speed}")
    completed_s, none = settings.history.completed_s, pl.DataFrame(schema={"item_id": pl.String})
    if isinstance(log, pl.DataFrame):
        checked = log_from_frame(log, completed_s)
    else:
        checked = read_log(log, mapping=mapping, completed_s=completed_s)
    rows, checked = checked.frame.height, only_watches(checked)
    catalogue = read_items(items) if isinstance(items, Path) else items_from_frame(none if items is None else items)
    times = checked.frame["event_ms"]
    moved = restamped(times, round(time.time() * 1000), speed) if restamp else times
    catalogue = catalogue.with_columns(pl.col("published_ms") + (moved[0] - times[0]))
    watches = watch_messages(_with_times(checked, moved))
    due_s = None if speed is None else due(times, speed).to_list()
    began_s = time.monotonic()
    with open_producer(settings.kafka, linger_ms=20 if speed is None else 2) as producer:
        require_as_designed(settings.kafka, (ITEMS, WATCH_EVENTS))

        def send(what: str, topic: str, messages: Iterable[tuple[str, Any]], total: int, due_s: Due = None) -> int:
            name, encoded = settings.kafka.topic_prefix + topic, (Keyed(key, encode(each)) for key, each in messages)
            return send_all(producer, name, encoded, lambda done: progress(what, done, total), due_s)

        published = send("items", ITEMS, item_messages(catalogue), catalogue.height)
        sent = send("watches", WATCH_EVENTS, watches, checked.frame.height, due_s)
    return Replayed(published, sent, checked.duplicates, rows - checked.frame.height, time.monotonic() - began_s)


def only_watches(log: Log) -> Log:
    """The log without what was shown and left alone, its rows of 0 seconds."""
    return replace(log, frame=log.frame.filter((pl.col("watch_s") > 0).fill_null(True)))


def watch_messages(log: Log) -> Iterator[tuple[str, WatchEvent]]:
    """Key and message of each row. A row that does not say for how long counts as a completed watch of the least
    length that completes it."""
    columns = ("event_id", "user_id", "item_id", "event_ms", "watch_s", "duration_s")
    least = pl.min_horizontal(pl.col("duration_s"), pl.lit(log.completed_s))
    frame = _with_ids(log.frame).with_columns(pl.col("watch_s").fill_null(least))
    contexts = _contexts(frame)
    for event_id, user_id, item_id, event_ms, watch_s, duration_s in frame.select(columns).iter_rows():
        yield user_id, WatchEvent(event_id, user_id, item_id, event_ms, watch_s, duration_s, context=next(contexts))


def item_messages(items: pl.DataFrame) -> Iterator[tuple[str, Item]]:
    """Key and message of each row of a checked catalogue."""
    for row in items.iter_rows(named=True):
        ids = {name: tuple(values) for name, values in (row.get("ids") or {}).items() if values}
        yield (
            row["item_id"],
            Item(
                item_id=row["item_id"],
                title=row.get("title") or "",
                channel=row["channel"],
                topics=tuple(row["topics"]),
                duration_s=row["duration_s"],
                published_ms=row["published_ms"],
                ids=ids,
                description=row.get("description") or "",
                vector=tuple(float(f"{number:.6g}") for number in row.get("vector") or ()),  # more nobody reads
            ),
        )


def due(event_ms: pl.Series, speed: float) -> pl.Series:
    """Time at which each event is to be sent, in seconds after the first; `event_ms` sorted."""
    elapsed_s: pl.Series = (event_ms - event_ms[0]) / (1000 * speed)
    return elapsed_s


def restamped(event_ms: pl.Series, now_ms: int, speed: float | None) -> pl.Series:
    """The times moved to the present: at a `speed`, to when each event is due; else with their gaps, the last now."""
    moved = event_ms - event_ms[-1] if speed is None else (1000 * due(event_ms, speed)).round(0).cast(pl.Int64)
    there: pl.Series = moved + now_ms
    return there


def _contexts(frame: pl.DataFrame) -> Iterator[Context | None]:
    """The context of each row, where and on what it was watched; None for a row that says nothing."""
    there = frame.select(name for name in CONTEXT_COLUMNS if name in frame.columns)
    if not there.width:
        yield from repeat(None)
    if "signed_in" in there.columns:
        there = there.with_columns(pl.col("signed_in") >= 0.5)
    for row in there.iter_rows(named=True):
        known = {name: value for name, value in row.items() if value is not None}
        yield Context(**known) if known else None


def _with_ids(frame: pl.DataFrame) -> pl.DataFrame:
    if "event_id" in frame.columns:
        return frame
    rows = frame.select("user_id", "item_id", "event_ms").iter_rows()
    return frame.with_columns(pl.Series("event_id", [row_id(*row) for row in rows], pl.String))


def _with_times(log: Log, event_ms: pl.Series) -> Log:
    """Other times, the same event ids."""
    return Log(_with_ids(log.frame).with_columns(event_ms.alias("event_ms")), log.completed_s, log.duplicates)
