"""What is told of records that were sent: acknowledged, refused, or not known in time."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator

import pytest

from infra.gateway.event_sender import AT_ONCE, Acknowledgements, EventSender, Record, record_of, tombstone_of
from infra.platform.settings import Kafka, Settings
from streams import topics
from streams.kafka.follow import read_to_end
from streams.messages import Item, SearchEvent, SignalEvent, WatchEvent, decode


@pytest.fixture
def made(kafka_settings: Settings) -> Settings:
    """Settings whose topics are there."""
    topics.create_topics(kafka_settings.kafka)
    return kafka_settings


WATCH = WatchEvent("e", "ann", "v", 1000, 3.0)


@contextlib.asynccontextmanager
async def sending(kafka: Kafka, deadline_s: float = 10.0) -> AsyncIterator[EventSender]:
    sender = EventSender(kafka, deadline_s)
    try:
        yield sender
    finally:
        await asyncio.to_thread(sender.close)


def test_what_the_producers_thread_tells_is_told_once_all_is_known():
    async def play() -> list[str]:
        waiting = Acknowledgements(3, asyncio.get_running_loop())
        told = [(0, None), (2, KeyError("x")), (0, KeyError("a second word counts nothing")), (1, None)]
        threading.Thread(daemon=True, target=lambda: [waiting.settle(*each) for each in told]).start()
        await asyncio.wait_for(waiting.done.wait(), 5)
        return waiting.problems

    assert asyncio.run(play()) == ["", "", "not acknowledged: KeyError"]


def test_what_is_not_known_in_time_is_given_up_and_nothing_else():
    async def play() -> list[str]:
        waiting = Acknowledgements(2, asyncio.get_running_loop())
        waiting.settle(0, None)
        waiting.give_up("late")
        waiting.settle(1, None)
        return waiting.problems

    assert asyncio.run(play()) == ["", "late"]


def test_user_events_go_to_their_users_partition_and_items_under_their_id():
    kafka = Kafka(partitions=7)
    events = (WATCH, SearchEvent("s", "ann", "q", 1), SignalEvent("l", "ann", "like", 1, "v"))
    sent = [record_of(event, kafka) for event in events]
    assert [record.topic for record in sent] == [topics.WATCH_EVENTS, topics.SEARCH_EVENTS, topics.SIGNALS]
    assert {record.partition for record in sent} == {topics.partition_of("ann", 7)}
    assert record_of(Item("v"), kafka)[:2] == (topics.ITEMS, b"v")
    assert tombstone_of("v") == Record(topics.ITEMS, b"v", None)


def test_what_is_acknowledged_is_in_the_topic(made: Settings):
    events = [WatchEvent(f"e{number}", f"user-{number % 9}", "v", 1000, 3.0) for number in range(3 * AT_ONCE)]

    async def play() -> list[str]:
        async with sending(made.kafka) as sender:
            records = [record_of(event, made.kafka) for event in events]
            return await sender.send(records[:1]) + await sender.send(records[1:]) + await sender.send([])

    assert asyncio.run(play()) == [""] * len(events)
    found = list(read_to_end(made.kafka, topics.WATCH_EVENTS))
    assert sorted(decode(WatchEvent, each.value).event_id for each in found) == sorted(each.event_id for each in events)
    number = made.kafka.partitions
    assert all(topics.partition_of(each.key.decode(), number) == each.partition for each in found)


def test_a_record_that_is_too_large_is_told_and_the_others_are_sent(made: Settings):
    huge = Record(topics.WATCH_EVENTS, b"ann", b"x" * (5 * made.kafka.max_message_bytes), 0)

    async def play() -> tuple[list[str], bool]:
        async with sending(made.kafka) as sender:
            return await sender.send([huge, record_of(WATCH, made.kafka)]), sender.is_failing

    (problem, other), failing = asyncio.run(play())
    assert "MessageSizeTooLargeError" in problem and not other and failing
