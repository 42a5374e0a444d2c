"""The partitions of `recommend-requests` that this worker owns, and the histories of their users.

Histories are co-partitioned with requests. A partition that has been assigned is paused until the histories of the same
number have been read to the end, so that no request is answered from half a view, and until the replies that another
worker gave a moment ago are known; after a rebalance the partitions that are kept keep their users, and those that are
lost are dropped. Before partitions are given up the batch in flight is answered and committed (`settle`), so that no
other worker answers it again.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import structlog
from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.subscription_state import AsyncConsumerRebalanceListener

from infra.platform import metrics
from infra.platform.kafka_clients import kafka_python_options
from infra.platform.settings import Kafka
from serving.state.feed import Chunk, Feed
from serving.state.views import Views
from serving.worker import patches
from serving.worker.reply_cache_warmup import ReplyCacheWarmup
from streams import topics
from streams.kafka.unpacking import unpack_for

log = structlog.get_logger(__name__)

POLL_MS = 50
JOIN_MS = 1000  # what a join has come to after this is thrown away by the client, and it begins anew;
LONGEST_JOIN_MS = 8000  # so each next try is twice as long, or on a busy machine the join would never end
FETCH_MS = (
    100  # a broker holds an empty fetch so long; a partition that is resumed waits for the one that the broker holds
)
BUSY_FETCHES_S = 60.0  # empty fetches per second that no broker reaches which holds them
POLL_PAUSE_S = 0.01
SETTLE_S = 8.0  # after this, the batch in flight is left to the next owner


class Partitions(AsyncConsumerRebalanceListener):  # type: ignore[misc]
    """The owned partitions and the view of their histories.

    Listener methods run in the consumer's own thread while the answering thread waits in `poll`; so `settle` may use
    what is the answering thread's, in a third thread, while the consumer's goes on with its heartbeats.
    """

    def __init__(
        self,
        kafka: Kafka,
        group: str,
        feed: Feed,
        views: Views,
        warmup: ReplyCacheWarmup,
        settle: Callable[[], None],
    ) -> None:
        self.owned: frozenset[int] = frozenset()
        self.open: frozenset[int] = frozenset()  # of the owned ones: those that are answered
        self._topic = kafka.topic_prefix + topics.RECOMMEND_REQUESTS
        self._feed, self._views, self._warmup, self._settle = feed, views, warmup, settle
        self._held: frozenset[int] = frozenset()  # of the open ones: those that are not read for now
        self._read_to_end: frozenset[int] = frozenset()
        self._assigned: deque[frozenset[int]] = deque(maxlen=1)  # the newest assignment, until it is taken over
        self.has_joined = False
        self._is_joining = True
        self._join_ms = JOIN_MS
        self._is_throttled = False
        self.consumer = create_consumer(kafka, group)
        self.consumer.subscribe([self._topic], listener=self)
        # Right after a topic was made a group may assign it to nobody, or choose twice: know it before joining.
        numbers = self.consumer.partitions_for_topic(self._topic) or ()
        self.consumer.end_offsets([TopicPartition(self._topic, number) for number in numbers])

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Most come back with the next assignment."""
        self._is_joining = True
        settled = threading.Thread(target=self._settle, name="settle", daemon=True)
        settled.start()
        give_up_s = time.monotonic() + SETTLE_S
        while settled.is_alive() and time.monotonic() < give_up_s:
            await patches.pause(POLL_PAUSE_S)

    async def on_partitions_lost(self, lost: Iterable[TopicPartition]) -> None:
        """They are another's already: nothing can be committed any more."""
        self._is_joining = True

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self.consumer.pause(*assigned)
        self._assigned.append(frozenset(tp.partition for tp in assigned))
        self._is_joining = False

    def poll(self, most: int, *, wait: bool = True) -> list[Any]:
        """Up to `most` requests that have arrived; empty when there are none for a moment (at once without `wait`)."""
        is_throttled = (self._is_throttled or not wait) and not self._is_joining
        if self._is_joining:
            patches.join_group(self.consumer, self._join_ms)
        self._join_ms = min(2 * self._join_ms, LONGEST_JOIN_MS) if self._is_joining else JOIN_MS
        batches = self.consumer.poll(0 if is_throttled else POLL_MS, max_records=most)
        if self._is_throttled and wait and not batches:
            time.sleep(POLL_PAUSE_S)
        return [record for batch in batches.values() for record in batch]

    def throttle_polls(self) -> None:
        """Poll at our own pace where the broker answers empty fetches at once instead of holding them (noida does):
        a blocking poll would ask it without pause."""
        about = self.consumer.metrics()["consumer-fetch-manager-metrics"]
        self._is_throttled = about["fetch-rate"] > BUSY_FETCHES_S + 4 * about["records-consumed-rate"]

    def take_over(self, now_ms: int) -> bool:
        """Take over a new assignment; False if there is none."""
        if not self._assigned:
            return False
        assigned = self._assigned.popleft()
        log.info("partitions assigned", partitions=sorted(assigned), before=sorted(self.owned))
        self.owned, self.open, self.has_joined = assigned, frozenset(), True
        self._held = frozenset()
        self._read_to_end = frozenset()
        self._views.histories.keep(assigned)
        self._feed.follow(assigned)
        self._warmup.begin(assigned, now_ms)
        return True

    def apply(self, chunk: Chunk) -> None:
        """Apply what the feed has read of `user-histories`."""
        metrics.RECEIVED.labels(topics.USER_HISTORIES).inc(len(chunk.records))
        for record in chunk.records:
            if record.partition in self.owned:
                self._views.histories.apply(record.partition, record.key, record.value)
                self._views.read_offsets.read(topics.USER_HISTORIES, record.partition, record.offset)
        if chunk.generation == self._feed.generation:
            self._read_to_end = chunk.caught_up

    def resume(self) -> None:
        """Answer the partitions whose histories are there."""
        whole = (self.owned & self._read_to_end & self._warmup.read) - self.open
        # A rebalance may take one away in this very moment; the next assignment says what holds.
        with contextlib.suppress(KeyError):
            if whole:
                self.consumer.resume(*self._places(whole))
        self.open |= whole

    def hold(self, stuck: frozenset[int]) -> None:
        """Read no requests of these partitions, of those that are answered, until they are stuck no more: what their
        requests cause cannot be written, and waits in memory."""
        stuck &= self.open
        if stuck == self._held or self._assigned or self._is_joining:  # what is assigned now is paused, and stays so
            return
        log.warning("requests wait while what they cause cannot be written", partitions=sorted(stuck))
        # A rebalance may take one away in this very moment; the next assignment says what holds.
        with contextlib.suppress(KeyError, ValueError):
            self.consumer.pause(*self._places(stuck - self._held))
            self.consumer.resume(*self._places((self._held - stuck) & self.open))
        self._held = stuck

    def _places(self, numbers: Iterable[int]) -> list[TopicPartition]:
        return [TopicPartition(self._topic, number) for number in numbers]

    @property
    def are_open(self) -> bool:
        """True once the group has been joined and all owned partitions are answered."""
        return self.has_joined and not self._assigned and self.open == self.owned

    def lags(self) -> dict[int, int]:
        """Requests not yet read, by partition that is answered, as far as the last fetches told."""
        lags = {}
        for tp in self.consumer.assignment():
            if tp.partition in self.open:
                position = self.consumer.position(tp, timeout_ms=0) or 0
                lags[tp.partition] = max(0, (self.consumer.highwater(tp) or position) - position)
        return lags


def create_consumer(kafka: Kafka, group: str) -> Any:
    consumer = KafkaConsumer(
        **kafka_python_options(kafka),
        client_id="nextwatch-serving",
        group_id=kafka.topic_prefix + group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        allow_auto_create_topics=False,
        fetch_max_wait_ms=FETCH_MS,
        max_partition_fetch_bytes=max(1 << 20, 4 * kafka.max_message_bytes),
        session_timeout_ms=int(kafka.session_timeout_s * 1000),
        heartbeat_interval_ms=int(kafka.session_timeout_s * 1000 / 4),
        reconnect_backoff_max_ms=2000,
        metrics_sample_window_ms=2000,  # of the fetch rate that `throttle_polls` reads
    )
    return unpack_for(consumer, kafka)
