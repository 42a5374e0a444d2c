"""What our workers are compared with, each as a process: `python -m tests.benchmarks.events.baselines noop|plain|take`.

`noop` is the least that a Faust agent on raw bytes can do, `take` the same on training examples in batches. `plain` is
the history agent as Faust's documentation would have it written, one table write and one `send` per event. It does the
same work on the same messages, with our own decoder and our own pure function, so that the difference is the way of
writing alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any

import faust

from infra.platform.health import Health, serve_health
from infra.platform.settings import Settings, load_settings
from streams.history.rules import apply_watch
from streams.kafka.faust.patches import partitions_by_key
from streams.kafka.faust_app import create_app, follow_readiness, now_ms, raw_topic, run
from streams.messages import Source, UserHistory, WatchEvent, decode, encode
from streams.topics import TRAINING_EXAMPLES, USER_HISTORIES, WATCH_EVENTS

BUFFER = 16_384  # events that Faust reads ahead


def create_noop_app(settings: Settings, health: Health) -> faust.App:
    app = by_message(create_app(settings, "noop"))

    @app.agent(raw_topic(app, settings, WATCH_EVENTS))  # type: ignore[untyped-decorator]
    async def noop(stream: Any) -> None:
        async for _ in stream:
            count(health, 1)

    return app


def create_take_app(settings: Settings, health: Health) -> faust.App:
    app = by_message(create_app(settings, "take"))

    @app.agent(raw_topic(app, settings, TRAINING_EXAMPLES))  # type: ignore[untyped-decorator]
    async def take(stream: Any) -> None:
        async for batch in stream.take(settings.trainer.batch, within=settings.trainer.wait_s):
            count(health, len(batch))

    return app


def by_message(app: faust.App) -> faust.App:
    """Let Faust hand on message by message, as it does by itself."""
    del app.transport.Consumer
    app.conf.stream_buffer_maxsize = BUFFER
    return app


class PlainTable(faust.Table):
    """A table of bytes that begins with what its changelog holds."""

    def take_over(self, partition: int, records: Iterable[Any]) -> None:
        for record in records:
            self.data.data[record.key], partitions_by_key(self)[record.key] = record.value, partition


def count(health: Health, events: int) -> None:
    now_s = time.time()
    health.detail.setdefault("first_s", now_s)
    health.detail |= {"events": health.detail.get("events", 0) + events, "last_s": now_s}


def create_plain_app(settings: Settings, health: Health) -> faust.App:
    app = by_message(create_app(settings, "plain", Table=PlainTable))
    changelog = raw_topic(app, settings, USER_HISTORIES)
    examples = raw_topic(app, settings, TRAINING_EXAMPLES)
    histories = app.Table("histories", partitions=settings.kafka.partitions, changelog_topic=changelog)
    keep, completed_s = settings.history.watches, settings.history.completed_s

    @app.agent(raw_topic(app, settings, WATCH_EVENTS))  # type: ignore[untyped-decorator]
    async def plain(stream: Any) -> None:
        async for event in stream.events():
            message = event.message
            watch = decode(WatchEvent, message.value, latest_ms=now_ms() + 300_000)
            before = histories.get(message.key)
            history = UserHistory(watch.user_id) if before is None else decode(UserHistory, before)
            source = Source(message.partition, message.offset, round(message.timestamp * 1000))
            applied = apply_watch(history, watch, source, keep=keep, completed_s=completed_s)
            histories[message.key] = encode(applied.history)
            if applied.example is not None:
                await examples.send(key=message.key, value=encode(applied.example))

    return app


def main(name: str) -> None:
    settings = load_settings()
    health = Health(name)
    app = {"noop": create_noop_app, "plain": create_plain_app, "take": create_take_app}[name](settings, health)
    follow_readiness(app, health)
    with serve_health(health, settings, started_ms=now_ms()):
        run(app, settings)


if __name__ == "__main__":
    main(sys.argv[1])
