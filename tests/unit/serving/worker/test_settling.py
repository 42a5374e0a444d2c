"""What giving up partitions waits for, and for how long: whoever takes too long is put out of the group."""

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.errors import KafkaTimeoutError
from kafka.future import Future

from infra.platform.settings import Kafka, Serving
from serving.worker import partitions
from serving.worker.offset_tracker import ACKNOWLEDGE_S, OffsetTracker, Sent
from serving.worker.partitions import SETTLE_S, Partitions
from serving.worker.worker import Worker

PLACE = TopicPartition("recommend-requests", 0)


class Clock:
    """Time that passes only where somebody waits for brokers that do not answer."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.commits: list[int] = []

    def __call__(self) -> float:
        return self.now_s

    def commit(self, offsets: dict[TopicPartition, Any], timeout_ms: int) -> None:
        self.commits += [each.offset for each in offsets.values()]
        self.now_s += timeout_ms / 1000


class Unanswered(Future):
    """Whoever waits for it does so in vain."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def get(self, timeout: float) -> None:
        self._clock.now_s += timeout
        raise KafkaTimeoutError


def leaving(clock: Clock) -> Worker:
    """A worker with one batch that is acknowledged and one that is not."""
    offsets = OffsetTracker(clock)
    offsets.seal({PLACE: 5})
    offsets.add(Sent("impressions", Unanswered(clock), 1, lambda error: Unanswered(clock)), 1)
    offsets.seal({TopicPartition(PLACE.topic, 1): 3})
    worker = object.__new__(Worker)
    worker._is_closing, worker._in_flight, worker._due = False, None, {}
    worker._outbox, worker._queue = SimpleNamespace(offsets=offsets), SimpleNamespace(give_back=lambda: None)
    worker._consumer = SimpleNamespace(commit=clock.commit)
    return worker


def test_beside_brokers_that_do_not_answer_a_batch_is_settled_before_it_is_given_up_on() -> None:
    """The commit of what is acknowledged is still asked for, after the wait for what is not."""
    clock = Clock()
    leaving(clock)._settle()
    assert clock.commits == [5]
    others_s = ACKNOWLEDGE_S + Serving().search_s  # the batch in flight
    assert clock.now_s - 100.0 + others_s < SETTLE_S < Kafka().session_timeout_s


@pytest.mark.parametrize("is_settled", [True, False])
def test_a_rebalance_goes_on_when_all_is_settled_or_after_a_while(
    is_settled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "SETTLE_S", 0.3 if not is_settled else 60.0)
    end = threading.Event()
    owned = object.__new__(Partitions)
    owned._settle = (lambda: None) if is_settled else lambda: end.wait(60)
    start_s = time.monotonic()
    revoking = owned.on_partitions_revoked([PLACE])
    with pytest.raises(StopIteration):
        while True:
            revoking.send(None)  # as the consumer's loop does
            time.sleep(0.01)
    end.set()
    assert owned._is_joining
    assert (time.monotonic() - start_s >= 0.3) != is_settled
