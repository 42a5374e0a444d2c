from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from infra.platform.settings import Kafka, Settings
from serving.request.draft import Answered, RequestContext
from serving.worker.dispatcher import Dispatcher, Pipeline
from serving.worker.reply_cache import ReplyCache
from streams import topics
from streams.messages import DeadLetter, Impression, Recommended, RecommendReply, RecommendRequest, decode, encode

SETTINGS = Settings(kafka=Kafka(topic_prefix="x-", partitions=4))
NOW_MS = 1_700_000_000_000
TAKEN_DOWN: set[str] = set()


class Sent(list[tuple[str, Any, dict[str, Any]]]):
    """Keeps what is sent, in place of the way to the brokers."""

    def send(self, topic: str, value: bytes | None, **how: Any) -> None:
        self.append((topic, value, how))

    def send_outside(self, topic: str, value: bytes, **how: Any) -> None:
        self.append(("outside:" + topic, value, how))

    def to(self, topic: str) -> list[bytes]:
        return [value for name, value, _ in self if name == topic]


def record(user_id: str, *, partition: int | None = None, age_ms: int = 0, headers: Sequence[Any] = ()) -> Any:
    return SimpleNamespace(
        topic="x-recommend-requests",
        partition=topics.partition_of(user_id, 4) if partition is None else partition,
        offset=7,
        key=user_id.encode(),
        value=encode(RecommendRequest(f"r-{user_id}", user_id)),
        timestamp=NOW_MS - age_ms,
        headers=headers,
    )


def answer(batch: Sequence[RequestContext]) -> list[Answered]:
    """Answers everybody but mallory, who shows a bug."""
    if any(asked.request.user_id == "mallory" for asked in batch):
        raise ZeroDivisionError("a bug")
    items = (Recommended("item-1", 0, "trending"),)
    return [Answered(RecommendReply(asked.request.request_id, items), None) for asked in batch]


@pytest.fixture
def sent() -> Sent:
    return Sent()


@pytest.fixture
def desk(sent: Sent) -> Dispatcher:
    return Dispatcher(SETTINGS, sent, lambda topic: 4, "test", ReplyCache(60_000, 100), TAKEN_DOWN)  # type: ignore[arg-type]


def cook_of(finish: Callable[[Any], list[Answered]]) -> Pipeline:
    return Pipeline(list, finish)


def handle(
    desk: Dispatcher, records: Sequence[Any], finish: Callable[[Any], list[Answered]] = answer, now_ms: int = NOW_MS
) -> Exception | None:
    """Both halves of a batch, one after the other."""
    return desk.finish(desk.begin(records, Pipeline(list, finish), now_ms))


def replies(sent: Sent) -> dict[str, RecommendReply]:
    found = [decode(RecommendReply, value) for value in sent.to("recommend-replies")]
    return {reply.request_id: reply for reply in found}


def test_a_bug_harms_only_the_request_that_shows_it_and_is_handed_back(desk: Dispatcher, sent: Sent) -> None:
    bug = handle(desk, [record("ann"), record("mallory"), record("bob")], answer)
    assert isinstance(bug, ZeroDivisionError)
    found = replies(sent)
    assert [found[f"r-{user}"].error for user in ("ann", "bob")] == [None, None]
    assert "internal error" in (found["r-mallory"].error or "")
    [letter] = [decode(DeadLetter, value) for value in sent.to("dead-letters")]
    assert (letter.code, letter.offset, letter.topic) == ("bug", 7, "recommend-requests")


def test_a_foreign_request_is_forwarded_whole_with_its_time(desk: Dispatcher, sent: Sent) -> None:
    home = topics.partition_of("ann", 4)
    moved = record("ann", partition=(home + 1) % 4, age_ms=40, headers=[("correlation_id", b"c")])
    assert handle(desk, [moved], answer) is None
    [(topic, value, how)] = sent
    assert (topic, value) == ("recommend-requests", moved.value)
    assert (how["partition"], how["timestamp_ms"], how["key"]) == (home, NOW_MS - 40, b"ann")
    assert how["headers"][0] == ("correlation_id", b"c")
    assert how["headers"][1][0] == topics.FORWARDED


def test_a_request_is_forwarded_only_once(desk: Dispatcher, sent: Sent) -> None:
    home = topics.partition_of("ann", 4)
    moved = record("ann", partition=(home + 1) % 4, headers=[(topics.FORWARDED, b"x")])
    handle(desk, [moved], answer)
    assert list(replies(sent)) == ["r-ann"]


def test_the_pipeline_is_told_how_long_a_request_has_waited(desk: Dispatcher) -> None:
    waited: list[float] = []

    def note(batch: Sequence[RequestContext]) -> list[Answered]:
        waited.extend(asked.wait_ms for asked in batch)
        return answer(batch)

    handle(desk, [record("ann", age_ms=30), record("bob", age_ms=-30)], note)
    assert waited == [30.0, 0.0]


def test_what_is_not_supported_is_told_and_is_no_dead_letter(desk: Dispatcher, sent: Sent) -> None:
    asked = record("ann")
    asked.value = encode(RecommendRequest("r-ann", "ann", filter="x =="))
    handle(desk, [asked], answer)
    assert "filter: " in (replies(sent)["r-ann"].error or "")
    assert sent.to("dead-letters") == []


