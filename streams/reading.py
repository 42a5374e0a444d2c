"""How far a Faust app that reads `impressions` has come with reading and committing them, partition by partition."""

from __future__ import annotations

import faust
from faust.types import TP

from streams import topics


class Reading:
    """How far Faust has come with reading and committing."""

    def __init__(self, app: faust.App, topic_prefix: str) -> None:
        self._app = app
        self._prefix = topic_prefix

    def assigned(self) -> set[int]:
        """The partitions that are ours and whose states are recovered."""
        app = self._app
        if app.should_stop or not app.rebalancing_count or app.rebalancing or not app.tables.actives_ready:
            return set()
        return {tp.partition for tp in app.consumer.assignment() if tp.topic == self._prefix + topics.IMPRESSIONS}

    def end(self, topic: str, partition: int) -> int | None:
        """The offset after the newest record, None while it is not known."""
        try:
            end: int | None = self._app.consumer.highwater(TP(self._prefix + topic, partition))
        except AssertionError:  # aiokafka: it is not assigned to us any more
            return None
        return end

    def committed(self, topic: str, partition: int) -> int:
        """The offset that would be read first after a crash."""
        return self._app.consumer._committed_offset[TP(self._prefix + topic, partition)] or 0
