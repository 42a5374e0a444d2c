"""A log's users, items and trending lists, told to the system: what `nextwatch load` does beside training.

The order: catalogue, histories, trending; then it is waited until the history workers have taken the histories in, and
only then is the release announced, so that the first list that is computed from it knows its viewer. All of it may be
broken off and done again: what is there already is known (streams/history/loaded.py), the rest is written over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
from kafka import KafkaProducer
from kafka.errors import CoordinatorNotAvailableError

from infra.operate.progress import Step, no_progress
from infra.operate.replay import item_messages
from infra.operate.sending import Keyed, open_producer, require_as_designed, send_all
from infra.platform.settings import Kafka, Settings
from models.logs.log import read_items
from models.logs.stored_log import StoredLog
from streams import topics
from streams.kafka.follow import TopicFollower, read_to_end
from streams.loading.histories import NO_SEARCHES, histories_of
from streams.loading.searches import read_searches
from streams.loading.trending import PART, trending_of
from streams.messages import encode

LOOK_S = 1.0  # between two looks how far the history workers have come
GROUP = "nextwatch-history"


class Loaded(msgspec.Struct, frozen=True):
    """Numbers of what was told; `rows` of the log are in it. `taken`: the history workers have all of it."""

    rows: int
    users: int
    items: int
    lists: int
    taken: bool
    wall_s: float


def load_log(
    settings: Settings,
    log: StoredLog,
    *,
    items: Path | None = None,
    searches: Path | None = None,
    wait_s: float,
    step: Step = no_progress,
) -> Loaded:
    """Tell the system what a log says, and wait up to `wait_s` until it is taken in. Raises LogError, SendError."""
    began_s = time.monotonic()
    catalogue = read_items(items) if items is not None else None
    searched = read_searches(searches, settings.history.searches) if searches is not None else NO_SEARCHES
    compact = settings.history.compact
    with open_producer(settings.kafka) as producer:
        require_as_designed(settings.kafka, (topics.ITEMS, topics.LOADED_HISTORIES, topics.TRENDING))
        described = 0 if catalogue is None else _send_items(producer, settings.kafka, catalogue, step)
        histories = (
            Keyed(each.user_id, encode(each, compact=compact)) for each in histories_of(log, settings.history, searched)
        )
        name, total = settings.kafka.topic_prefix + topics.LOADED_HISTORIES, len(log.user_ids)
        users = send_all(producer, name, histories, lambda done: step("histories", done, total))
        step("histories", total, total)  # who has watched nothing has none
        counted = trending_of(log, settings, lambda done: step("trending", done, len(log)))
        lists = [Keyed(key, encode(each)) for key, each in counted]
        stale = [Keyed(key, None) for key in sorted(listed(settings.kafka) - {key for key, _ in lists})]
        send_all(producer, settings.kafka.topic_prefix + topics.TRENDING, lists + stale)
    taken = wait_until_taken(settings.kafka, wait_s, lambda done, of: step("taken in", done, of))
    return Loaded(len(log), users, described, len(lists), taken, time.monotonic() - began_s)


def listed(kafka: Kafka) -> set[str]:
    """The keys of the trending lists that another load has left."""
    keys: dict[bytes, bool] = {}
    for record in read_to_end(kafka, topics.TRENDING):
        keys[record.key or b""] = record.value is not None
    return {key.decode() for key, is_there in keys.items() if is_there and key.endswith(b"/" + PART.encode())}


def wait_until_taken(
    kafka: Kafka, wait_s: float, report: Callable[[int, int], None] = lambda done, total: None
) -> bool:
    """Return whether the history workers commit all that `loaded-histories` holds now within `wait_s`."""
    with TopicFollower(kafka, topics.LOADED_HISTORIES, partitions=()) as follower:
        ends = {number: end for (_, number), end in follower.ends().items()}
    deadline_s = time.monotonic() + wait_s
    while True:
        committed = _committed(kafka, ends)
        report(sum(committed.values()), sum(ends.values()))
        if all(committed[number] >= end for number, end in ends.items()):
            return True
        if time.monotonic() > deadline_s:
            return False
        time.sleep(LOOK_S)


def _committed(kafka: Kafka, partitions: Iterable[int]) -> dict[int, int]:
    """The next offset of `loaded-histories` that the history workers will read, by partition."""
    group, name = f"{kafka.topic_prefix}{GROUP}", topics.LOADED_HISTORIES
    try:
        return {number: topics.committed_offsets(kafka, group, [name], number)[name] for number in partitions}
    except CoordinatorNotAvailableError:  # no group was ever on these brokers, or it is being moved
        return dict.fromkeys(partitions, 0)


def _send_items(producer: KafkaProducer, kafka: Kafka, catalogue: pl.DataFrame, step: Step) -> int:
    messages: Any = (Keyed(key, encode(item)) for key, item in item_messages(catalogue))
    return send_all(
        producer,
        kafka.topic_prefix + topics.ITEMS,
        messages,
        lambda done: step("items", done, catalogue.height),
    )
