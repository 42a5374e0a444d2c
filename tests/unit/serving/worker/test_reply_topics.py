import pytest
from kafka.errors import KafkaTimeoutError

from serving.worker.reply_topics import ASK_EVERY_S, GIVE_UP_S, KNOWN_S, ReplyTopics


class Cluster:
    """Answers as a consumer does, and counts how often it is asked for all names."""

    def __init__(self, **topics: int) -> None:
        self.there, self.looks, self.asked = topics, 0, 0
        self.now, self.away_until = 0.0, 0.0

    def topics(self) -> set[str]:
        if self.now < self.away_until:
            raise KafkaTimeoutError
        self.looks += 1
        return set(self.there)

    def partitions_for_topic(self, topic: str) -> set[int]:
        self.asked += 1
        return set(range(self.there.get(topic, 0)))

    def clock(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds


def asked(**topics: int) -> tuple[Cluster, ReplyTopics]:
    cluster = Cluster(**topics)
    return cluster, ReplyTopics(cluster, cluster.clock, cluster.pause)


def test_a_known_topic_is_asked_for_once_a_while() -> None:
    cluster, partitions_of = asked(theirs=3)
    assert [partitions_of("theirs") for _ in range(5)] == [3] * 5
    assert (cluster.looks, cluster.asked) == (1, 1)
    cluster.now += KNOWN_S
    cluster.there["theirs"] = 4
    assert partitions_of("theirs") == 4
    assert cluster.looks == 1


def test_unknown_topics_cannot_make_us_ask_without_end() -> None:
    cluster, partitions_of = asked()
    assert [partitions_of(f"made-up-{number}") for number in range(100)] == [0] * 100
    assert (cluster.looks, cluster.asked) == (1, 0)


def test_neither_made_up_topics_nor_other_clients_keep_a_topic_from_being_known() -> None:
    cluster, partitions_of = asked(ours=1, theirs=2)
    assert [partitions_of(topic) for topic in ("made-up", "ours", "theirs")] == [0, 1, 2]
    assert cluster.looks == 1


def test_a_topic_that_was_made_later_is_found() -> None:
    cluster, partitions_of = asked()
    assert partitions_of("theirs") == 0
    cluster.there["theirs"] = 2
    cluster.now += ASK_EVERY_S
    assert partitions_of("theirs") == 2


def test_a_topic_that_was_deleted_is_gone_after_a_while() -> None:
    cluster, partitions_of = asked(theirs=2)
    assert partitions_of("theirs") == 2
    del cluster.there["theirs"]
    cluster.now += KNOWN_S
    assert [partitions_of("theirs") for _ in range(3)] == [0, 0, 0]


def test_a_topic_that_is_forgotten_is_looked_for_again_at_once() -> None:
    cluster, partitions_of = asked(theirs=2)
    assert partitions_of("theirs") == 2
    del cluster.there["theirs"]
    cluster.now += ASK_EVERY_S
    assert partitions_of("theirs") == 2, "as it was a moment ago"
    partitions_of.forget("theirs")
    assert partitions_of("theirs") == 0
    cluster.there["theirs"] = 3
    cluster.now += ASK_EVERY_S
    assert partitions_of("theirs") == 3


def test_brokers_that_are_away_are_waited_for_and_not_for_ever() -> None:
    cluster, partitions_of = asked(theirs=2)
    cluster.away_until = GIVE_UP_S / 2
    assert partitions_of("theirs") == 2
    partitions_of.forget("theirs")
    cluster.now += ASK_EVERY_S
    cluster.away_until = cluster.now + 2 * GIVE_UP_S
    with pytest.raises(KafkaTimeoutError):
        partitions_of("theirs")
