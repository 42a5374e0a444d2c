from __future__ import annotations

import pytest
from kafka import TopicPartition
from kafka.errors import KafkaTimeoutError
from kafka.future import Future

from infra.platform import metrics
from serving.worker.offset_tracker import CLIENT, CLIENT_S, OffsetTracker

P0, P1 = TopicPartition("recommend-requests", 0), TopicPartition("recommend-requests", 1)


def acknowledged() -> Future:
    return Future().success(None)


def lost() -> Future:
    return Future().failure(KafkaTimeoutError("gone"))


class Unanswered(Future):
    """Whoever waits for it does so in vain; what that takes is added to the clock."""

    def __init__(self, now_s: list[float]) -> None:
        super().__init__()
        self._now_s = now_s

    def get(self, timeout: float) -> None:
        self._now_s[0] += max(0.0, timeout - 0.001)  # as kafka-python's: it counts in whole milliseconds
        raise KafkaTimeoutError


def test_offsets_wait_for_everything_that_they_caused() -> None:
    ledger, reply, impression = OffsetTracker(), Future(), Future()
    ledger.add("recommend-replies", reply)
    ledger.add("impressions", impression)
    ledger.seal({P0: 5})
    assert ledger.acknowledged() == {}
    reply.success(None)
    assert ledger.acknowledged() == {}
    impression.success(None)
    assert ledger.acknowledged() == {P0: 5}
    assert ledger.acknowledged() == {}


def test_a_later_batch_never_overtakes_an_earlier_one() -> None:
    ledger, first = OffsetTracker(), Future()
    ledger.add("recommend-replies", first)
    ledger.seal({P0: 5})
    ledger.add("recommend-replies", acknowledged())
    ledger.seal({P0: 7, P1: 3})
    assert ledger.acknowledged() == {}
    first.success(None)
    assert ledger.acknowledged() == {P0: 7, P1: 3}


def test_offsets_of_lost_partitions_are_not_committed() -> None:
    ledger, first = OffsetTracker(), Future()
    ledger.add("recommend-replies", first)
    ledger.seal({P0: 5, P1: 3})
    ledger.forget([1])
    first.success(None)
    assert ledger.acknowledged() == {P1: 3}


def test_a_loss_on_our_own_topic_is_raised_and_its_offset_not_due() -> None:
    ledger = OffsetTracker()
    ledger.add("impressions", lost())
    ledger.seal({P0: 5})
    with pytest.raises(KafkaTimeoutError):
        ledger.acknowledged()
    assert ledger.acknowledged() == {}


def test_a_clients_topic_that_does_not_answer_holds_offsets_for_a_moment_only() -> None:
    now_s = [100.0]
    ledger, theirs, ours = OffsetTracker(lambda: now_s[0]), Future(), Future()
    ledger.add(CLIENT, theirs)
    ledger.add("impressions", ours)
    ledger.seal({P0: 5})
    now_s[0] += CLIENT_S
    assert ledger.acknowledged() == {}, "our own topic is waited for"
    ours.success(None)
    assert ledger.acknowledged() == {P0: 5}
    before = metrics.REQUESTS.labels("undeliverable")._value.get()
    theirs.failure(KafkaTimeoutError("after two minutes"))
    assert metrics.REQUESTS.labels("undeliverable")._value.get() == before + 1


def test_a_loss_on_a_clients_topic_is_borne() -> None:
    ledger = OffsetTracker()
    ledger.add(CLIENT, lost())
    ledger.seal({P0: 5})
    assert ledger.acknowledged() == {P0: 5}


def test_who_gives_partitions_up_waits_for_a_clients_topic_for_a_moment_only() -> None:
    """Else what was answered is answered again by the next owner."""
    now_s = [100.0]
    ledger = OffsetTracker(lambda: now_s[0])
    for offset in (5, 6):
        ledger.add(CLIENT, Unanswered(now_s))
        ledger.seal({P0: offset})
    ledger.wait(60.0)
    assert now_s == [pytest.approx(100.0 + CLIENT_S, abs=0.02)]
    assert ledger.acknowledged() == {P0: 6}


def test_who_gives_partitions_up_says_when_our_own_topics_do_not_answer() -> None:
    now_s = [100.0]
    ledger = OffsetTracker(lambda: now_s[0])
    ledger.add("impressions", Unanswered(now_s))
    ledger.seal({P0: 5})
    with pytest.raises(KafkaTimeoutError):
        ledger.wait(60.0)
    assert now_s == [pytest.approx(160.0, abs=0.01)] and ledger.acknowledged() == {}
