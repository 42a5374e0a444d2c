"""The places up to which topics are read, and up to which all that was read is in the index, kept in Kafka as the
offsets of the group `indexer`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import structlog
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from infra.platform.fault_points import reached
from infra.platform.kafka_clients import kafka_python_options
from infra.platform.settings import Kafka

log = structlog.get_logger(__name__)

GROUP = "indexer"
_COMMIT_S = 5.0

Place = tuple[str, int]  # topic without prefix, partition


class OffsetTracker:
    """Offsets are next ones: everything below is done. Raises kafka.errors.KafkaError when no broker answers."""

    def __init__(self, kafka: Kafka) -> None:
        self._prefix = kafka.topic_prefix
        self._written: dict[Place, int] = {}
        self._read: dict[Place, int] = {}
        self._consumer = KafkaConsumer(
            **kafka_python_options(kafka),
            client_id="nextwatch-indexer-offsets",
            group_id=kafka.topic_prefix + GROUP,
            enable_auto_commit=False,
            allow_auto_create_topics=False,
            reconnect_backoff_max_ms=2000,
        )

    def open(self, ends: Mapping[Place, int]) -> None:
        """Learn where the group has come to; the beginning in a topic that was made anew since."""
        for place, end in ends.items():
            written = max(0, self._consumer.committed(self._partition(place)) or 0)
            if written > end:
                log.warning("topic is shorter than what was read of it, reading all of it", topic=place[0])
                written = 0
            self._written[place] = written

    def is_written(self, place: Place, offset: int) -> bool:
        """Return whether a record's effects are in the index already."""
        return offset < self._written.get(place, 0)

    def note_read(self, place: Place, offset: int) -> None:
        """A record was read."""
        self._read[place] = max(self._read.get(place, 0), offset + 1)

    def commit(self, *, but: Collection[str] = ()) -> None:
        """Say that all that was read is written, except of the topics `but`. A broker that is away is forgiven: what is
        not committed is written again after a restart, with the same result."""
        changed = {
            place: offset
            for place, offset in self._read.items()
            if offset > self._written.get(place, 0) and place[0] not in but
        }
        if not changed:
            return
        reached("indexer: rows written")
        offsets: dict[Any, Any] = {
            self._partition(place): OffsetAndMetadata(offset, "", -1) for place, offset in changed.items()
        }
        try:
            self._consumer.commit(offsets, timeout_ms=int(_COMMIT_S * 1000))
        except KafkaError as error:
            log.warning("offsets not committed", error=str(error))
        reached("indexer: offsets committed")
        self._written |= changed

    def close(self) -> None:
        self._consumer.close(autocommit=False)

    def _partition(self, place: Place) -> TopicPartition:
        return TopicPartition(self._prefix + place[0], place[1])
