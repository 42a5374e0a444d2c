"""Topics are read to their end and then followed, on a real broker of each kind."""

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing

import pytest
from kafka import KafkaProducer, TopicPartition
from kafka.consumer.fetcher import ConsumerRecord

from infra.platform.kafka_clients import kafka_python_options
from infra.platform.settings import Kafka, Settings
from streams import topics
from streams.kafka.follow import TopicFollower, TopicMissing
from tests.conftest import on_both_brokers

pytestmark = [pytest.mark.system, on_both_brokers]


class Writer:
    def __init__(self, kafka: Kafka) -> None:
        self.kafka = kafka
        topics.create_topics(kafka)
        self._producer = KafkaProducer(**kafka_python_options(kafka))

    def write(self, topic: str, count: int, partition: int = 0, at_ms: int | None = None) -> None:
        """`count` records, numbered; with `at_ms` the first is of then and each other one of a second later."""
        name = self.kafka.topic_prefix + topic
        for number in range(count):
            then = None if at_ms is None else at_ms + 1000 * number
            self._producer.send(name, key=b"k", value=str(number).encode(), partition=partition, timestamp_ms=then)
        self._producer.flush(10)

    def close(self) -> None:
        self._producer.close()


@pytest.fixture
def writer(kafka_settings: Settings) -> Iterator[Writer]:
    with closing(Writer(kafka_settings.kafka)) as writer:
        yield writer


def numbers(records: Iterable[ConsumerRecord]) -> list[int]:
    return [int(record.value) for record in records]


def test_all_that_was_there_is_read_in_order_and_then_what_comes(writer: Writer) -> None:
    writer.write(topics.ITEMS, 7000)
    with TopicFollower(writer.kafka, topics.ITEMS) as follower:
        assert not follower.caught_up
        told: list[tuple[int, int]] = []
        assert numbers(follower.to_end(lambda *done: told.append(done))) == list(range(7000))
        assert told[-1] == (7000, 7000) and told == sorted(told)
        writer.write(topics.ITEMS, 1)
        assert numbers(follower.poll(5.0)) == [0]
        assert set(follower.lags().values()) == {0}


def test_empty_topics_are_read_to_their_end_at_once(writer: Writer) -> None:
    with TopicFollower(writer.kafka, topics.ITEMS, topics.RELEASES) as follower:
        assert follower.caught_up
        assert follower.poll(0.05) == []


def test_several_topics_are_followed_together(writer: Writer) -> None:
    writer.write(topics.ITEMS, 2)
    writer.write(topics.RELEASES, 3)
    with TopicFollower(writer.kafka, topics.ITEMS, topics.RELEASES) as follower:
        assert follower.lags()[topics.RELEASES, 0] == 3
        assert sorted(numbers(follower.to_end())) == [0, 0, 1, 1, 2]
        assert follower.ends()[topics.RELEASES, 0] == 3


def test_partitions_can_be_taken_on_and_given_away(writer: Writer) -> None:
    for partition, count in ((0, 2), (1, 3)):
        writer.write(topics.USER_HISTORIES, count, partition)
    with TopicFollower(writer.kafka, topics.USER_HISTORIES, partitions=[0]) as follower:
        assert len(list(follower.to_end())) == 2
        assert follower.caught_up_on(0)
        assert not follower.caught_up_on(1)
        follower.assign([0, 1])
        assert follower.caught_up_on(0), "what was read is not read again"
        assert not follower.caught_up_on(1)
        assert [record.partition for record in list(follower.to_end())] == [1, 1, 1]
        follower.assign([1])
        assert not follower.caught_up_on(0)


def test_a_rewind_reads_everything_again(writer: Writer) -> None:
    writer.write(topics.ITEM_VECTORS, 4, partition=1)
    with TopicFollower(writer.kafka, topics.ITEM_VECTORS) as follower:
        assert len(list(follower.to_end())) == 4
        follower.rewind()
        assert not follower.caught_up
        assert numbers(follower.to_end()) == [0, 1, 2, 3]


def test_reading_begins_at_a_time(writer: Writer) -> None:
    began_ms = int(time.time() * 1000) - 200_000
    writer.write(topics.IMPRESSIONS, 100, partition=0, at_ms=began_ms)
    writer.write(topics.IMPRESSIONS, 3, partition=1, at_ms=began_ms)
    with TopicFollower(writer.kafka, topics.IMPRESSIONS) as follower:
        for at_s, left in ((50, 50), (0, 103), (2, 98 + 1), (99.5, 0)):
            follower.go_to(began_ms + int(at_s * 1000))
            assert len(list(follower.to_end())) == left


def test_what_has_expired_is_told_from_what_was_never_there(writer: Writer) -> None:
    began_ms = int(time.time() * 1000) - 200_000
    writer.write(topics.IMPRESSIONS, 100, partition=0, at_ms=began_ms)
    with TopicFollower(writer.kafka, topics.IMPRESSIONS) as follower:
        assert follower.holds_since(0), "partitions that nothing was written to have lost nothing"
        for first, lost_from_s in ((50, 50), (100, 1000)):
            with topics.open_admin(writer.kafka) as admin:
                admin.delete_records({TopicPartition(writer.kafka.topic_prefix + topics.IMPRESSIONS, 0): first})
            assert follower.holds_since(began_ms + 1000 * lost_from_s + 1) == (first < 100)
            assert not follower.holds_since(began_ms + 1000 * lost_from_s)


def test_a_topic_that_a_broker_has_not_heard_of_yet_is_waited_for(kafka_settings: Settings) -> None:
    making = threading.Timer(1.0, topics.create_topics, [kafka_settings.kafka])
    making.start()
    with TopicFollower(kafka_settings.kafka, topics.ITEMS) as follower:
        assert follower.ends()
    making.join()


def test_a_missing_topic_is_named_with_the_command_that_makes_it(kafka_settings: Settings) -> None:
    name = kafka_settings.kafka.topic_prefix + topics.ITEMS
    with pytest.raises(TopicMissing, match=f"{name} does not exist; `nextwatch topics --create`"):
        TopicFollower(kafka_settings.kafka, topics.ITEMS)


def test_the_ends_that_are_known_are_the_same_while_the_place_is_being_found_again(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.write(topics.ITEMS, 3)
    with TopicFollower(writer.kafka, topics.ITEMS, partitions=[0]) as follower:
        for _ in follower.to_end():
            pass
        monkeypatch.setattr(follower, "_position", lambda _: -1)
        assert follower.lags() == follower.known_ends() == {(topics.ITEMS, 0): 3}
