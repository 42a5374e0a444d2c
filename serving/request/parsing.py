"""From a record of `recommend-requests` to a request that can be answered, or to the reason why not and whom to tell.

The conventions are those of request/reply over Kafka: the reply topic, its partition and a correlation id come in
headers, under plain names or under those that Spring Kafka's ReplyingKafkaTemplate sends, and the correlation id goes
back under the name that it came with. So does a `traceparent` (W3C Trace Context), by which a request can be followed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec

from infra.platform.settings import Settings
from infra.platform.tracing import HEADER, TRACE_PARENT, traceparent_in
from models.catalogue.filter_syntax import FilterError, parse_filter
from models.catalogue.item_filter import ItemFilter
from streams import topics
from streams.kafka.dead_letters import check_headers
from streams.messages import RecommendRequest, Refused, decode

CORRELATION = ("correlation_id", "kafka_correlationId")
REPLY_TOPIC = ("reply_topic", "kafka_replyTopic")
REPLY_PARTITION = ("reply_partition", "kafka_replyPartition")
TOPIC_NAME = re.compile(r"[A-Za-z0-9._-]{1,249}")

PartitionsOf = Callable[[str], int]  # of a topic's full name; 0 when there is no such topic


class Unsupported(Refused):
    """A request that is well formed and asks for what this server does not do: only its sender is told."""


class Address(NamedTuple):
    """The place that a reply goes to. `topic` is a full name; `headers` carry the correlation id and the trace."""

    topic: str
    partition: int | None = None
    headers: tuple[tuple[str, bytes], ...] = ()


class ParsedRequest(NamedTuple):
    """A request as it was read. `refused` says why it has no answer; `address` is None when nobody can be told."""

    record: Any
    address: Address | None
    request_id: str
    request: RecommendRequest | None = None
    refused: Refused | None = None
    filter: ItemFilter | None = None

    @property
    def traceparent(self) -> str:
        """The header as it came; empty when there is none."""
        return "" if self.address is None else dict(self.address.headers).get(HEADER, b"").decode()

    @property
    def trace_id(self) -> str:
        """The id of the trace that the request belongs to; empty when it names none."""
        found = TRACE_PARENT.fullmatch(self.traceparent.encode())
        return "" if found is None else found[1].decode()


def parse_request(record: Any, settings: Settings, partitions_of: PartitionsOf) -> ParsedRequest:
    """Read a request and its reply address. Never raises Refused: what is wrong is in what it returns."""
    headers = record.headers or ()
    prefix = settings.kafka.topic_prefix
    address = Address(prefix + topics.RECOMMEND_REPLIES)
    refused: Refused | None = None
    request: RecommendRequest | None = None
    item_filter: ItemFilter | None = None
    try:
        check_headers(headers, settings.kafka.max_message_bytes)
        address = address._replace(headers=(*correlation(headers), *trace(headers)))
        address = read_address(headers, address, prefix, partitions_of)
    except Refused as error:
        refused = error
    try:
        request = read_request(record.value, settings)
        item_filter = read_filter(request)
    except Refused as error:
        refused = error
    request_id = request.request_id if request else request_id_in(record.value)
    can_tell = bool(request_id or correlation(address.headers))
    return ParsedRequest(record, address if can_tell else None, request_id, request, refused, item_filter)


def read_request(value: bytes | None, settings: Settings) -> RecommendRequest:
    """Raises Refused for a broken request, Unsupported for one that asks too much."""
    request = decode(RecommendRequest, value, max_bytes=settings.kafka.max_message_bytes)
    if request.k is not None and request.k > settings.serving.max_k:
        raise Unsupported("k", f"k is {request.k}, this server gives at most {settings.serving.max_k} (serving.max_k)")
    return request


def read_filter(request: RecommendRequest) -> ItemFilter | None:
    """The request's own filter. Raises Unsupported for one that is none."""
    if request.filter is None:
        return None
    try:
        return parse_filter(request.filter)
    except FilterError as error:
        raise Unsupported("filter", str(error)) from None


def read_address(
    headers: Iterable[tuple[str, bytes | None]], default: Address, topic_prefix: str, partitions_of: PartitionsOf
) -> Address:
    """The address that the headers name, else the default one.

    Raises Refused for a topic that is one of our own, is none, or does not exist, and for a partition it does not have.
    """
    found = _first(headers, REPLY_TOPIC)
    topic = default.topic if found is None else found.decode("utf-8", errors="replace")
    if topic != default.topic:
        _check_topic(topic, topic_prefix, partitions_of)
    partition = _read_partition(_first(headers, REPLY_PARTITION))
    if partition is not None and partition >= (count := partitions_of(topic)):
        raise Refused("reply_partition", f"reply partition {partition}, but {topic} has {count} partitions")
    return Address(topic, partition, default.headers)


def correlation(headers: Iterable[tuple[str, bytes | None]]) -> tuple[tuple[str, bytes], ...]:
    """The correlation headers as they came: opaque bytes under the sender's own name for them."""
    return tuple((name, value) for name, value in headers if name in CORRELATION and value is not None)


def trace(headers: Iterable[tuple[str, bytes | None]]) -> tuple[tuple[str, bytes], ...]:
    """The `traceparent` as it came; what is none is left out."""
    found = traceparent_in(headers)
    return ((HEADER, found.encode()),) if found else ()


def request_id_in(value: bytes | None) -> str:
    """The request id of a message that is otherwise broken; empty when that cannot be told either."""
    try:
        found = msgspec.json.decode(value or b"", type=_OnlyId).request_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return found if len(found) <= 256 else ""


class _OnlyId(msgspec.Struct):
    request_id: str = ""


def _check_topic(topic: str, topic_prefix: str, partitions_of: PartitionsOf) -> None:
    if not TOPIC_NAME.fullmatch(topic) or topic in {".", ".."}:
        raise Refused("reply_topic", f"reply topic {topic[:80]!r} is not a topic's name")
    if "__" in topic or topic in {topic_prefix + ours.name for ours in topics.TOPICS}:
        raise Refused("reply_topic", f"replies cannot go to {topic}: it is one of the system's own topics")
    if not partitions_of(topic):
        raise Refused("reply_topic", f"reply topic {topic} does not exist: create it first")


def _read_partition(value: bytes | None) -> int | None:
    """A reply partition: Spring's four big-endian bytes, or a decimal number as text."""
    if value is None:
        return None
    if len(value) == 4 and value[0] == 0:  # as text, its first byte would be a digit
        return int.from_bytes(value, "big")
    if value.isdigit() and len(value) <= 9:
        return int(value)
    raise Refused("reply_partition", f"reply partition {value[:20]!r} is neither a number nor four bytes")


def _first(headers: Iterable[tuple[str, bytes | None]], names: tuple[str, ...]) -> bytes | None:
    return next((value for name in names for key, value in headers if key == name and value is not None), None)
