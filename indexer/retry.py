"""Milvus is away: wait for it in place, in sight, and stay a member of the group meanwhile.

Nothing is skipped and nothing overtakes: the one loop that writes stands still, so what was read is written in order
when Milvus is back, and what was not read stays in Kafka. Every failed call is counted, and `/health` says what it is
waiting for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import structlog
from kafka.errors import KafkaError, MessageSizeTooLargeError

from indexer.errors import IndexUnavailable
from infra.platform import metrics
from infra.platform.health import Health
from infra.platform.retrying import FIRST_WAIT_S, LONGEST_WAIT_S, BackOff

log = structlog.get_logger(__name__)

T = TypeVar("T")


class Stopped(Exception):
    """We were asked to stop while waiting."""


@contextmanager
def _counted(dependency: str) -> Iterator[None]:
    """One try and the wait after it, so that a long absence is seen while it lasts."""
    began_s = time.monotonic()
    try:
        yield
    finally:
        metrics.INDEX_WAITED.labels(dependency).inc(time.monotonic() - began_s)


def _is_absence(error: Exception) -> bool:
    is_kafka = isinstance(error, KafkaError) and not isinstance(error, MessageSizeTooLargeError)
    return is_kafka or isinstance(error, IndexUnavailable)


class Retry:
    """`retry(call)` is the answer of `call`, however long Milvus (or Kafka) takes to give one. What that takes is
    counted: in this time nothing is read.

    `meanwhile` runs before each try. Raises what it raises, Stopped when `stop` is set after a failed try, and whatever
    of `call` is not an absence of the other side: that is an answer too, and we are as ready as before. A message that
    is too large for the broker does not become smaller by waiting.
    """

    def __init__(self, stop: threading.Event, health: Health, meanwhile: Callable[[], None]) -> None:
        self._stop = stop
        self._health = health
        self.meanwhile = meanwhile

    def __call__(self, call: Callable[[], T], *, of: str = "milvus") -> T:
        waits = BackOff(FIRST_WAIT_S, LONGEST_WAIT_S)
        was_ready, was_waiting_for = self._health.ready, self._health.waiting_for
        while True:
            self.meanwhile()
            wait_s = waits.next()
            with _counted(of):
                try:
                    answer = call()
                except Exception as error:
                    if not _is_absence(error):
                        self._health.ready, self._health.waiting_for = was_ready, was_waiting_for
                        raise
                    self._report(error, wait_s)
                else:
                    self._health.ready, self._health.waiting_for = was_ready, was_waiting_for
                    return answer
                if self._stop.wait(wait_s):
                    raise Stopped

    def check(self) -> None:
        """For a loop that waits by itself: raises Stopped, and what `meanwhile` raises."""
        if self._stop.is_set():
            raise Stopped
        self.meanwhile()

    def _report(self, error: Exception, wait_s: float) -> None:
        which = "Milvus" if isinstance(error, IndexUnavailable) else "Kafka"
        metrics.INDEX_RETRIES.labels(which.lower()).inc()
        log.warning("unavailable, trying again", dependency=which, error=str(error), wait_s=wait_s)
        self._health.ready, self._health.waiting_for = False, f"{which}: {error}"
