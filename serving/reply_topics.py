"""Which topics there are to reply to, asked of the brokers rarely.

A client names its reply topic. Sending to one that does not exist would stall the producer for a minute, so existence
is known before; and asking is bounded, so that nobody can make the worker do nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from kafka.errors import KafkaError

KNOWN_S = 60.0
ASK_EVERY_S = 0.5  # a topic made just now may be refused for so long


class ReplyTopics:
    """Call it with a topic's full name: its number of partitions, 0 when it does not exist."""

    def __init__(self, consumer: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._consumer, self._clock = consumer, clock
        self._known: dict[str, tuple[float, int]] = {}  # when asked, partitions
        self._asked_at = -KNOWN_S

    def __call__(self, topic: str) -> int:
        now = self._clock()
        asked_at, partitions = self._known.get(topic, (-KNOWN_S, 0))
        if now - asked_at < KNOWN_S:
            return partitions
        if now - self._asked_at < ASK_EVERY_S:
            return partitions
        self._asked_at = now
        try:
            partitions = len(self._consumer.partitions_for_topic(topic) or ())
        except KafkaError:  # brokers that do not answer now: what was known still holds
            return partitions
        if partitions:
            self._known[topic] = now, partitions
        return partitions
