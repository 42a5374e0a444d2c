"""One indexer writes, others wait: who owns the one partition of `releases` in the group `indexer` holds the lease.

Two writers on one collection lose acknowledged rows on Milvus Lite, and on any Milvus an old one can overwrite a new
one's rows. The group's coordinator already decides who owns a partition, and takes it from a dead owner after
`kafka.session_timeout_s`. Offsets of what the owner has written are committed under its membership, so the commit of
one that was paused and replaced meanwhile is refused; and the group's lag shows in every Kafka tool.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import structlog
from kafka import ConsumerRebalanceListener, KafkaConsumer, TopicPartition
from kafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from kafka.errors import CommitFailedError, KafkaError
from kafka.structs import OffsetAndMetadata

from infra.kafka_clients import kafka_python_options
from infra.settings import Kafka
from streams import topics

log = structlog.get_logger(__name__)

GROUP = "indexer"
_COMMIT_S = 5.0
_REBALANCE_S = 10.0  # the group chooses anew when a member comes or goes
_CLOSE_S = 2.0


class LeaseLost(RuntimeError):
    """Another indexer has taken over; nothing may be written any more."""


class _Token(ConsumerRebalanceListener):
    """Whether we hold it. The consumer's own assignment still shows it while the group is choosing anew."""

    held = False

    def on_partitions_revoked(self, revoked: Any) -> None:
        self.held = False

    def on_partitions_assigned(self, assigned: Any) -> None:
        self.held = bool(assigned)


class Lease:
    """A member of the group; `acquire` and `check` must be called again and again, or the lease is lost."""

    def __init__(self, kafka: Kafka) -> None:
        self._prefix = kafka.topic_prefix
        session_ms = max(1000, int(kafka.session_timeout_s * 1000))
        self._token = _Token()
        self._consumer = KafkaConsumer(
            **kafka_python_options(kafka),
            client_id="nextwatch-indexer-lease",
            group_id=self._prefix + GROUP,
            enable_auto_commit=False,
            allow_auto_create_topics=False,
            session_timeout_ms=session_ms,
            heartbeat_interval_ms=session_ms // 3,
            max_poll_interval_ms=max(300_000, session_ms),
            partition_assignment_strategy=[StickyPartitionAssignor],  # a newcomer does not take it from its holder
            reconnect_backoff_max_ms=2000,
        )
        self._consumer.subscribe([self._prefix + topics.RELEASES], listener=self._token)

    def acquire(self, wait_s: float) -> bool:
        """Whether the lease is ours, waiting up to `wait_s` for it."""
        give_up_s = time.monotonic() + wait_s
        while True:  # in short turns: a poll would wait for records that never come
            self._consumer.poll(timeout_ms=min(50, int(wait_s * 1000)))
            self._consumer.pause(*self._consumer.assignment())  # a token: what is in it is read elsewhere
            if self._token.held or time.monotonic() >= give_up_s:
                return self._token.held

    def check(self) -> None:
        """Take part in the group. Raises LeaseLost when it has given the lease to another."""
        if not self.acquire(0.0) and not self.acquire(_REBALANCE_S):
            raise LeaseLost("another indexer has taken over the writing")

    def committed(self, partitions: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int]:
        """The next offset to write from, by (topic without prefix, partition); 0 where nothing was committed."""
        return {(topic, number): self._committed(topic, number) for topic, number in partitions}

    def commit(self, offsets: Mapping[tuple[str, int], int]) -> None:
        """Say that everything below these offsets is written. A broker that is away is forgiven: what is not committed
        is written again after a restart, with the same result. Raises LeaseLost."""
        places: dict[Any, Any] = {
            TopicPartition(self._prefix + topic, number): OffsetAndMetadata(offset, "", -1)
            for (topic, number), offset in offsets.items()
        }
        try:
            self._consumer.commit(places, timeout_ms=int(_COMMIT_S * 1000))
        except CommitFailedError as error:
            raise LeaseLost("another indexer has taken over the writing") from error
        except KafkaError as error:
            log.warning("offsets not committed", error=str(error))

    def close(self) -> None:
        self._consumer.close(autocommit=False, timeout_ms=int(_CLOSE_S * 1000))

    def _committed(self, topic: str, number: int) -> int:
        offset = self._consumer.committed(TopicPartition(self._prefix + topic, number))
        return 0 if offset is None else max(0, int(offset))
