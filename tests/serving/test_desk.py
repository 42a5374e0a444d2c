from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from infra.settings import Kafka, Settings
from serving.desk import Cook, Desk
from serving.draft import Answered, Asked
from serving.repeats import Repeats
from streams import topics
from streams.messages import DeadLetter, Recommended, RecommendReply, RecommendRequest, decode, encode

SETTINGS = Settings(kafka=Kafka(topic_prefix="x-", partitions=4))
NOW_MS = 1_700_000_000_000


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


def answer(batch: Sequence[Asked]) -> list[Answered]:
    """Answers everybody but mallory, who shows a bug."""
    if any(asked.request.user_id == "mallory" for asked in batch):
        raise ZeroDivisionError("a bug")
    items = (Recommended("item-1", 0, "trending"),)
    return [Answered(RecommendReply(asked.request.request_id, items), None) for asked in batch]


@pytest.fixture
def sent() -> Sent:
    return Sent()


@pytest.fixture
def desk(sent: Sent) -> Desk:
    return Desk(SETTINGS, sent, lambda topic: 4, "test", Repeats(60_000, 100))  # type: ignore[arg-type]


def handle(
    desk: Desk, records: Sequence[Any], finish: Callable[[Any], list[Answered]] = answer, now_ms: int = NOW_MS
) -> Exception | None:
    """Both halves of a batch, one after the other."""
    return desk.finish(desk.begin(records, Cook(list, finish), now_ms))


def replies(sent: Sent) -> dict[str, RecommendReply]:
    found = [decode(RecommendReply, value) for value in sent.to("recommend-replies")]
    return {reply.request_id: reply for reply in found}


def test_a_bug_harms_only_the_request_that_shows_it_and_is_handed_back(desk: Desk, sent: Sent) -> None:
    bug = handle(desk, [record("ann"), record("mallory"), record("bob")], answer)
    assert isinstance(bug, ZeroDivisionError)
    found = replies(sent)
    assert [found[f"r-{user}"].error for user in ("ann", "bob")] == [None, None]
    assert "internal error" in (found["r-mallory"].error or "")
    [letter] = [decode(DeadLetter, value) for value in sent.to("dead-letters")]
    assert (letter.code, letter.offset, letter.topic) == ("bug", 7, "recommend-requests")


def test_a_foreign_request_is_forwarded_whole_with_its_time(desk: Desk, sent: Sent) -> None:
    home = topics.partition_of("ann", 4)
    moved = record("ann", partition=(home + 1) % 4, age_ms=40, headers=[("correlation_id", b"c")])
    assert handle(desk, [moved], answer) is None
    [(topic, value, how)] = sent
    assert (topic, value) == ("recommend-requests", moved.value)
    assert (how["partition"], how["timestamp_ms"], how["key"]) == (home, NOW_MS - 40, b"ann")
    assert how["headers"][0] == ("correlation_id", b"c")
    assert how["headers"][1][0] == topics.FORWARDED


def test_a_request_is_forwarded_only_once(desk: Desk, sent: Sent) -> None:
    home = topics.partition_of("ann", 4)
    moved = record("ann", partition=(home + 1) % 4, headers=[(topics.FORWARDED, b"x")])
    handle(desk, [moved], answer)
    assert list(replies(sent)) == ["r-ann"]


def test_the_pipeline_is_told_how_long_a_request_has_waited(desk: Desk) -> None:
    waited: list[float] = []

    def note(batch: Sequence[Asked]) -> list[Answered]:
        waited.extend(asked.wait_ms for asked in batch)
        return answer(batch)

    handle(desk, [record("ann", age_ms=30), record("bob", age_ms=-30)], note)
    assert waited == [30.0, 0.0]


def test_what_is_not_supported_is_told_and_is_no_dead_letter(desk: Desk, sent: Sent) -> None:
    asked = record("ann")
    asked.value = encode(RecommendRequest("r-ann", "ann", filter="x =="))
    handle(desk, [asked], answer)
    assert "filter: " in (replies(sent)["r-ann"].error or "")
    assert sent.to("dead-letters") == []
