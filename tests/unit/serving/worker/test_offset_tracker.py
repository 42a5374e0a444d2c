"""Which offsets are due for commit, and what is sent again."""

import pytest
from kafka import TopicPartition
from kafka.errors import KafkaTimeoutError, MessageSizeTooLargeError
from kafka.future import Future

from infra.platform import metrics
from serving.worker.offset_tracker import (
    ACKNOWLEDGE_S,
    AGAIN_S,
    CLIENT,
    CLIENT_S,
    MOST_WAITING_BYTES,
    STUCK_S,
    OffsetTracker,
    Sent,
)

P0, P1 = TopicPartition("recommend-requests", 0), TopicPartition("recommend-requests", 1)
GONE = KafkaTimeoutError("after two minutes")


class Unanswered(Future):
    """Whoever waits for it does so in vain; what that takes is added to the clock."""

    def __init__(self, now_s: list[float]) -> None:
        super().__init__()
        self._now_s = now_s

    def get(self, timeout: float) -> None:
        self._now_s[0] += max(0.0, timeout - 0.001)  # as kafka-python's: it counts in whole milliseconds
        raise KafkaTimeoutError


class Impression:
    """A message of ours, and a future for each time that it is sent."""

    def __init__(self, size: int = 1) -> None:
        self.tries: list[Future] = []
        self.sent = Sent("impressions", self.send(), size, lambda error: self.send())

    def send(self) -> Future:
        self.tries.append(Future())
        return self.tries[-1]


def reply(future: Future) -> Sent:
    return Sent("recommend-replies", future)


def test_offsets_wait_for_everything_that_they_caused() -> None:
    offsets, first, impression = OffsetTracker(), Future(), Impression()
    offsets.add(reply(first), 0)
    offsets.add(impression.sent, 0)
    offsets.seal({P0: 5})
    assert offsets.acknowledged() == {}
    first.success(None)
    assert offsets.acknowledged() == {}
    impression.tries[0].success(None)
    assert offsets.acknowledged() == {P0: 5}
    assert offsets.acknowledged() == {} and offsets.waiting_bytes == 0


def test_a_later_batch_never_overtakes_an_earlier_one_of_its_partition_and_others_go_on() -> None:
    offsets, first = OffsetTracker(), Future()
    offsets.add(reply(first), 0)
    offsets.seal({P0: 5})
    offsets.add(reply(Future().success(None)), 0)
    offsets.add(reply(Future().success(None)), 1)
    offsets.seal({P0: 7, P1: 3})
    assert offsets.acknowledged() == {P1: 3}
    first.success(None)
    assert offsets.acknowledged() == {P0: 7}


def test_offsets_of_lost_partitions_are_not_committed_and_what_they_caused_is_written() -> None:
    offsets, impression = OffsetTracker(), Impression()
    offsets.add(impression.sent, 0)
    offsets.seal({P0: 5, P1: 3})
    offsets.keep([1])
    assert offsets.acknowledged() == {P1: 3} and len(offsets) == 1
    impression.tries[0].success(None)
    assert offsets.acknowledged() == {}


def test_what_the_brokers_give_back_is_sent_again_until_they_take_it() -> None:
    now_s = [100.0]
    offsets, impression = OffsetTracker(lambda: now_s[0]), Impression()
    offsets.add(impression.sent, 0)
    offsets.seal({P0: 5})
    for tries in (1, 2, 3):
        impression.tries[-1].failure(GONE)
        assert offsets.acknowledged() == {} and offsets.acknowledged() == {}
        now_s[0] += AGAIN_S
        assert offsets.acknowledged() == {}
        assert len(impression.tries) == tries + 1, "at once it would only be given back again"
    impression.tries[-1].success(None)
    assert offsets.acknowledged() == {P0: 5}


def test_what_no_broker_will_ever_take_is_an_error() -> None:
    offsets, impression = OffsetTracker(), Impression()
    offsets.add(impression.sent, 0)
    offsets.seal({P0: 5})
    impression.tries[0].failure(MessageSizeTooLargeError("of 9 MB"))
    with pytest.raises(MessageSizeTooLargeError):
        offsets.acknowledged()


