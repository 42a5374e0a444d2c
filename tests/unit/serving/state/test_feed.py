"""What the reader follows and tells, with a follower whose topic is in memory."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from infra.platform import metrics
from infra.platform.settings import Kafka
from serving.state import feed as feed_module
from serving.state.feed import Chunk, Feed
from tests.unit.serving.worlds import until

TOPIC = "followed-by-a-feed"


class Follower:
    """One record in each partition. `go` holds the reader in its poll, `is_held` says that it is there."""

    def __init__(self, kafka: Kafka, *names: str, partitions: Iterable[int] | None = None) -> None:
        self.go, self.is_held = threading.Event(), threading.Event()
        self.go.set()
        self.unread: set[int] = set()
        self.followed: set[int] = set()
        self.told = {(TOPIC, number): 5 for number in range(2)}

    def assign(self, partitions: Iterable[int]) -> None:
        wanted = set(partitions)
        self.unread = (self.unread & wanted) | (wanted - self.followed)
        self.followed = wanted

    def poll(self, timeout_s: float) -> list[Any]:
        if not self.go.is_set():
            self.is_held.set()
            self.go.wait(10)
        records = [SimpleNamespace(partition=number) for number in sorted(self.unread)]
        self.unread.clear()
        return records

    @property
    def caught_up(self) -> bool:
        return not self.unread

    def caught_up_on(self, partition: int) -> bool:
        return partition in self.followed and partition not in self.unread

    def lags(self) -> dict[tuple[str, int], int]:
        return dict(self.told)

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *_: Any) -> None:
        self.go.set()


@pytest.fixture
def feed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Feed]:
    monkeypatch.setattr(feed_module, "TopicFollower", Follower)
    monkeypatch.setattr(feed_module, "LAG_EVERY_S", 0.0)
    with contextlib.closing(Feed(Kafka(), TOPIC, partitions=())) as feed:
        yield feed


def read(feed: Feed, *partitions: int) -> list[int]:
    """The partitions of the records that are read until these have been read to the end."""
    chunks: list[Chunk] = []

    def is_read() -> bool:
        chunks.extend(feed.take(100))
        return bool(chunks) and (chunks[-1].generation, chunks[-1].caught_up) == (feed.generation, set(partitions))

    until(is_read)
    return [record.partition for chunk in chunks for record in chunk.records]


def test_a_partition_that_was_gone_before_the_reader_looked_is_read_from_its_beginning(feed: Feed) -> None:
    """The answering thread has dropped its users meanwhile."""
    follower: Any = feed._follower
    feed.follow([0, 1])
    assert read(feed, 0, 1) == [0, 1]
    follower.go.clear()
    assert follower.is_held.wait(10)
    for partitions in ([0], [0, 2], [0, 1]):
        feed.follow(partitions)
    follower.go.set()
    assert read(feed, 0, 1) == [1]


def lags_shown() -> dict[str, float]:
    [family] = metrics.LAG.collect()
    return {each.labels["partition"]: each.value for each in family.samples if each.labels["topic"] == TOPIC}


def test_the_lag_of_a_partition_that_is_followed_no_more_is_not_told(feed: Feed) -> None:
    follower: Any = feed._follower
    until(lambda: lags_shown() == {"0": 5.0, "1": 5.0})
    follower.told = {(TOPIC, 0): 3}
    until(lambda: lags_shown() == {"0": 3.0})
    feed.close()
    assert lags_shown() == {}
