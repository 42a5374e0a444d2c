"""From a batch of raw events to checked messages: what is unreadable goes to the dead letters, what stands on another
partition than its user's is forwarded there (streams/kafka/forwarding.py), and the rest is handed on in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from infra.platform import metrics
from infra.platform.settings import Settings
from streams import topics
from streams.erased_users import NOBODY, ErasedUsers
from streams.kafka.dead_letters import check_headers, dead_letter
from streams.kafka.forwarding import forwarded_from, may_forward
from streams.kafka.outbox import Outbox
from streams.messages import ImpressionOutline, Refused, Source, decode, encode

LATEST_MS = 253_402_300_799_999  # the end of the year 9999


class Raw(NamedTuple):
    """One record as it was read. `topic` is without the prefix."""

    topic: str
    partition: int
    offset: int
    produced_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]

    @property
    def source(self) -> Source:
        return Source(self.partition, self.offset, self.produced_ms)


def raw_of(record: Any, topic_prefix: str, sent_ms: float | None) -> Raw:
    """A record as aiokafka or kafka-python gives it; `sent_ms` as its producer says."""
    topic, produced_ms = record.topic.removeprefix(topic_prefix), min(max(0, int(sent_ms or 0)), LATEST_MS)
    headers = tuple(record.headers or ())
    return Raw(topic, record.partition, record.offset, produced_ms, record.key, record.value, headers)


def read(
    batch: Sequence[Raw],
    kinds: Mapping[str, Any],
    settings: Settings,
    outbox: Outbox | None,
    *,
    now_ms: int,
    erased: ErasedUsers = NOBODY,
    times: int = 1,
) -> Iterator[tuple[Raw, Any]]:
    """Yield each good message of the batch with its record, in order; put the others where they belong into `outbox`.

    `kinds` says which message a topic holds; records of other topics are left out. A message whose user lives on
    another partition is not yielded but forwarded. With no outbox, another worker that reads the same topic is trusted
    to report and forward. What is from before its user was erased is passed over, whatever else is to be said of it.
    A message may be `times` as large as one that comes from without.
    """
    max_bytes = times * settings.kafka.max_message_bytes
    latest_ms = now_ms + int(settings.history.future_s * 1000)
    wanted = [raw for raw in batch if raw.topic in kinds]
    for topic, count in Counter(raw.topic for raw in wanted).items():
        metrics.RECEIVED.labels(topic).inc(count)
    for raw in wanted:
        try:
            check_headers(raw.headers, settings.kafka.max_message_bytes)
            message = decode(kinds[raw.topic], raw.value, max_bytes=max_bytes, latest_ms=latest_ms)
            home = topics.partition_of(message.user_id, settings.kafka.partitions)
            if _is_from_before(erased, raw, message):
                metrics.FORGOTTEN.labels(raw.topic).inc()
            elif home == raw.partition:
                yield raw, message
            elif outbox is not None:
                _forward(raw, message.user_id, home, settings.kafka.partitions, outbox)
        except Refused as refused:
            if _is_from_before(erased, raw, None):
                metrics.FORGOTTEN.labels(raw.topic).inc()
            elif outbox is not None:
                reject(raw, refused, settings, outbox, now_ms=now_ms)


def _is_from_before(erased: ErasedUsers, raw: Raw, message: Any) -> bool:
    """Return whether a record is from before its user was erased; of one that cannot be read the key tells the user."""
    if not len(erased):
        return False
    if message is None:
        return erased.is_from_before((raw.key or b"").decode(errors="replace"), raw.produced_ms)
    time_ms = message.at_ms if isinstance(message, ImpressionOutline) else message.event_ms
    return erased.is_from_before(message.user_id, raw.produced_ms, time_ms)


def reject(raw: Raw, refused: Refused, settings: Settings, outbox: Outbox, *, now_ms: int) -> None:
    """Put a record and the reason why it is refused among the dead letters."""
    metrics.REJECTED.labels(raw.topic, refused.code).inc()
    place, content = (raw.topic, raw.partition, raw.offset), (raw.key, raw.value, raw.headers)
    limit = settings.kafka.max_message_bytes
    letter = dead_letter(*place, *content, refused=refused, now_ms=now_ms, max_bytes=limit)
    outbox.add(topics.DEAD_LETTERS, raw.partition % settings.kafka.partitions, letter.key, encode(letter))


def _forward(raw: Raw, user_id: str, home: int, partitions: int, outbox: Outbox) -> None:
    if not may_forward(raw.headers, partitions):
        raise Refused("misrouted", f"already forwarded once; is kafka.partitions not what {raw.topic} has?")
    metrics.FORWARDED.labels(raw.topic).inc()
    headers = [(name, content or b"") for name, content in raw.headers]
    origin = forwarded_from(raw.topic, raw.partition, raw.offset, partitions)
    outbox.add(raw.topic, home, user_id.encode(), raw.value, (*headers, origin))