def test_when_too_much_waits_the_partitions_that_have_waited_long_are_held_until_half_is_written() -> None:
    now_s = [100.0]
    offsets = OffsetTracker(lambda: now_s[0])
    halves = [Impression(MOST_WAITING_BYTES // 2), Impression(MOST_WAITING_BYTES // 2), Impression()]
    for half in halves[:2]:
        offsets.add(half.sent, 0)
        offsets.seal({P0: 1})
    now_s[0] += STUCK_S
    assert offsets.stuck() == set(), "there is room"
    offsets.add(halves[2].sent, 1)
    offsets.seal({P1: 1})
    assert offsets.stuck() == {0}, "the other one has only just been written"
    halves[0].tries[0].success(None)
    offsets.acknowledged()
    assert offsets.stuck() == {0}, "more than half of it waits"
    halves[1].tries[0].success(None)
    offsets.acknowledged()
    assert offsets.stuck() == set()


def test_a_loss_on_a_clients_topic_is_borne() -> None:
    offsets = OffsetTracker()
    offsets.add(Sent(CLIENT, Future().failure(KafkaTimeoutError("gone"))), 0)
    offsets.seal({P0: 5})
    assert offsets.acknowledged() == {P0: 5}


def test_a_clients_topic_that_does_not_answer_holds_offsets_for_a_moment_only() -> None:
    now_s = [100.0]
    offsets, theirs, ours = OffsetTracker(lambda: now_s[0]), Future(), Future()
    offsets.add(Sent(CLIENT, theirs), 0)
    offsets.add(reply(ours), 0)
    offsets.seal({P0: 5})
    now_s[0] += CLIENT_S
    assert offsets.acknowledged() == {}, "our own topic is waited for"
    ours.success(None)
    assert offsets.acknowledged() == {P0: 5}
    before = metrics.REQUESTS.labels("undeliverable")._value.get()
    theirs.failure(GONE)
    assert metrics.REQUESTS.labels("undeliverable")._value.get() == before + 1


def test_who_gives_partitions_up_waits_for_a_clients_topic_for_a_moment_only() -> None:
    """Else what was answered is answered again by the next owner."""
    now_s = [100.0]
    offsets = OffsetTracker(lambda: now_s[0])
    for offset in (5, 6):
        offsets.add(Sent(CLIENT, Unanswered(now_s)), 0)
        offsets.seal({P0: offset})
    offsets.wait(60.0)
    assert now_s == [pytest.approx(100.0 + CLIENT_S, abs=0.02)]
    assert offsets.acknowledged() == {P0: 6}


def test_who_gives_partitions_up_says_when_our_own_topics_do_not_answer() -> None:
    now_s = [100.0]
    offsets = OffsetTracker(lambda: now_s[0])
    offsets.add(Sent("impressions", Unanswered(now_s), 1, Future), 0)
    offsets.seal({P0: 5})
    with pytest.raises(KafkaTimeoutError):
        offsets.wait(60.0)
    assert now_s == [pytest.approx(160.0, abs=0.01)] and offsets.acknowledged() == {}


def test_replies_wait_for_impressions_for_a_moment_and_not_where_they_cannot_be_written() -> None:
    now_s = [100.0]
    offsets = OffsetTracker(lambda: now_s[0])
    offsets.add(Sent("impressions", Unanswered(now_s), 1, Future), 0)
    offsets.wait_for_open()
    assert now_s == [pytest.approx(100.0 + ACKNOWLEDGE_S, abs=0.01)]
    offsets.seal({P0: 5})
    now_s[0] = 101.0
    offsets.add(Sent("impressions", Unanswered(now_s), 1, Future), 0)
    offsets.wait_for_open()
    assert now_s == [101.0]
    offsets.add(Sent("impressions", Unanswered(now_s), 1, Future), 1)
    offsets.wait_for_open()
    assert now_s == [pytest.approx(101.0 + ACKNOWLEDGE_S, abs=0.01)], "another partition is up to date"


def test_no_batch_waits_for_a_clients_own_topic() -> None:
    """A repeat in the next batch is answered before this one's replies are sent."""
    now_s = [100.0]
    offsets = OffsetTracker(lambda: now_s[0])
    offsets.add(Sent(CLIENT, Unanswered(now_s)), 0)
    offsets.wait_for_open()
    assert now_s == [100.0]


def test_a_client_that_does_not_read_keeps_no_reply_from_waiting_for_its_impression() -> None:
    now_s = [100.0]
    offsets = OffsetTracker(lambda: now_s[0])
    offsets.add(Sent(CLIENT, Future()), 0)
    offsets.seal({P0: 5})
    now_s[0] += 1.0
    offsets.add(Sent("impressions", Unanswered(now_s), 1, Future), 0)
    offsets.wait_for_open()
    assert now_s == [pytest.approx(101.0 + ACKNOWLEDGE_S, abs=0.01)]
