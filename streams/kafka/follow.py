"""Reading whole topics to their end and then following them, for views that are kept in memory (a compacted topic is a
table).

No consumer group: every process sees every record, from the first one, each time it starts. "Caught up" means that all
that lay in a partition when its reading began has been handed out, so that a view is never used half full. A consumer's
position, not the last record, decides that: compaction and transaction markers leave offsets without records.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.fetcher import ConsumerRecord

from infra.platform.kafka_clients import kafka_python_options
from infra.platform.settings import Kafka
from streams.kafka.unpacking import unpack_for

Progress = Callable[[int, int], None]  # records by now, and in all

_MAX_RECORDS = 5000
_LOOK_S = 0.5
KNOWN_S = 5.0  # so long a broker that has just started, or lags behind, may not have heard of a topic
# Between two looks for records. kafka-python's own waiting keeps a core busy when a broker answers empty fetches at
# once instead of holding them for fetch_max_wait_ms, as noida does.
PACE_S = 0.05


class TopicMissing(LookupError):
    """A topic does not exist; the text names it and the command that makes it."""


def require_topics(kafka: Kafka, topics: Iterable[str]) -> None:
    """Return when all these topics (names without prefix) are there. Raises TopicMissing, and kafka.errors.KafkaError
    when no broker answers: Faust would wait for ever, or end in a trace."""
    TopicFollower(kafka, *topics, partitions=()).close()


def read_to_end(
    kafka: Kafka, topic: str, *, partitions: Iterable[int] | None = None, progress: Progress = lambda done, total: None
) -> Iterator[ConsumerRecord]:
    """Yield all that lies in a topic now (name without prefix). Raises TopicMissing, and KafkaError when no broker
    answers."""
    with TopicFollower(kafka, topic, partitions=partitions) as follower:
        yield from follower.to_end(progress)


class TopicFollower:
    """Follows `topics` (names without prefix) on all their partitions, or on `partitions` of each. Raises TopicMissing,
    and kafka.errors.KafkaError when no broker answers. Once built it rides out a broker's absence: `poll` returns
    nothing until the broker is back. Not for use from two threads."""

    def __init__(
        self, kafka: Kafka, *topics: str, partitions: Iterable[int] | None = None, known_s: float = KNOWN_S
    ) -> None:
        """`known_s`: how long a topic is looked for."""
        self._prefix, self._known_s = kafka.topic_prefix, known_s
        names = tuple(kafka.topic_prefix + topic for topic in topics)
        consumer = KafkaConsumer(
            **kafka_python_options(kafka),
            client_id="nextwatch-" + "-".join(topics),
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            allow_auto_create_topics=False,
            max_poll_records=_MAX_RECORDS,
            max_partition_fetch_bytes=max(1 << 20, 4 * kafka.max_message_bytes),
            reconnect_backoff_max_ms=2000,
        )
        self._consumer = unpack_for(consumer, kafka)
        self._ends: dict[TopicPartition, int] = {}  # of partitions that are not caught up yet
        try:
            self._all = frozenset(p for name in names for p in self._partitions_of(name))
            self.assign(partitions)
        except BaseException:
            self._consumer.close()
            raise

    def assign(self, partitions: Iterable[int] | None = None) -> None:
        """Follow these partitions (None: all) from now on: new ones from their beginning, kept ones from where they
        are, others no longer."""
        wanted = self._all if partitions is None else {p for p in self._all if p.partition in set(partitions)}
        before = self._consumer.assignment()
        self._consumer.assign(sorted(wanted))
        self._ends = {p: end for p, end in self._ends.items() if p in wanted}
        self._rewind(wanted - before)

    def rewind(self) -> None:
        """Start again at the beginning of every partition that is followed."""
        self._rewind(self._consumer.assignment())

    def seek(self, partition: int, offset: int) -> None:
        """Go on at `offset` (or the first that is still there after it) of this partition of every followed topic."""
        for place in self._consumer.assignment():
            if place.partition == partition:
                self._consumer.seek(place, max(offset, self._consumer.beginning_offsets([place])[place]))
                if self._ends.get(place, 0) <= offset:
                    self._ends.pop(place, None)

    def go_to(self, at_ms: int) -> None:
        """Start again at the first record of each partition that was written at `at_ms` or later."""
        places = list(self._consumer.assignment())
        found = self._consumer.offsets_for_times(dict.fromkeys(places, at_ms))
        ends = self._consumer.end_offsets(places)
        for place in places:
            start = ends[place] if found.get(place) is None else found[place].offset
            self._consumer.seek(place, start)
            self._ends.pop(place, None)
            if start < ends[place]:
                self._ends[place] = ends[place]

    def holds_since(self, at_ms: int) -> bool:
        """True where no record of `at_ms` or later can have expired: each partition has its very first record still,
        or one from before."""
        places = list(self._consumer.assignment())
        firsts = {place: first for place, first in self._consumer.beginning_offsets(places).items() if first}
        ends = self._consumer.end_offsets(list(firsts))
        found = self._consumer.offsets_for_times(dict.fromkeys(firsts, at_ms)) if firsts else {}
        return all(first < (ends[p] if found.get(p) is None else found[p].offset) for p, first in firsts.items())

    def expect_present(self) -> None:
        """Let `caught_up` speak of all that lies in the partitions now, not only when reading began."""
        ends = self._consumer.end_offsets(list(self._consumer.assignment()))
        self._ends |= {place: end for place, end in ends.items() if self._position(place) < end}

    def poll(self, timeout_s: float) -> list[ConsumerRecord]:
        """Return the next records, in order within a partition; empty when there are none for `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not (batches := self._consumer.poll(timeout_ms=0)) and (left_s := deadline - time.monotonic()) > 0:
            time.sleep(min(PACE_S, left_s))
        if self._ends:
            self._ends = {p: end for p, end in self._ends.items() if self._position(p) < end}
        return [record for batch in batches.values() for record in batch]

    def to_end(self, progress: Progress = lambda done, total: None) -> Iterator[ConsumerRecord]:
        """Yield records until `caught_up`; `progress` is told after each fetch."""
        total, done = None, 0
        while not self.caught_up:
            total = sum(self.lags().values()) if total is None else total
            for record in self.poll(_LOOK_S):
                done += 1
                yield record
            progress(done, max(done, total))

    @property
    def caught_up(self) -> bool:
        """True when all that was there when reading began has been handed out."""
        return not self._ends

    def caught_up_on(self, partition: int) -> bool:
        """Return the same for one partition (of every topic); False when it is not followed."""
        followed = [p for p in self._consumer.assignment() if p.partition == partition]
        return bool(followed) and not any(p in self._ends for p in followed)

    def lags(self) -> dict[tuple[str, int], int]:
        """Return how many records are not handed out yet, by (topic without prefix, partition), as far as the last
        fetches told."""
        return {
            (partition.topic.removeprefix(self._prefix), partition.partition): max(
                0, self._known_end(partition) - max(0, self._position(partition))
            )
            for partition in self._consumer.assignment()
        }

    def known_ends(self) -> dict[tuple[str, int], int]:
        """Return the end offsets, by (topic without prefix, partition), as far as the last fetches told; asks nobody.
        They hold also while the client is finding its place again, when `lags` counts the whole partition."""
        return {
            (partition.topic.removeprefix(self._prefix), partition.partition): self._known_end(partition)
            for partition in self._consumer.assignment()
        }

    def ends(self) -> dict[tuple[str, int], int]:
        """Return the present end offsets of all partitions, by (topic without prefix, partition)."""
        ends = self._consumer.end_offsets(list(self._all))
        return {(place.topic.removeprefix(self._prefix), place.partition): end for place, end in ends.items()}

    def firsts_of(self, partition: int) -> dict[str, int]:
        """Return the first offset that is still there, of this partition of every topic that is followed."""
        places = [place for place in self._consumer.assignment() if place.partition == partition]
        return {
            place.topic.removeprefix(self._prefix): first
            for place, first in self._consumer.beginning_offsets(places).items()
        }

    def close(self) -> None:
        self._consumer.close()

    def __enter__(self) -> TopicFollower:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _partitions_of(self, name: str) -> list[TopicPartition]:
        deadline = time.monotonic() + self._known_s
        while not (numbers := self._consumer.partitions_for_topic(name)):
            if time.monotonic() > deadline:
                raise TopicMissing(f"topic {name} does not exist; `nextwatch topics --create` makes it")
            time.sleep(_LOOK_S)
        return [TopicPartition(name, number) for number in numbers]

    def _rewind(self, partitions: Iterable[TopicPartition]) -> None:
        """Explicit offsets rather than seek_to_beginning, which resolves later: the position is known at once."""
        partitions = list(partitions)
        if not partitions:
            return
        starts, ends = self._consumer.beginning_offsets(partitions), self._consumer.end_offsets(partitions)
        for partition in partitions:
            self._consumer.seek(partition, starts[partition])
            self._ends.pop(partition, None)
            if starts[partition] < ends[partition]:
                self._ends[partition] = ends[partition]

    def _known_end(self, partition: TopicPartition) -> int:
        return max(self._consumer.highwater(partition) or 0, self._ends.get(partition, 0))

    def _position(self, partition: TopicPartition) -> int:
        """Return the next offset to hand out; -1 while the client is finding it again (after a retention gap)."""
        position = self._consumer.position(partition, timeout_ms=0)
        return -1 if position is None else int(position)