def headers(correlation: bytes) -> list[tuple[str, bytes]]:
    return [("correlation_id", correlation)]


def correlations(sent: Sent) -> list[tuple[bytes, bytes]]:
    """The correlation id and the content of every reply, in their order."""
    return [
        (dict(how["headers"])["correlation_id"], value) for topic, value, how in sent if topic == "recommend-replies"
    ]


def test_a_repeated_request_is_answered_once_and_replied_to_each_time(desk: Dispatcher, sent: Sent) -> None:
    """In one batch, in the next one while the first is under way, and afterwards; each with its own correlation id."""
    asked: list[str] = []

    def note(batch: Sequence[RequestContext]) -> list[Answered]:
        asked.extend(each.request.request_id for each in batch)
        return answer(batch)

    first = desk.begin(
        [record("ann", headers=headers(b"1")), record("ann", headers=headers(b"2"))], cook_of(note), NOW_MS
    )
    second = desk.begin(
        [record("ann", headers=headers(b"3")), record("bob", headers=headers(b"b"))], cook_of(note), NOW_MS
    )
    desk.finish(first)
    desk.finish(second)
    handle(desk, [record("ann", headers=headers(b"4"))], note)
    assert asked == ["r-ann", "r-bob"]
    found = correlations(sent)
    assert [correlation for correlation, _ in found] == [b"1", b"2", b"3", b"b", b"4"]
    assert len({reply for correlation, reply in found if correlation != b"b"}) == 1


def test_a_request_is_answered_anew_when_its_reply_is_forgotten(desk: Dispatcher, sent: Sent) -> None:
    handle(desk, [record("ann", headers=headers(b"1"))])
    handle(desk, [record("ann", age_ms=-60_000, headers=headers(b"2"))], answer, NOW_MS + 60_000)
    assert len(correlations(sent)) == 2
    assert len({encode(reply) for reply in replies(sent).values()}) == 1


def test_who_waits_for_a_request_that_shows_a_bug_is_told_as_well(desk: Dispatcher, sent: Sent) -> None:
    batch = [record("mallory", headers=headers(b"1")), record("mallory", headers=headers(b"2"))]
    assert isinstance(handle(desk, batch), ZeroDivisionError)
    assert [correlation for correlation, _ in correlations(sent)] == [b"1", b"2"]
    assert all(b"internal error" in reply for _, reply in correlations(sent))


def test_a_bug_in_the_first_half_harms_only_the_request_that_shows_it(desk: Dispatcher, sent: Sent) -> None:
    def begin(batch: Sequence[RequestContext]) -> list[RequestContext]:
        if any(asked.request.user_id == "eve" for asked in batch):
            raise KeyError("a bug")
        return list(batch)

    work = desk.begin([record("ann"), record("eve"), record("bob")], Pipeline(begin, answer), NOW_MS)
    assert isinstance(desk.finish(work), KeyError)
    found = replies(sent)
    assert [found[f"r-{user}"].error for user in ("ann", "bob")] == [None, None]
    assert "internal error" in (found["r-eve"].error or "")


def test_an_impression_is_sent_before_its_reply(desk: Dispatcher, sent: Sent) -> None:
    def shown(batch: Sequence[RequestContext]) -> list[Answered]:
        return [Answered(each.reply, Impression("r-ann", "ann", NOW_MS, "test", "v", ())) for each in answer(batch)]

    handle(desk, [record("ann")], shown)
    assert [topic for topic, _, _ in sent] == ["impressions", "recommend-replies"]


def test_a_repeated_reply_leaves_out_what_was_taken_down_since(desk: Dispatcher, sent: Sent) -> None:
    def two(batch: Sequence[RequestContext]) -> list[Answered]:
        items = (Recommended("item-1", 1, "trending"), Recommended("item-2", 2, "trending"))
        return [Answered(RecommendReply(asked.request.request_id, items), None) for asked in batch]

    handle(desk, [record("ann")], two)
    TAKEN_DOWN.add("item-1")
    try:
        handle(desk, [record("ann")], two)
    finally:
        TAKEN_DOWN.clear()
    first, again = [decode(RecommendReply, value) for value in sent.to("recommend-replies")]
    assert [item.item_id for item in first.items] == ["item-1", "item-2"]
    assert [(item.item_id, item.rank) for item in again.items] == [("item-2", 1)]
    assert again.degraded == ("repeated: without what was taken down since",)


def test_a_clock_that_is_ahead_makes_no_request_look_late(desk, sent):
    """As far ahead as it is known to be, and no farther: what was waited beside that counts."""
    waited: list[float] = []

    def look(batch: Sequence[RequestContext]) -> list[Answered]:
        waited.extend(asked.wait_ms for asked in batch)
        return answer(batch)

    desk.ahead_ms = 3_600_000
    handle(desk, [record("ann", age_ms=3_600_250), record("ben", age_ms=10)], look)
    assert sorted(waited) == [0.0, 250.0]
