from __future__ import annotations

from serving.reply_topics import ASK_EVERY_S, KNOWN_S, ReplyTopics


class Cluster:
    """Answers as a consumer does, and counts how often it is asked."""

    def __init__(self, **topics: int) -> None:
        self.topics, self.asked = topics, 0
        self.now = 0.0

    def partitions_for_topic(self, topic: str) -> set[int]:
        self.asked += 1
        return set(range(self.topics.get(topic, 0)))

    def clock(self) -> float:
        return self.now


def test_a_known_topic_is_asked_for_once_a_while() -> None:
    cluster = Cluster(theirs=3)
    partitions_of = ReplyTopics(cluster, cluster.clock)
    assert [partitions_of("theirs") for _ in range(5)] == [3] * 5
    assert cluster.asked == 1
    cluster.now += KNOWN_S
    cluster.topics["theirs"] = 4
    assert partitions_of("theirs") == 4


def test_unknown_topics_cannot_make_us_ask_without_end() -> None:
    cluster = Cluster()
    partitions_of = ReplyTopics(cluster, cluster.clock)
    assert [partitions_of(f"made-up-{number}") for number in range(100)] == [0] * 100
    assert cluster.asked == 1


def test_a_topic_that_was_made_later_is_found() -> None:
    cluster = Cluster()
    partitions_of = ReplyTopics(cluster, cluster.clock)
    assert partitions_of("theirs") == 0
    cluster.topics["theirs"] = 2
    cluster.now += ASK_EVERY_S
    assert partitions_of("theirs") == 2
