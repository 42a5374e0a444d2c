"""The trending worker's batches against a real broker: what a restart finds on the topic, and goes on from."""

import asyncio
from collections.abc import Sequence

import pytest

from infra.platform.settings import Settings
from streams.kafka.faust_app import now_ms
from streams.kafka.intake import Raw
from streams.kafka.outbox import Outbox, create_producer
from streams.messages import Context, Trending, WatchEvent, encode
from streams.topics import WATCH_EVENTS, partition_of
from streams.trending.app import handle, read_published, take_up
from streams.trending.rules import PartitionCounts
from tests.harness.system import with_section

pytestmark = pytest.mark.system

NOW_MS = now_ms()


def raw(offset: int, user_id: str, item_id: str, region: str | None) -> Raw:
    event = WatchEvent(f"e{offset}", user_id, item_id, NOW_MS, 30.0, context=Context(region=region))
    return Raw(WATCH_EVENTS, partition_of(user_id, 2), offset, NOW_MS, user_id.encode(), encode(event), ())


def work(settings: Settings, counts: dict[int, PartitionCounts], *batches: Sequence[Raw]) -> None:
    async def run() -> None:
        producer = create_producer(settings.kafka, "test")
        await producer.start()
        try:
            outbox = Outbox(producer, settings.kafka.topic_prefix)
            for batch in batches:
                await take_up({raw.partition for raw in batch}, counts, settings)
                assert await handle(batch, counts, outbox, settings) is None
        finally:
            await producer.stop()

    asyncio.run(run())


def published(settings: Settings) -> dict[tuple[str, int], dict[str, float]]:
    messages: list[Trending] = read_published(settings.kafka)
    return {
        (each.scope, each.partition): {item_id: round(watched, 3) for item_id, watched in each.items}
        for each in messages
    }


def test_a_restart_goes_on_from_each_scope_and_a_region_that_left_stays_away(with_topics: Settings) -> None:
    settings = with_section(with_topics, "trending", regions=1)
    users = [next(f"u{n}" for n in range(99) if partition_of(f"u{n}", 2) == home) for home in (0, 1)]
    first = [raw(0, users[0], "a", "de"), raw(0, users[1], "b", "fr"), raw(1, users[0], "a", None)]
    second = [raw(2, users[0], "c", "it"), raw(3, users[0], "c", "it")]
    third = [raw(4, users[0], "a", "it"), raw(1, users[1], "b", "de")]
    work(settings, {}, first)
    assert published(settings) == {
        ("global", 0): {"a": 2.0},
        ("region/de", 0): {"a": 1.0},
        ("global", 1): {"b": 1.0},
        ("region/fr", 1): {"b": 1.0},
    }
    work(settings, {}, first, second)  # another worker, from offsets that were not committed
    after_two = {
        ("global", 0): {"a": 2.0, "c": 2.0},
        ("region/it", 0): {"c": 2.0},
        ("global", 1): {"b": 1.0},
        ("region/fr", 1): {"b": 1.0},
    }
    assert published(settings) == after_two
    work(settings, {}, [*second, *third])
    assert published(settings) == after_two | {
        ("global", 0): {"a": 3.0, "c": 2.0},
        ("region/it", 0): {"c": 2.0, "a": 1.0},
        ("global", 1): {"b": 2.0},
    }
