"""The trending worker: completed watches in, the most watched items out, one message per partition of `watch-events`.

Each partition's counts are published under the key `global/<partition>` and carry the newest offset that they contain;
readers add the partitions up. The order of effects of a batch: publish and wait for the acknowledgement, then let Faust
commit the offsets. A restart takes up the counts that it finds on the topic and passes over what they contain already,
so each watch counts once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import faust

from infra.health import Health
from infra.settings import Kafka, Settings
from streams import topics
from streams.faust_app import create_app, declare_agent, follow_readiness, now_ms
from streams.follow import TopicFollower
from streams.history import is_completed
from streams.intake import Raw, read, reject
from streams.messages import Refused, Trending, WatchEvent, decode, encode
from streams.outbox import Outbox
from streams.trending import DecayedCounts

SCOPE = "global"
KINDS = {topics.WATCH_EVENTS: WatchEvent}
MOST_EVENTS = 5000  # handled together


def create_trending_app(settings: Settings, health: Health) -> faust.App:
    app = create_app(settings, "trending")
    counts: dict[int, DecayedCounts] = {}
    follow_readiness(app, health)

    @app.on_partitions_revoked.connect  # type: ignore[untyped-decorator]
    async def forget(_: Any, revoked: Iterable[Any], **__: Any) -> None:
        for tp in revoked:
            counts.pop(tp.partition, None)

    declare_agent(
        app,
        settings,
        "trending",
        KINDS,
        lambda batch, outbox: handle(batch, counts, outbox, settings),
        max_=MOST_EVENTS,
        within=settings.trending.publish_s,
    )
    return app


async def handle(
    batch: Sequence[Raw], counts: dict[int, DecayedCounts], outbox: Outbox, settings: Settings
) -> BaseException | None:
    """Count a batch and publish the partitions that it touched. Returns the first bug that an event has shown."""
    touched = sorted({raw.partition for raw in batch})
    missing = [partition for partition in touched if partition not in counts]
    if missing:
        published = await asyncio.get_running_loop().run_in_executor(None, read_published, settings.kafka)
        counts |= {partition: _start(partition, published, settings) for partition in missing}
    bug = count(batch, counts, outbox, settings, now_ms=now_ms())
    for partition in touched:
        message = counts[partition].message(SCOPE, partition, settings.trending.items)
        outbox.add(topics.TRENDING, 0, f"{SCOPE}/{partition}".encode(), encode(message))
    await outbox.flush()
    return bug


def count(
    batch: Sequence[Raw], counts: dict[int, DecayedCounts], outbox: Outbox, settings: Settings, *, now_ms: int
) -> BaseException | None:
    """Add the batch's completed watches. What cannot be counted here is the history worker's to report and forward."""
    bug: BaseException | None = None
    for raw, event in read(batch, KINDS, settings, None, now_ms=now_ms):
        try:
            if is_completed(event.watch_s, event.duration_s, settings.history.completed_s):
                counts[raw.partition].add(event.item_id, event.event_ms, raw.offset)
        except Exception as error:  # a bug of ours: this event is set aside, the others are not harmed
            bug = bug or error
            reject(raw, Refused("bug", repr(error)), settings, outbox, now_ms=now_ms)
    return bug


def read_published(kafka: Kafka) -> dict[int, Trending]:
    """The newest published counts by partition, read from the topic."""
    newest: dict[int, Trending] = {}
    with TopicFollower(kafka, topics.TRENDING) as follower:
        while not follower.caught_up:
            for record in follower.poll(0.5):
                try:
                    message = decode(Trending, record.value, max_bytes=4 * kafka.max_message_bytes)
                except Refused:
                    continue
                if message.scope == SCOPE:
                    newest[message.partition] = message
    return newest


def _start(partition: int, published: dict[int, Trending], settings: Settings) -> DecayedCounts:
    counts = DecayedCounts(settings.trending.half_life_s, room=10 * settings.trending.items)
    if partition in published:
        counts.restore(published[partition])
    return counts
