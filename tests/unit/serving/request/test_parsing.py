import json
import struct
from types import SimpleNamespace
from typing import Any

import pytest

from infra.platform.settings import Kafka, Serving, Settings
from serving.request.parsing import ParsedRequest, Unsupported, parse_request
from streams.messages import RecommendRequest, encode

SETTINGS = Settings(kafka=Kafka(topic_prefix="x-"), serving=Serving(max_k=50))
THEIRS = {"x-recommend-replies": 4, "theirs": 3}
OURS = {"x-watch-events": 4, "x-recommend-requests": 4, "__consumer_offsets": 50}
GOOD = encode(RecommendRequest("r1", "ann", k=5))


def parse(value: bytes | None = GOOD, *headers: tuple[str, bytes]) -> ParsedRequest:
    record: Any = SimpleNamespace(value=value, headers=headers)
    return parse_request(record, SETTINGS, lambda topic: (THEIRS | OURS).get(topic, 0))


def test_a_plain_request_is_answered_on_the_default_topic() -> None:
    parsed = parse()
    assert parsed.refused is None
    assert parsed.request == RecommendRequest("r1", "ann", k=5)
    assert parsed.address is not None
    assert parsed.address == ("x-recommend-replies", None, ())


@pytest.mark.parametrize(
    ("topic", "partition", "correlation"),
    [
        ("reply_topic", "reply_partition", "correlation_id"),
        ("kafka_replyTopic", "kafka_replyPartition", "kafka_correlationId"),
    ],
)
def test_plain_and_spring_headers_are_understood_and_correlation_is_echoed_as_it_came(
    topic: str, partition: str, correlation: str
) -> None:
    opaque = bytes(range(16))
    parsed = parse(GOOD, (topic, b"theirs"), (partition, struct.pack(">i", 2)), (correlation, opaque))
    assert parsed.refused is None
    assert parsed.address == ("theirs", 2, ((correlation, opaque),))


def test_a_reply_partition_may_be_text() -> None:
    parsed = parse(GOOD, ("reply_topic", b"theirs"), ("reply_partition", b"1"))
    assert parsed.address is not None
    assert parsed.address.partition == 1


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ([("reply_topic", b"x-watch-events")], "reply_topic"),
        ([("reply_topic", b"x-recommend-requests")], "reply_topic"),
        ([("reply_topic", b"__consumer_offsets")], "reply_topic"),
        ([("reply_topic", b"not a topic")], "reply_topic"),
        ([("reply_topic", b"missing")], "reply_topic"),
        ([("reply_topic", b"\xff\xfe")], "reply_topic"),
        ([("reply_topic", b"theirs"), ("reply_partition", b"3")], "reply_partition"),
        ([("reply_topic", b"theirs"), ("reply_partition", struct.pack(">i", -1))], "reply_partition"),
        ([("reply_topic", b"theirs"), ("reply_partition", b"two")], "reply_partition"),
        ([("kafka_replyPartition", struct.pack(">i", 9))], "reply_partition"),
    ],
)
def test_an_impossible_reply_address_is_refused_on_the_default_topic(
    headers: list[tuple[str, bytes]], code: str
) -> None:
    parsed = parse(GOOD, *headers)
    assert parsed.refused is not None
    assert parsed.refused.code == code
    assert parsed.address is not None
    assert parsed.address.topic == "x-recommend-replies"
    assert parsed.request_id == "r1"


@pytest.mark.parametrize(
    ("value", "says", "request_id"),
    [
        (b"{not json", "JSON", ""),
        (b'{"request_id": "r1"}', "user_id", "r1"),
        (b'{"request_id": "r1", "user_id": 7}', "user_id", "r1"),
        (b'{"request_id": "r1", "user_id": "", "k": 3}', "user_id", "r1"),
        (b'{"request_id": "r1", "user_id": "ann", "k": 0}', "k", "r1"),
        (b'{"request_id": "r1", "user_id": "ann", "k": "many"}', "k", "r1"),
        (b"null", "null", ""),
        (None, "no value", ""),
    ],
)
def test_a_broken_request_says_what_is_wrong_and_whose_it_is(value: bytes | None, says: str, request_id: str) -> None:
    parsed = parse(value, ("correlation_id", b"c"))
    assert parsed.refused is not None
    assert not isinstance(parsed.refused, Unsupported)
    assert says in str(parsed.refused)
    assert parsed.request_id == request_id
    assert parsed.address is not None


def test_nobody_is_told_when_neither_request_nor_correlation_id_is_known() -> None:
    assert parse(b"{not json").address is None


def test_a_request_over_the_size_limit_is_refused() -> None:
    big = json.dumps({"request_id": "r1", "user_id": "ann", "exclude": ["x" * 250] * 5000}).encode()
    parsed = parse(big)
    assert parsed.refused is not None
    assert parsed.refused.code == "too_large"


@pytest.mark.parametrize(("change", "says"), [({"k": 51}, "at most 50"), ({"filter": "duration < 60"}, "duration_s")])
def test_what_this_server_does_not_do_is_refused_without_being_broken(change: dict[str, Any], says: str) -> None:
    parsed = parse(encode(RecommendRequest("r1", "ann", **change)))
    assert isinstance(parsed.refused, Unsupported)
    assert says in str(parsed.refused)
    assert parsed.request_id == "r1"


TRACE = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_a_trace_goes_back_as_it_came_and_its_id_is_known() -> None:
    parsed = parse(GOOD, ("traceparent", TRACE), ("correlation_id", b"c"))
    assert parsed.address is not None
    assert parsed.address.headers == (("correlation_id", b"c"), ("traceparent", TRACE))
    assert parsed.trace_id == "4bf92f3577b34da6a3ce929d0e0e4736" and parse().trace_id == ""


@pytest.mark.parametrize(
    "broken",
    [b"", TRACE.upper(), TRACE[:-1], TRACE + b"0", b"ff" + TRACE[2:], TRACE[:3] + b"0" * 32 + TRACE[35:], b"\xff" * 55],
)
def test_a_trace_that_is_none_is_left_out_and_the_request_answered(broken: bytes) -> None:
    parsed = parse(GOOD, ("traceparent", broken))
    assert parsed.refused is None and parsed.address is not None
    assert (parsed.address.headers, parsed.trace_id) == ((), "")


def test_a_trace_is_no_address() -> None:
    assert parse(b"{}", ("traceparent", TRACE)).address is None
