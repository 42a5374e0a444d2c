from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from kafka.future import Future

from infra.platform.settings import Kafka, Settings
from infra.platform.tracing import Stage
from serving.request.parsing import ParsedRequest
from serving.request.pipeline import InFlightBatch
from serving.request.response_draft import Answered, RequestContext
from serving.worker import offset_tracker
from serving.worker.dispatcher import Dispatcher
from serving.worker.reply_cache import ReplyCache
from streams import topics
from streams.messages import DeadLetter, Impression, Recommended, RecommendReply, RecommendRequest, decode, encode
from tests.harness.system import with_section

SETTINGS = Settings(kafka=Kafka(topic_prefix="x-", partitions=4))
NOW_MS = 1_700_000_000_000
TAKEN_DOWN: set[str] = set()


class Sent(list[tuple[str, Any, dict[str, Any]]]):
    """Keeps what is sent, in place of the way to the brokers; and when it was waited for. All is written at once, or
    `waits` until it is `written`."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = False
        self.sent: list[offset_tracker.Sent] = []

    def written(self) -> None:
        for each in self.sent:
            each.future.success(None)

    @property
    def offsets(self) -> "Sent":
        return self

    def wait_for_open(self) -> None:
        self.waited_after = len(self)

    def send(self, topic: str, value: bytes | None, **how: Any) -> offset_tracker.Sent:
        self.append((topic, value, how))
        future = Future() if self.waits else Future().success(None)
        self.sent.append(offset_tracker.Sent(topic, future, again=lambda _: future))
        return self.sent[-1]

    def send_outside(self, topic: str, value: bytes, **how: Any) -> offset_tracker.Sent:
        return self.send("outside:" + topic, value, **how)

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


class Pipeline:
    """Answers everybody but eve and mallory, who show bugs in the first and in the second half. `waited_ms` are those
    of the requests that it has answered, by their ids."""

    served_by = "test"

    def __init__(self) -> None:
        self.items = (Recommended("item-1", 1, "trending"),)
        self.impression: Impression | None = None
        self.waited_ms: dict[str, float] = {}

    def begin(self, contexts: Sequence[RequestContext], live: None, now_ms: int) -> InFlightBatch:
        if any(context.request.user_id == "eve" for context in contexts):
            raise KeyError("a bug")
        return InFlightBatch(contexts, live, now_ms)

    def finish(self, batch: InFlightBatch) -> list[Answered]:
        if any(context.request.user_id == "mallory" for context in batch.contexts):
            raise ZeroDivisionError("a bug")
        ids = [context.request.request_id for context in batch.contexts]
        assert not self.waited_ms.keys() & ids, "each is answered once"
        self.waited_ms |= dict(zip(ids, (context.wait_ms for context in batch.contexts), strict=True))
        return [Answered(RecommendReply(request_id, self.items), self.impression) for request_id in ids]


@pytest.fixture
def sent() -> Sent:
    return Sent()


@pytest.fixture
def pipeline() -> Pipeline:
    return Pipeline()


@pytest.fixture
def reply_cache() -> ReplyCache[ParsedRequest]:
    return ReplyCache(60_000, 100)


@pytest.fixture
def dispatcher(sent: Sent, pipeline: Pipeline, reply_cache: ReplyCache[ParsedRequest]) -> Dispatcher:
    return Dispatcher(SETTINGS, pipeline, sent, lambda topic: 4, reply_cache, TAKEN_DOWN)  # type: ignore[arg-type]


def begin(dispatcher: Dispatcher, *records: Any, now_ms: int = NOW_MS) -> InFlightBatch:
    return dispatcher.begin([(record, 0.0) for record in records], None, now_ms)


def handle(dispatcher: Dispatcher, *records: Any, now_ms: int = NOW_MS) -> Exception | None:
    """Both halves of a batch, one after the other."""
    return dispatcher.finish(begin(dispatcher, *records, now_ms=now_ms))


def replies(sent: Sent) -> dict[str, RecommendReply]:
    found = [decode(RecommendReply, value) for value in sent.to("recommend-replies")]
    return {reply.request_id: reply for reply in found}


def test_a_bug_harms_only_the_request_that_shows_it_and_is_handed_back(dispatcher: Dispatcher, sent: Sent) -> None:
    bug = handle(dispatcher, record("ann"), record("mallory"), record("bob"))
    assert isinstance(bug, ZeroDivisionError)
    found = replies(sent)
    assert [found[f"r-{user}"].error for user in ("ann", "bob")] == [None, None]
    assert "internal error" in (found["r-mallory"].error or "")
    [letter] = [decode(DeadLetter, value) for value in sent.to("dead-letters")]
    assert (letter.code, letter.offset, letter.topic) == ("bug", 7, "recommend-requests")


def test_a_request_past_the_deadline_that_it_names_is_passed_over_while_too_many_wait(
    dispatcher: Dispatcher, sent: Sent
) -> None:
    late, unsaid, early = (record(name, age_ms=age_ms) for name, age_ms in (("ann", 6000), ("cy", 6000), ("bob", 400)))
    for each, deadline_ms in ((late, 5000), (unsaid, None), (early, 500)):
        user = each.key.decode()
        each.value = encode(RecommendRequest(f"r-{user}", user, deadline_ms=deadline_ms))
    dispatcher.is_behind = True
    handle(dispatcher, late, unsaid, early)
    assert list(replies(sent)) == ["r-cy", "r-bob"]
    dispatcher.is_behind = False
    handle(dispatcher, late)
    assert list(replies(sent)) == ["r-cy", "r-bob", "r-ann"]


def test_a_foreign_request_is_forwarded_whole_with_its_time_and_only_once(dispatcher: Dispatcher, sent: Sent) -> None:
    home = topics.partition_of("ann", 4)
    moved = record("ann", partition=(home + 1) % 4, age_ms=40, headers=[("correlation_id", b"c")])
    assert handle(dispatcher, moved) is None
    [(topic, value, how)] = sent
    assert (topic, value) == ("recommend-requests", moved.value)
    assert (how["partition"], how["timestamp_ms"], how["key"]) == (home, NOW_MS - 40, b"ann")
    assert how["headers"][0] == ("correlation_id", b"c")
    assert how["headers"][1][0] == topics.FORWARDED
    handle(dispatcher, record("ann", partition=(home + 1) % 4, headers=how["headers"]))
    assert list(replies(sent)) == ["r-ann"]


def test_a_request_that_was_forwarded_and_not_read_when_the_partitions_were_raised_is_forwarded_once_more(
    dispatcher: Dispatcher, pipeline: Pipeline, reply_cache: ReplyCache[ParsedRequest], sent: Sent
) -> None:
    homes = [topics.partition_of("ann", partitions) for partitions in (4, 5)]
    assert homes[0] != homes[1]
    handle(dispatcher, record("ann", partition=(homes[0] + 1) % 4))
    raised = with_section(SETTINGS, "kafka", partitions=5)
    more = Dispatcher(raised, pipeline, sent, lambda topic: 5, reply_cache, TAKEN_DOWN)  # type: ignore[arg-type]
    handle(more, record("ann", partition=homes[0], headers=sent[0][-1]["headers"]))
    assert [how["partition"] for _, _, how in sent] == homes
    handle(more, record("ann", partition=homes[0], headers=sent[1][-1]["headers"]))
    assert list(replies(sent)) == ["r-ann"], "and now it is answered where it is"


def test_the_pipeline_is_told_how_long_a_request_has_waited(dispatcher: Dispatcher, pipeline: Pipeline) -> None:
    handle(dispatcher, record("ann", age_ms=30), record("bob", age_ms=-30))
    assert pipeline.waited_ms == {"r-ann": 30.0, "r-bob": 0.0}


def test_what_is_not_supported_is_told_and_is_no_dead_letter(dispatcher: Dispatcher, sent: Sent) -> None:
    unsupported = record("ann")
    unsupported.value = encode(RecommendRequest("r-ann", "ann", filter="x =="))
    handle(dispatcher, unsupported)
    assert "filter, character 5, at the end: something is missing" in (replies(sent)["r-ann"].error or "")
    assert sent.to("dead-letters") == []


def headers(correlation: bytes) -> list[tuple[str, bytes]]:
    return [("correlation_id", correlation)]


def correlations(sent: Sent) -> list[tuple[bytes, bytes]]:
    """The correlation id and the content of every reply, in their order."""
    return [
        (dict(how["headers"])["correlation_id"], value) for topic, value, how in sent if topic == "recommend-replies"
    ]


def test_a_repeated_request_is_answered_once_and_replied_to_each_time(
    dispatcher: Dispatcher, pipeline: Pipeline, sent: Sent
) -> None:
    """In one batch, in the next one while the first is in flight, and afterwards; each with its own correlation id."""
    first = begin(dispatcher, record("ann", headers=headers(b"1")), record("ann", headers=headers(b"2")))
    second = begin(dispatcher, record("ann", headers=headers(b"3")), record("bob", headers=headers(b"b")))
    dispatcher.finish(first)
    dispatcher.finish(second)
    handle(dispatcher, record("ann", headers=headers(b"4")))
    assert list(pipeline.waited_ms) == ["r-ann", "r-bob"]
    found = correlations(sent)
    assert [correlation for correlation, _ in found] == [b"1", b"2", b"3", b"b", b"4"]
    assert len({reply for correlation, reply in found if correlation != b"b"}) == 1


def test_a_reply_that_is_on_its_way_is_not_sent_to_the_same_address_once_more(
    dispatcher: Dispatcher, sent: Sent
) -> None:
    """However many copies come while the brokers take none; who asks from elsewhere gets its own, and a copy that comes
    when it is written gets it once more: its client has not seen the first."""
    sent.waits = True
    copies = [record("ann", headers=headers(b"1")) for _ in range(5)]
    handle(dispatcher, *copies)
    handle(dispatcher, *copies, record("ann", headers=headers(b"2")))
    assert [correlation for correlation, _ in correlations(sent)] == [b"1", b"2"]
    sent.written()
    handle(dispatcher, copies[0])
    assert [correlation for correlation, _ in correlations(sent)] == [b"1", b"2", b"1"]


@pytest.mark.parametrize("ahead_ms", [3_600_000, -3_600_000])
def test_a_clock_that_jumps_gives_a_repeated_request_no_second_list(dispatcher, pipeline, sent, ahead_ms) -> None:
    handle(dispatcher, record("ann", headers=headers(b"1")))
    assert handle(dispatcher, record("ann", headers=headers(b"2")), now_ms=NOW_MS + ahead_ms) is None
    assert list(pipeline.waited_ms) == ["r-ann"]
    assert len(correlations(sent)) == 2 and len({reply for _, reply in correlations(sent)}) == 1


def test_a_request_is_answered_anew_when_its_reply_is_forgotten(
    dispatcher: Dispatcher, pipeline: Pipeline, sent: Sent, reply_cache: ReplyCache[ParsedRequest]
) -> None:
    handle(dispatcher, record("ann", headers=headers(b"1")))
    assert pipeline.waited_ms.pop("r-ann") == 0.0
    reply_cache.look(60_000)
    handle(dispatcher, record("ann", age_ms=-60_000, headers=headers(b"2")), now_ms=NOW_MS + 60_000)
    assert list(pipeline.waited_ms) == ["r-ann"]
    assert len(correlations(sent)) == 2
    assert len({encode(reply) for reply in replies(sent).values()}) == 1


def test_who_waits_for_a_request_that_shows_a_bug_is_told_as_well(dispatcher: Dispatcher, sent: Sent) -> None:
    batch = [record("mallory", headers=headers(b"1")), record("mallory", headers=headers(b"2"))]
    assert isinstance(handle(dispatcher, *batch), ZeroDivisionError)
    assert [correlation for correlation, _ in correlations(sent)] == [b"1", b"2"]
    assert all(b"internal error" in reply for _, reply in correlations(sent))


def test_a_bug_in_the_first_half_harms_only_the_request_that_shows_it(dispatcher: Dispatcher, sent: Sent) -> None:
    assert isinstance(handle(dispatcher, record("ann"), record("eve"), record("bob")), KeyError)
    found = replies(sent)
    assert [found[f"r-{user}"].error for user in ("ann", "bob")] == [None, None]
    assert "internal error" in (found["r-eve"].error or "")


def test_an_impression_is_sent_before_its_reply(dispatcher: Dispatcher, pipeline: Pipeline, sent: Sent) -> None:
    pipeline.impression = Impression("r-ann", "ann", NOW_MS, "test", "v", ())
    handle(dispatcher, record("ann"))
    assert [topic for topic, _, _ in sent] == ["impressions", "recommend-replies"]


def test_a_repeated_reply_leaves_out_what_was_taken_down_since(
    dispatcher: Dispatcher, pipeline: Pipeline, sent: Sent
) -> None:
    pipeline.items = (Recommended("item-1", 1, "trending"), Recommended("item-2", 2, "trending"))
    handle(dispatcher, record("ann"))
    TAKEN_DOWN.add("item-1")
    try:
        handle(dispatcher, record("ann"))
    finally:
        TAKEN_DOWN.clear()
    first, again = [decode(RecommendReply, value) for value in sent.to("recommend-replies")]
    assert [item.item_id for item in first.items] == ["item-1", "item-2"]
    assert [(item.item_id, item.rank) for item in again.items] == [("item-2", 1)]
    assert again.degraded == ("repeated: without what was taken down since",)


def test_a_clock_that_is_ahead_makes_no_request_look_late(dispatcher, pipeline):
    """As far ahead as it is known to be, and no farther: what was waited beside that counts."""
    dispatcher.ahead_ms = 3_600_000
    handle(dispatcher, record("ann", age_ms=3_600_250), record("ben", age_ms=10))
    assert pipeline.waited_ms == {"r-ann": 250.0, "r-ben": 0.0}


def test_a_request_can_be_followed_by_its_trace_through_reply_and_log_and_no_user_is_told(
    dispatcher: Dispatcher, sent: Sent
) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    header = ("traceparent", f"00-{trace}-00f067aa0ba902b7-01".encode())
    with structlog.testing.capture_logs() as lines:
        handle(dispatcher, record("ann", headers=[header]), record("bob"))
    assert [how["headers"] for _, _, how in sent] == [[header], []]
    told = [line for line in lines if line["event"] == "answered"]
    assert [(line["trace_id"], line["offset"], line["log_level"]) for line in told] == [
        (trace, 7, "debug"),
        ("", 7, "debug"),
    ]
    assert not any(user in str(line) for line in told for user in ("ann", "bob"))


class Traced(list[tuple[str, str, list[str], dict[str, Any]]]):
    """Keeps what is told, in place of a tracer."""

    def wants(self, traceparent: str) -> bool:
        return True

    def tell(self, name: str, traceparent: str, stages: Sequence[Stage], attributes: dict[str, Any]) -> None:
        assert all(each.start_s <= each.end_s for each in stages)
        assert [each.start_s for each in stages] == sorted(each.start_s for each in stages)
        self.append((name, traceparent, [each.name for each in stages], attributes))


def test_of_each_request_that_is_answered_its_stages_are_told_and_no_id_of_anybody(
    sent: Sent, pipeline: Pipeline, reply_cache: ReplyCache[ParsedRequest]
) -> None:
    traced = Traced()
    dispatcher = Dispatcher(SETTINGS, pipeline, sent, lambda topic: 4, reply_cache, TAKEN_DOWN, traced)  # type: ignore[arg-type]
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    batch = begin(dispatcher, record("ann", headers=[("traceparent", trace.encode())]), record("bob"))
    with batch.stages("hydrate"), batch.stages("rank"):
        pass
    batch.stages.spent.sort(key=lambda stage: stage.start_s)
    dispatcher.finish(batch)
    assert [(name, parent, stages) for name, parent, stages, _ in traced] == [
        ("recommend", trace, ["queue", "hydrate", "rank", "send"]),
        ("recommend", "", ["queue", "hydrate", "rank", "send"]),
    ]
    assert traced[0][3]["messaging.kafka.offset"] == 7 and traced[0][3]["nextwatch.items"] == 1
    assert not any(each in str(about) for *_, about in traced for each in ("ann", "bob", "r-", "item-"))
    handle(dispatcher, record("mallory"))
    assert len(traced) == 2, "what could not be answered is no answer's stages"


def test_the_replies_of_a_batch_are_sent_behind_the_acknowledgement_of_its_impressions(
    dispatcher: Dispatcher, sent: Sent, pipeline: Pipeline
) -> None:
    pipeline.impression = Impression("r", "ann", NOW_MS, "test", "v", ())
    handle(dispatcher, record("ann"), record("bob"))
    assert [topic for topic, _, _ in sent] == ["impressions"] * 2 + ["recommend-replies"] * 2
    assert sent.waited_after == 2
