"""The outbox against a real broker: nothing is lost, order is kept, whatever the size of what is sent."""

import asyncio
from collections.abc import Callable

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import MessageSizeTooLargeError

from infra.platform.settings import Kafka, Settings
from streams.kafka.follow import read_to_end
from streams.kafka.outbox import BATCH_BYTES, Outbox, create_producer
from streams.topics import DEAD_LETTERS, IMPRESSIONS, ITEMS, RANKING_EXAMPLES, SEARCH_EVENTS, TRENDING, WATCH_EVENTS
from tests.conftest import on_both_brokers

pytestmark = [pytest.mark.system, on_both_brokers]


@pytest.fixture
def broker_settings(with_topics: Settings) -> Kafka:
    return with_topics.kafka


def send(kafka: Kafka, *fills: Callable[[Outbox], None]) -> None:
    """What each of these puts into an outbox, flushed."""

    async def run() -> None:
        producer = create_producer(kafka, "test")
        await producer.start()
        try:
            outbox = Outbox(producer, kafka.topic_prefix)
            for fill in fills:
                fill(outbox)
                await outbox.flush()
        finally:
            await producer.stop()

    asyncio.run(run())


def test_what_is_larger_than_a_batch_is_sent_in_several_in_order(broker_settings):
    value = b"x" * 60_000
    count = 4 * BATCH_BYTES // len(value)

    def fill(outbox: Outbox) -> None:
        for number in range(count):
            outbox.add(DEAD_LETTERS, number % 2, str(number).encode(), value)

    send(broker_settings, fill)
    records = list(read_to_end(broker_settings, DEAD_LETTERS))
    for partition in (0, 1):
        there = [int(record.key) for record in records if record.partition == partition]
        assert there == list(range(partition, count, 2))
    assert all(record.value == value for record in records)


def test_a_message_larger_than_a_batch_is_sent_all_the_same(broker_settings):
    large = b"x" * (2 * BATCH_BYTES)

    def fill(outbox: Outbox) -> None:
        outbox.add(IMPRESSIONS, 0, b"before", b"1")
        outbox.add(IMPRESSIONS, 0, b"large", large)
        outbox.add(IMPRESSIONS, 0, b"after", b"2")

    send(broker_settings, fill)
    sizes = [(record.key, len(record.value)) for record in read_to_end(broker_settings, IMPRESSIONS)]
    assert sizes == [(b"before", 1), (b"large", len(large)), (b"after", 1)]


def test_headers_and_tombstones_arrive_as_they_were_put(broker_settings):
    def fill(outbox: Outbox) -> None:
        outbox.add(ITEMS, 1, b"i", b"{}", [("a", b"1"), ("a", b"\xff")])
        outbox.add(ITEMS, 1, b"i", None)

    send(broker_settings, fill)
    first, second = read_to_end(broker_settings, ITEMS)
    assert first.headers == [("a", b"1"), ("a", b"\xff")] and first.value == b"{}"
    assert second.value is None and second.key == b"i" and second.partition == 1


def test_a_message_that_no_broker_takes_is_an_error_and_not_dropped(broker_settings):
    too_large = b"x" * (9 * broker_settings.max_message_bytes)
    with pytest.raises(MessageSizeTooLargeError):
        send(broker_settings, lambda outbox: outbox.add(RANKING_EXAMPLES, 0, None, too_large))


def test_what_stands_behind_records_that_were_given_up_is_sent_all_the_same(broker_settings):
    """They have taken their numbers with them, so the broker refuses what follows until there is a new producer id."""

    async def run() -> None:
        async with create_producer(broker_settings, "test") as producer:
            outbox = Outbox(producer, broker_settings.topic_prefix)
            for key in (b"before", b"after", b"last"):
                outbox.add(SEARCH_EVENTS, 0, key, b"")
                await asyncio.wait_for(outbox.flush(), 30)
                place = TopicPartition(broker_settings.topic_prefix + SEARCH_EVENTS, 0)
                producer._txn_manager.increment_sequence_number(place, 3)

    asyncio.run(run())
    assert [record.key for record in read_to_end(broker_settings, SEARCH_EVENTS)] == [b"before", b"after", b"last"]


def test_a_flush_sends_what_was_put_since_the_last_one(broker_settings):
    def last(outbox: Outbox) -> None:
        outbox.add(TRENDING, 0, b"2", b"2")
        outbox.add(WATCH_EVENTS, 0, b"3", b"3")

    send(broker_settings, lambda outbox: outbox.add(TRENDING, 0, b"1", b"1"), lambda _: None, last)
    assert [record.key for record in read_to_end(broker_settings, TRENDING)] == [b"1", b"2"]
    assert [record.key for record in read_to_end(broker_settings, WATCH_EVENTS)] == [b"3"]
