import pytest
from kafka import TopicPartition
from kafka.errors import KafkaTimeoutError
from kafka.future import Future

from infra.platform import metrics
from serving.worker.offset_tracker import CLIENT, CLIENT_S, OffsetTracker

P0, P1 = TopicPartition("recommend-requests", 0), TopicPartition("recommend-requests", 1)


class Unanswered(Future):
    """Whoever waits for it does so in vain; what that takes is added to the clock."""

    def __init__(self, now_s: list[float]) -> None:
        super().__init__()
        self._now_s = now_s

    def get(self, timeout: float) -> None:
        self._now_s[0] += max(0.0, timeout - 0.001)  # as kafka-python's: it counts in whole milliseconds
        raise KafkaTimeoutError


def test_offsets_wait_for_everything_that_they_caused() -> None:
    offsets, reply, impression = OffsetTracker(), Future(), Future()
    offsets.add("recommend-replies", reply)
    offsets.add("impressions", impression)
    offsets.seal({P0: 5})
    assert offsets.acknowledged() == {}
    reply.success(None)
    assert offsets.acknowledged() == {}
    impression.success(None)
    assert offsets.acknowledged() == {P0: 5}
    assert offsets.acknowledged() == {}


def test_a_later_batch_never_overtakes_an_earlier_one() -> None:
    offsets, first = OffsetTracker(), Future()
    offsets.add("recommend-replies", first)
    offsets.seal({P0: 5})
    offsets.add("recommend-replies", Future().success(None))
    offsets.seal({P0: 7, P1: 3})
    assert offsets.acknowledged() == {}
    first.success(None)
    assert offsets.acknowledged() == {P0: 7, P1: 3}


def test_offsets_of_lost_partitions_are_not_committed() -> None:
    offsets, first = OffsetTracker(), Future()
    offsets.add("recommend-replies", first)
    offsets.seal({P0: 5, P1: 3})
    offsets.keep([1])
    first.success(None)
    assert offsets.acknowledged() == {P1: 3}


def test_a_loss_on_our_own_topic_is_raised_and_its_offset_not_due_and_one_on_a_clients_topic_is_borne() -> None:
    ours, theirs = OffsetTracker(), OffsetTracker()
    for offsets, topic in ((ours, "impressions"), (theirs, CLIENT)):
        offsets.add(topic, Future().failure(KafkaTimeoutError("gone")))
        offsets.seal({P0: 5})
    with pytest.raises(KafkaTimeoutError):
        ours.acknowledged()
    assert ours.acknowledged() == {}
    assert theirs.acknowledged() == {P0: 5}


def test_a_clients_topic_that_does_not_answer_holds_offsets_for_a_moment_only() -> None:
    now_s = [100.0]
    offsets, theirs, ours = OffsetTracker(lambda: now_s[0]), Future(), Future()
    offsets.add(CLIENT, theirs)
    offsets.add("impressions", ours)
    offsets.seal({P0: 5})
    now_s[0] += CLIENT_S
    assert offsets.acknowledged() == {}, "our own topic is waited for"
    ours.success(None)
    assert offsets.acknowledged() == {P0: 5}
    before = metrics.REQUESTS.labels("undeliverable")._value.get()
    theirs.failure(KafkaTimeoutError("after two minutes"))
    assert metrics.REQUESTS.labels("undeliverable")._value.get() == before + 1


def test_who_gives_partitions_up_waits_for_a_clients_topic_for_a_moment_only() -> None:
    """Else what was answered is answered again by the next owner."""
    now_s = [100.0]
    offsets = OffsetTracker(lambda: now_s[0])
    for offset in (5, 6):
        offsets.add(CLIENT, Unanswered(now_s))
        offsets.seal({P0: offset})
    offsets.wait(60.0)
    assert now_s == [pytest.approx(100.0 + CLIENT_S, abs=0.02)]
    assert offsets.acknowledged() == {P0: 6}


def test_who_gives_partitions_up_says_when_our_own_topics_do_not_answer() -> None:
    now_s = [100.0]
    offsets = OffsetTracker(lambda: now_s[0])
    offsets.add("impressions", Unanswered(now_s))
    offsets.seal({P0: 5})
    with pytest.raises(KafkaTimeoutError):
        offsets.wait(60.0)
    assert now_s == [pytest.approx(160.0, abs=0.01)] and offsets.acknowledged() == {}
