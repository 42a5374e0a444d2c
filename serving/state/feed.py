"""Topics read in the background for the views: one thread reads, the answering thread applies.

The reader hands whole chunks over in order, each with what it had read to the end by then, so "caught up" can never
overtake the records that it speaks of. The answering thread applies them between batches; they share only a queue.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

from infra.platform.metrics import Lags
from infra.platform.settings import Kafka
from streams.kafka.follow import TopicFollower

POLL_S = 0.1  # while catching up
POLL_PAUSE_S = 0.04  # between two polls afterwards: what arrives in between costs one fetch, not one each
MOST_CHUNKS = 50  # waiting to be applied; the reader pauses beyond
LAG_EVERY_S = 2.0


class Chunk(NamedTuple):
    generation: int  # of the assignment that the reader followed
    records: list[Any]  # kafka-python ConsumerRecords
    caught_up: frozenset[int]  # of the partitions asked for, those that had been read to the end by then
    complete: bool  # all that is followed had been


class Feed:
    """Follows `topics` in a thread of its own, on all their partitions or on those that `follow` names.

    Raises TopicMissing. A reader that died is reported by `take`, in the answering thread.
    """

    def __init__(self, kafka: Kafka, *topics: str, partitions: Iterable[int] | None = None) -> None:
        self.generation = 0
        self._follower = TopicFollower(kafka, *topics, partitions=partitions)
        self._followed = None if partitions is None else frozenset(partitions)  # the reader's, None: all
        self._assignments: deque[tuple[int, frozenset[int]]] = deque()  # assignments that the reader has not looked at
        self._lag = Lags()
        self._chunks: deque[Chunk] = deque()
        self._closed = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="feed-" + topics[0], daemon=True)
        self._thread.start()

    def follow(self, partitions: Iterable[int]) -> int:
        """Follow these partitions from now on, new ones from their beginning; the generation of this assignment."""
        self.generation += 1
        self._assignments.append((self.generation, frozenset(partitions)))
        return self.generation

    def take(self, most: int) -> list[Chunk]:
        """The chunks that have been read since the last call, until they hold `most` records."""
        if self._error is not None:
            raise self._error
        chunks: list[Chunk] = []
        while self._chunks and most > 0:
            chunks.append(self._chunks.popleft())
            most -= len(chunks[-1].records)
        return chunks

    def close(self) -> None:
        self._closed.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        try:
            with self._follower:
                self._follow()
            self._lag.show({})
        except BaseException as error:  # outermost: the answering thread raises it
            self._error = error

    def _follow(self) -> None:
        generation, reported, lag_at = 0, None, 0.0
        while not self._closed.is_set():
            generation = self._take_over(generation)
            records = self._follower.poll(0.0 if self._follower.caught_up else POLL_S)
            caught_up = frozenset(filter(self._follower.caught_up_on, self._followed or ()))
            state = (generation, caught_up, self._follower.caught_up)
            if records or state != reported:
                self._chunks.append(Chunk(generation, records, caught_up, self._follower.caught_up))
                reported = state
            lag_at = self._report_lag(lag_at)
            if self._follower.caught_up:
                self._closed.wait(POLL_PAUSE_S)
            while len(self._chunks) > MOST_CHUNKS and not self._closed.is_set():
                time.sleep(POLL_PAUSE_S)

    def _take_over(self, generation: int) -> int:
        """Follow the newest assignment; its generation. A partition that was gone in between has lost its users in the
        view, so it is given up first, to be read from its beginning again."""
        assignments = [self._assignments.popleft() for _ in range(len(self._assignments))]
        if not assignments:
            return generation
        generation, self._followed = assignments[-1]
        self._follower.assign(frozenset.intersection(*(partitions for _, partitions in assignments)))
        self._follower.assign(self._followed)
        return generation

    def _report_lag(self, lag_at: float) -> float:
        now = time.monotonic()
        if now - lag_at < LAG_EVERY_S:
            return lag_at
        self._lag.show(self._follower.lags())
        return now
