"""The progress of a Faust app with reading and committing, partition by partition of what it reads."""

from __future__ import annotations

import faust
from faust.types import TP

from streams import topics
from streams.kafka.faust.patches import committed_offset


class ConsumerProgress:
    """The progress with reading and committing; `topic` tells which partitions are ours."""

    def __init__(self, app: faust.App, topic_prefix: str, topic: str = topics.IMPRESSIONS) -> None:
        self._app = app
        self._prefix, self._topic = topic_prefix, topic

    def assigned(self) -> set[int]:
        """The partitions that are ours and whose states are recovered."""
        app = self._app
        if app.should_stop or not app.rebalancing_count or app.rebalancing or not app.tables.actives_ready:
            return set()
        return {tp.partition for tp in app.consumer.assignment() if tp.topic == self._prefix + self._topic}

    def end(self, topic: str, partition: int) -> int | None:
        """The offset after the newest record, None while it is not known."""
        try:
            end: int | None = self._app.consumer.highwater(TP(self._prefix + topic, partition))
        except AssertionError:  # aiokafka: it is not assigned to us any more
            return None
        return end

    def committed(self, topic: str, partition: int) -> int:
        """The offset that would be read first after a crash."""
        return committed_offset(self._app.consumer, TP(self._prefix + topic, partition)) or 0
