"""The topics that there are to reply to, asked of the brokers rarely.

A client names its reply topic. Sending to one that does not exist would stall the producer, so existence is known
before; and asking is bounded, so that nobody can make the worker do nothing else: one look at all names at a time, and
of a topic that is there its partitions. Brokers that do not answer are waited for: nothing is refused for their sake.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import structlog
from kafka.errors import KafkaError

log = structlog.get_logger(__name__)

KNOWN_S = 60.0
ASK_EVERY_S = 0.5  # a topic made just now may be refused for so long
GIVE_UP_S = 60.0
AGAIN_S = 0.5


class ReplyTopics:
    """Call it with a topic's full name: its number of partitions, 0 when it does not exist. Raises KafkaError when no
    broker has answered for a minute."""

    def __init__(
        self, consumer: Any, clock: Callable[[], float] = time.monotonic, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self._consumer, self._clock, self._pause = consumer, clock, pause
        self._known: dict[str, tuple[float, int]] = {}  # when asked, partitions
        self._all_names: set[str] = set()  # all names, as of the last look
        self._looked_at = -KNOWN_S

    def __call__(self, topic: str) -> int:
        now = self._clock()
        known_at, partitions = self._known.get(topic, (-KNOWN_S, 0))
        if now - known_at < KNOWN_S:
            return partitions
        if topic not in self._all_names:
            if now - self._looked_at < ASK_EVERY_S:
                return partitions
            self._looked_at = now
            self._all_names = set(self._retry(self._consumer.topics))
        partitions = self._count(topic) if topic in self._all_names else 0
        if partitions:
            self._known[topic] = now, partitions
        else:
            self._known.pop(topic, None)
            self._all_names.discard(topic)
        return partitions

    def forget(self, topic: str) -> None:
        """Look again before anything is sent to a topic that was found to be there no more."""
        self._known.pop(topic, None)
        self._all_names.discard(topic)

    def _count(self, topic: str) -> int:
        return len(self._retry(lambda: self._consumer.partitions_for_topic(topic)) or ())

    def _retry(self, ask: Callable[[], Any]) -> Any:
        give_up = self._clock() + GIVE_UP_S
        while True:
            try:
                return ask()
            except KafkaError as error:
                if self._clock() > give_up:
                    raise
                log.warning("broker unavailable, trying again", error=str(error), wait_s=AGAIN_S)
                self._pause(AGAIN_S)
