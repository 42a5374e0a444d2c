"""From a batch of raw events to checked messages: what is unreadable goes to the dead letters, what stands on another
partition than its user's is forwarded there once, and the rest is handed on in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from infra import metrics
from infra.settings import Settings
from streams import topics
from streams.dead_letters import dead_letter
from streams.history import Source
from streams.messages import Refused, decode, encode
from streams.outbox import Outbox


class Raw(NamedTuple):
    """One record as it was read. `topic` is without the prefix."""

    topic: str
    partition: int
    offset: int
    produced_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]

    @property
    def source(self) -> Source:
        return Source(self.partition, self.offset, self.produced_ms)


def raw_of(event: Any, topic_prefix: str) -> Raw:
    """A Faust event's record."""
    message = event.message
    headers = message.headers.items() if isinstance(message.headers, Mapping) else message.headers or ()
    return Raw(
        topic=message.topic.removeprefix(topic_prefix),
        partition=message.partition,
        offset=message.offset,
        produced_ms=int((message.timestamp or 0) * 1000),
        key=message.key,
        value=message.value,
        headers=tuple(headers),
    )


def read(
    batch: Iterable[Raw], kinds: Mapping[str, Any], settings: Settings, outbox: Outbox | None, *, now_ms: int
) -> Iterator[tuple[Raw, Any]]:
    """Yield each good message of the batch with its record, in order; put the others where they belong into `outbox`.

    `kinds` says which message a topic holds. A message whose user lives on another partition is not yielded but
    forwarded. With no outbox, another worker that reads the same topic is trusted to report and forward.
    """
    latest_ms = now_ms + int(settings.history.future_s * 1000)
    for raw in batch:
        metrics.RECEIVED.labels(raw.topic).inc()
        try:
            message = decode(
                kinds[raw.topic], raw.value, max_bytes=settings.kafka.max_message_bytes, latest_ms=latest_ms
            )
            home = topics.partition_of(message.user_id, settings.kafka.partitions)
            if home == raw.partition:
                yield raw, message
            elif outbox is not None:
                _forward(raw, message.user_id, home, outbox)
        except Refused as refused:
            if outbox is not None:
                reject(raw, refused, settings, outbox, now_ms=now_ms)


def reject(raw: Raw, refused: Refused, settings: Settings, outbox: Outbox, *, now_ms: int) -> None:
    """Put a record and the reason why it is refused among the dead letters."""
    metrics.REJECTED.labels(raw.topic, refused.code).inc()
    letter = dead_letter(
        raw.topic, raw.partition, raw.offset, raw.key, raw.value, raw.headers, refused=refused, now_ms=now_ms
    )
    outbox.add(topics.DEAD_LETTERS, raw.partition % settings.kafka.partitions, raw.key, encode(letter))


def _forward(raw: Raw, user_id: str, home: int, outbox: Outbox) -> None:
    if any(name == topics.FORWARDED for name, _ in raw.headers):
        raise Refused("misrouted", f"already forwarded once; is kafka.partitions not what {raw.topic} has?")
    metrics.FORWARDED.labels(raw.topic).inc()
    origin = f"{raw.topic}/{raw.partition}/{raw.offset}".encode()
    outbox.add(raw.topic, home, user_id.encode(), raw.value, (*raw.headers, (topics.FORWARDED, origin)))
