"""Requests that have been read and are not yet answered, oldest first; and which of them are to be read again.

Before partitions are given up, what was only read is given back. Partitions that come back with the next assignment are
read again from there: the consumer's own position is behind the requests that were given back.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Set
from typing import Any

from kafka import TopicPartition
from kafka.errors import IllegalStateError


class RequestQueue:
    """Records of a `consumer`, each with the time when it was read."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._queue: deque[tuple[Any, float]] = deque()
        self._read: dict[TopicPartition, int] = {}  # the offset after the last request that was queued
        self._given_back: dict[TopicPartition, int] = {}  # the first request of each partition that was only read

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, records: Iterable[Any], read_s: float) -> None:
        for record in records:
            if record.offset >= self._read.get(place_of(record), 0):
                self._queue.append((record, read_s))
                self._read[place_of(record)] = record.offset + 1

    def end_of(self, place: TopicPartition) -> int | None:
        """The offset after the newest request of a partition, as far as the last fetch told; None where that is not
        known, or the partition another's in this very moment."""
        with contextlib.suppress(IllegalStateError):
            end: int | None = self._consumer.highwater(place)
            return end
        return None

    def waiting(self) -> int:
        """How many requests are queued, or lie in their partitions behind these."""
        return len(self._queue) + sum(max(0, (self.end_of(place) or 0) - read) for place, read in self._read.items())

    def take(self, most: int) -> list[tuple[Any, float]]:
        return [self._queue.popleft() for _ in range(min(len(self._queue), most))]

    def give_back(self) -> None:
        """Let go of everything; `keep` says what is read again."""
        self._given_back = first_of_each(record for record, _ in self._queue) | self._given_back
        self._queue.clear()
        self._read.clear()

    def keep(self, owned: Set[int]) -> None:
        """Keep what is on partitions that are `owned`, and read again what of them was given back."""
        self._given_back = {place: first for place, first in self._given_back.items() if place.partition in owned}
        self._queue = deque(
            (record, read_s)
            for record, read_s in self._queue
            if record.partition in owned and record.offset < self._given_back.get(place_of(record), record.offset + 1)
        )
        for place, first in list(self._given_back.items()):
            # A rebalance may have taken it away in this very moment; then the next assignment says what holds.
            with contextlib.suppress(KeyError, ValueError):
                self._consumer.seek(place, first)
                self._read[place] = first
                del self._given_back[place]


def place_of(record: Any) -> TopicPartition:
    return TopicPartition(record.topic, record.partition)


def first_of_each(records: Iterable[Any]) -> dict[TopicPartition, int]:
    """The offset of the first of these records on each partition; they are in order."""
    first: dict[TopicPartition, int] = {}
    for record in records:
        first.setdefault(place_of(record), record.offset)
    return first
