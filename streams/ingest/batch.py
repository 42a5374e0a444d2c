"""From a batch of their records to what is to be written, and how far that goes: pure, like the mapping.

Records of a partition keep their order. One that has to wait (its schema is not known yet) stops its partition there,
and no other: what follows it is not looked at, so that nothing overtakes it and nothing behind it is committed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from infra.platform.settings import Settings, SettingsError
from infra.platform.topic_mappings import TopicMapping
from streams import topics
from streams.ingest.formats import Decode, decoder_of
from streams.ingest.mapping import Mapped, Mapper
from streams.ingest.paths import PathError, Record
from streams.ingest.registry import Registry, Waiting, registry_of
from streams.ingest.values import Unfit
from streams.kafka.dead_letters import check_headers, dead_letter
from streams.kafka.intake import Raw
from streams.messages import Refused, encode

THEIRS = "ingest/"  # before the name of a topic that is not ours, in dead letters and metrics: it may be called as ours

Place = tuple[str, int]  # topic, partition


class Outgoing(NamedTuple):
    """A record for one of our topics; `partition` None: that of the key."""

    topic: str
    key: bytes | None
    value: bytes | None
    partition: int | None = None


@dataclass
class Taken:
    """What a batch has come to. `ends`: the offset after the last record of each partition that is dealt with; `stuck`:
    the offset at which a partition waits, and for what."""

    outgoing: list[Outgoing] = field(default_factory=list)
    ends: dict[Place, int] = field(default_factory=dict)
    stuck: dict[Place, tuple[int, str]] = field(default_factory=dict)
    received: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)  # topic, code

    def sent(self) -> Counter[str]:
        """How many there are for each of our topics."""
        return Counter(each.topic for each in self.outgoing)


class Reader:
    """One topic of theirs: how its records are decoded, and the mappings that each goes through."""

    def __init__(self, mappings: Sequence[TopicMapping], registry: Registry | None, max_bytes: int) -> None:
        first = mappings[0]
        self.mappers = [Mapper(mapping) for mapping in mappings]
        self._max_bytes = max_bytes
        self._decode, self._decode_key = (decoder_of(name, registry) for name in (first.format, first.key_format))

    def read(self, raw: Raw) -> Record:
        """Raises Refused, and Waiting."""
        check_headers(raw.headers, self._max_bytes)
        size = max(len(raw.value or b""), len(raw.key or b""))
        if size > self._max_bytes:
            raise Refused("too_large", f"{size} bytes are over the limit of {self._max_bytes} bytes")
        key = partial(_decoded, self._decode_key, raw.key)
        return Record(_decoded(self._decode, raw.value), key, raw.produced_ms, raw.headers, raw[:3])


def readers_of(settings: Settings) -> dict[str, Reader]:
    """By topic what reads it. Raises SettingsError that names the mapping."""
    ours = {settings.kafka.topic_prefix + topic.name for topic in topics.TOPICS}
    registry = registry_of(settings.ingest)
    by_topic: dict[str, list[TopicMapping]] = {}
    for mapping in settings.ingest.topics:
        by_topic.setdefault(mapping.topic, []).append(mapping)
    readers = {}
    for topic, mappings in by_topic.items():
        if topic in ours:
            raise SettingsError(f"ingest.topics, topic {topic}: it is one of ours, which it is to become")
        try:
            readers[topic] = Reader(mappings, registry, settings.kafka.max_message_bytes)
        except (PathError, SettingsError) as error:
            raise SettingsError(f"ingest.topics, topic {topic}: {error}") from None
        except Unfit as unfit:
            raise SettingsError(f"ingest.topics, topic {topic}: values: expected {unfit}") from None
    return readers


def take(batch: Iterable[Raw], readers: Mapping[str, Reader], settings: Settings, *, now_ms: int) -> Taken:
    """Raises nothing, whatever the records hold."""
    taken = Taken()
    for raw in batch:
        place = raw.topic, raw.partition
        if place in taken.stuck:
            continue
        try:
            outcomes = list(outcomes_of(raw, readers[raw.topic], settings, now_ms=now_ms))
        except Waiting as waiting:
            taken.stuck[place] = raw.offset, str(waiting)
            continue
        for outcome in outcomes:
            _note(taken, raw, outcome, settings, now_ms)
        taken.received[raw.topic] += 1
        taken.ends[place] = raw.offset + 1
    return taken


def outcomes_of(raw: Raw, reader: Reader, settings: Settings, *, now_ms: int) -> Iterator[Mapped | Refused | None]:
    """Yield what each mapping of its topic makes of a record. Raises Waiting."""
    latest_ms = now_ms + int(settings.history.future_s * 1000)
    try:
        record = reader.read(raw)
    except Refused as refused:
        yield refused
        return
    for mapper in reader.mappers:
        try:
            yield mapper(record, latest_ms=latest_ms)
        except Refused as refused:
            yield refused


def _note(taken: Taken, raw: Raw, outcome: Mapped | Refused | None, settings: Settings, now_ms: int) -> None:
    if isinstance(outcome, Mapped):
        try:
            taken.outgoing.append(outgoing_of(outcome, settings.kafka.max_message_bytes))
            return
        except Refused as refused:
            outcome = refused
    if outcome is None:
        taken.passed_over[raw.topic] += 1
    else:
        taken.refused[raw.topic, outcome.code] += 1
        taken.outgoing.append(letter_of(raw, outcome, settings, now_ms))


def outgoing_of(mapped: Mapped, max_bytes: int) -> Outgoing:
    """Raises Refused for a message that its readers would refuse for its size."""
    value = None if mapped.message is None else encode(mapped.message)
    if value is not None and len(value) > max_bytes:
        raise Refused("too_large", f"a message of {len(value)} bytes is over the limit of {max_bytes} bytes")
    return Outgoing(mapped.topic, mapped.key.encode(), value)


def letter_of(raw: Raw, refused: Refused, settings: Settings, now_ms: int) -> Outgoing:
    """The dead letter of a record of theirs."""
    place, content = (THEIRS + raw.topic, raw.partition, raw.offset), (raw.key, raw.value, raw.headers)
    limit = settings.kafka.max_message_bytes
    letter = dead_letter(*place, *content, refused=refused, now_ms=now_ms, max_bytes=limit)
    return Outgoing(topics.DEAD_LETTERS, letter.key, encode(letter), raw.partition % settings.kafka.partitions)


def _decoded(decode: Decode, raw: bytes | None) -> Any:
    return None if raw is None else decode(raw)
