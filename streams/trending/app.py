"""The trending worker: completed watches in, the most watched items out, of everybody and of each of the most watched
context regions (`watch.context.region`), one message per scope and partition of `watch-events`.

A scope's counts of a partition are published under the key `<scope>/<partition>` and carry the newest offset that they
contain; readers add the partitions up. Only what a batch has changed is published, and a region that has lost its place
gets a tombstone (see streams.trending.rules). The order of effects of a batch: publish and wait for the
acknowledgement, then let Faust commit the offsets. A restart takes up the counts that it finds on the topic and passes
over what each scope contains already, so each watch counts once in it, also when a batch was published in part: what
was not published lies behind the committed offset and is read again, since every batch publishes all the listed scopes
that it changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import faust

from infra.platform.fault_points import reached
from infra.platform.health import Health
from infra.platform.settings import Kafka, Settings
from streams import topics
from streams.history.rules import is_completed
from streams.kafka.consumer_progress import ConsumerProgress
from streams.kafka.faust_app import create_app, declare_agent, follow_readiness, give_up_with, now_ms
from streams.kafka.follow import read_to_end
from streams.kafka.intake import Raw, read, reject
from streams.kafka.outbox import Outbox
from streams.messages import Refused, Trending, WatchEvent, decode, encode
from streams.trending.rules import GLOBAL, REGION, PartitionCounts

KINDS = {topics.WATCH_EVENTS: WatchEvent}
MOST_EVENTS = 5000  # handled together
LOOK_S = 0.2  # between two looks whether partitions are new to us


def create_trending_app(settings: Settings, health: Health) -> faust.App:
    app = create_app(settings, "trending", fetch_every_s=settings.trending.publish_s / 4)
    counts: dict[int, PartitionCounts] = {}
    lock = asyncio.Lock()  # counts are taken up and given up between two batches
    progress = ConsumerProgress(app, settings.kafka.topic_prefix, topics.WATCH_EVENTS)
    follow_readiness(app, health, recovered=lambda: app.tables.actives_ready and progress.assigned() <= counts.keys())

    async def give_up(revoked: set[int]) -> None:
        async with lock:
            for number in revoked:
                counts.pop(number, None)

    async def handle_in_turn(batch: Sequence[Raw], outbox: Outbox) -> BaseException | None:
        async with lock:
            await take_up({raw.partition for raw in batch}, counts, settings)
            return await handle(batch, counts, outbox, settings)

    @app.task  # type: ignore[untyped-decorator]
    async def take_up_before_events_come() -> None:
        while not app.should_stop:
            async with lock:
                await take_up(progress.assigned(), counts, settings)
            await asyncio.sleep(LOOK_S)

    publish_s = settings.trending.publish_s
    declare_agent(app, settings, "trending", KINDS, handle_in_turn, max_=MOST_EVENTS, within=publish_s)
    give_up_with(app, give_up)
    return app


async def take_up(partitions: set[int], counts: dict[int, PartitionCounts], settings: Settings) -> None:
    """Go on with the published counts of partitions that are new to us."""
    if missing := partitions - counts.keys():
        published = await asyncio.get_running_loop().run_in_executor(None, read_published, settings.kafka)
        counts |= {partition: start(partition, published, settings) for partition in missing}


async def handle(
    batch: Sequence[Raw], counts: dict[int, PartitionCounts], outbox: Outbox, settings: Settings
) -> BaseException | None:
    """Count a batch, of partitions whose counts were taken up, and publish the scopes that it changed. Returns the
    first bug that an event has shown."""
    bug = count(batch, counts, outbox, settings, now_ms=now_ms())
    for partition in sorted({raw.partition for raw in batch}):
        publish(partition, counts[partition], outbox)
    await outbox.flush()
    reached("trending: counts sent")
    return bug


def publish(partition: int, counts: PartitionCounts, outbox: Outbox) -> None:
    for scope, message in counts.changes(partition).items():
        key = f"{scope}/{partition}".encode()
        outbox.add(topics.TRENDING, 0, key, None if message is None else encode(message))


def count(
    batch: Sequence[Raw], counts: dict[int, PartitionCounts], outbox: Outbox, settings: Settings, *, now_ms: int
) -> BaseException | None:
    """Add the batch's completed watches. What cannot be counted here is the history worker's to report and forward."""
    bug: BaseException | None = None
    for raw, event in read(batch, KINDS, settings, None, now_ms=now_ms):
        try:
            if is_completed(event.watch_s, event.duration_s, settings.history.completed_s):
                region = event.context.region if event.context is not None else None
                counts[raw.partition].add(event.item_id, region, event.event_ms, raw.offset)
        except Exception as error:  # a bug of ours: this event is set aside, the others are not harmed
            bug = bug or error
            reject(raw, Refused("bug", repr(error)), settings, outbox, now_ms=now_ms)
    return bug


def read_published(kafka: Kafka) -> list[Trending]:
    """The newest published counts of every scope and partition, read from the topic."""
    newest: dict[bytes, Trending] = {}
    for record in read_to_end(kafka, topics.TRENDING):
        take_over(newest, record.key, record.value, max_bytes=4 * kafka.max_message_bytes)
    return list(newest.values())


def take_over(newest: dict[bytes, Trending], key: bytes, value: bytes | None, *, max_bytes: int) -> None:
    """Take one record of the topic into what is known by key; a tombstone leaves nothing, and what cannot be read, or
    is of no scope of ours, changes nothing."""
    if value is None:
        newest.pop(key, None)
        return
    try:
        message = decode(Trending, value, max_bytes=max_bytes)
    except Refused:
        return
    if message.scope == GLOBAL or message.scope.startswith(REGION):
        newest[key] = message


def start(partition: int, published: Iterable[Trending], settings: Settings) -> PartitionCounts:
    """The counts of a partition, as they were published."""
    trending = settings.trending
    slower = sorted(half_life_s for half_life_s in set(trending.slower_s) if half_life_s > trending.half_life_s)
    counts = PartitionCounts(
        (trending.half_life_s, *slower),
        items=trending.items,
        regions=trending.regions,
        region_items=trending.region_items,
    )
    for message in published:
        if message.partition == partition:
            counts.restore(message)
    return counts
