"""Reads from `impressions` what another worker answered a moment ago, when its partitions become ours.

A client whose request was answered by a worker that then went away may send it again: it gets the list that it was, or
would have been, given. An impression holds all of it but timings, and is sent before its reply. Requests that leave no
impression (`record: false`) are answered anew.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

import structlog
from kafka.errors import KafkaError
from msgspec.structs import replace

from infra.platform.settings import Kafka
from serving.worker.reply_cache import Key
from streams import topics
from streams.kafka.follow import TopicFollower
from streams.messages import Impression, Recommended, RecommendReply, Refused, decode, encode

log = structlog.get_logger(__name__)

POLL_S = 0.1
MOST_S = 3.0  # a partition without a leader is not waited for: its requests are answered anew


class Recent(NamedTuple):
    """A reply of another worker, made at `at_ms`."""

    key: Key
    reply: bytes
    at_ms: int


class ReplyCacheWarmup:
    """Reads in a thread of its own, one assignment after the other; the answering thread takes."""

    def __init__(self, kafka: Kafka, window_s: float) -> None:
        self.read: frozenset[int] = frozenset()  # partitions of which all was read
        self._kafka, self._window_ms = kafka, int(window_s * 1000)
        self._found: deque[Recent] = deque()
        self._newest = 0
        self._lock = threading.Lock()

    def begin(self, partitions: frozenset[int], now_ms: int) -> None:
        """Read what was answered on these partitions; on those that were read before it is known."""
        with self._lock:
            self._newest += 1
            self.read = self.read & partitions if self._window_ms else partitions
            missing = partitions - self.read
        if missing:
            arguments = (missing, self._newest, now_ms - self._window_ms)
            threading.Thread(target=self._run, args=arguments, name="reply-cache-warmup", daemon=True).start()

    def take(self) -> list[Recent]:
        """Return what was found since the last call."""
        found = []
        while self._found:
            found.append(self._found.popleft())
        return found

    def _run(self, partitions: frozenset[int], number: int, since_ms: int) -> None:
        try:
            self._found.extend(read_recent(self._kafka, partitions, since_ms))
        except (KafkaError, LookupError) as error:  # repeats are a kindness: without them requests are answered anew
            log.warning("replies of the worker before are not known", error=str(error))
        with self._lock:
            if number == self._newest:
                self.read |= partitions


def read_recent(kafka: Kafka, partitions: Iterable[int], since_ms: int) -> list[Recent]:
    """The replies that impressions since then tell of. Raises KafkaError and TopicMissing."""
    found = []
    with TopicFollower(kafka, topics.IMPRESSIONS, partitions=partitions) as follower:
        follower.go_to(since_ms)
        until_s = time.monotonic() + MOST_S
        while not follower.caught_up and time.monotonic() < until_s:
            for record in follower.poll(POLL_S):
                with suppress(Refused):
                    impression = decode(Impression, record.value, max_bytes=8 * kafka.max_message_bytes)
                    key = Key(impression.user_id, impression.request_id)
                    found.append(Recent(key, reply_of(impression), record.timestamp))
    return found


def reply_of(impression: Impression) -> bytes:
    """The reply whose list this was."""
    items = tuple(
        Recommended(
            shown.item_id,
            shown.position,
            shown.source,
            shown.score,
            shown.expected_watch_s,
            probability=shown.probability,
        )
        for shown in impression.items
    )
    reply = RecommendReply(
        impression.request_id, items, impression.version, impression.served_by, ranked_by=impression.ranked_by
    )
    if (assigned := impression.assigned) is not None:
        reply = replace(reply, experiment=assigned.experiment, variant=assigned.variant)
    return encode(reply)
