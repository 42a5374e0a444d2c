"""The client against a real broker and a server that answers as each test says."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from confluent_kafka import Producer
from kafka.errors import KafkaError

from infra.local.broker import start_broker
from infra.platform.kafka_clients import client_options
from infra.platform.settings import Kafka, Settings
from nextwatch_client import (
    RecommendClient,
    RecommendReply,
    RecommendRequest,
    RequestFailed,
    RequestTimeout,
    TopicMissing,
)
from nextwatch_client import client as client_module
from streams import messages
from streams.kafka.follow import read_to_end
from streams.messages import encode
from streams.topics import RECOMMEND_REQUESTS, create_topics
from tests.conftest import environ_for
from tests.harness.system import stopping, wait_until
from tests.unit.clients.responder import echo, responding

pytestmark = pytest.mark.system

WAIT_S = 20.0


@pytest.fixture
def client(topics: Kafka) -> Iterator[RecommendClient]:
    with RecommendClient(client_options(topics)) as client:
        yield client


def test_all_that_is_asked_for_travels_with_the_request(topics: Kafka, client: RecommendClient):
    with responding(topics) as seen:
        reply = client.recommend(
            "ann", k=3, exclude=["a"], filter="duration_s < 600", request_id="mine", timeout_s=WAIT_S
        )
    assert reply.request_id == "mine"
    assert [request for _, request in seen] == [
        messages.RecommendRequest("mine", "ann", 3, None, "duration_s < 600", ("a",), round(WAIT_S * 1000))
    ]


def test_a_lost_reply_is_asked_for_again_with_the_same_ids(topics: Kafka, client: RecommendClient):
    with responding(topics, lambda request, copy: [] if copy == 1 else echo(request, copy)) as seen:
        reply = client.recommend("ann", request_id="mine", timeout_s=4.0, retries=3)
    assert reply == RecommendReply("mine", version="copy 2")
    (first, asked), (second, again), *_ = seen
    assert first == second, "one correlation id"
    assert (asked.request_id, again.request_id) == ("mine", "mine")
    assert again.deadline_ms <= 3000, "what is left of four seconds after the first quarter"


def test_a_trace_travels_with_a_request_also_when_it_is_sent_again(topics: Kafka, client: RecommendClient):
    with responding(topics, lambda request, copy: [] if copy == 1 else echo(request, copy)):
        client.recommend("ann", request_id="traced", timeout_s=4.0, retries=3, traceparent="00-a-b-01")
        client.recommend("ann", request_id="untraced", timeout_s=4.0, retries=3)
    traces: dict[str, list[bytes | None]] = {"traced": [], "untraced": []}
    for record in read_to_end(topics, RECOMMEND_REQUESTS):
        request_id = messages.decode(messages.RecommendRequest, record.value).request_id
        traces.setdefault(request_id, []).append(dict(record.headers).get("traceparent"))
    assert len(traces["traced"]) > 1 and set(traces["traced"]) == {b"00-a-b-01"}
    assert len(traces["untraced"]) > 1 and set(traces["untraced"]) == {None}


def test_it_is_asked_as_often_as_it_was_told_and_no_more(topics: Kafka, client: RecommendClient):
    with responding(topics, lambda request, copy: []) as seen:
        with pytest.raises(RequestTimeout, match="no reply to request"):
            client.recommend("ann", timeout_s=9.0, retries=2)
        wait_until(lambda: len(seen) >= 3, f"the request and two copies, {len(seen)} seen", WAIT_S)
        time.sleep(0.2)
    assert len(seen) == 3


def test_of_two_replies_the_first_counts_and_the_second_harms_nobody(topics: Kafka, client: RecommendClient):
    twice = [encode(RecommendReply("x", version=version)) for version in ("first", "second")]
    with responding(topics, lambda request, copy: twice):
        for _ in range(3):
            assert client.recommend("ann", timeout_s=WAIT_S).version == "first"


def test_a_thousand_at_once_are_all_answered_and_nothing_is_kept(topics: Kafka, client: RecommendClient):
    requests = [RecommendRequest(f"r{number}", f"user-{number}") for number in range(1000)]
    with responding(topics):
        began = time.perf_counter()
        replies = client.recommend_many(requests, timeout_s=60, retries=2)
        print(f"1,000 at once, sync: {time.perf_counter() - began:.2f} s")
    assert [reply.request_id for reply in replies] == [request.request_id for request in requests]
    assert client.pending == 0


def test_threads_share_a_client(topics: Kafka, client: RecommendClient):
    replies: dict[str, RecommendReply] = {}

    def ask(user: str) -> None:
        replies[user] = client.recommend(user, request_id=f"of {user}", timeout_s=WAIT_S)

    with responding(topics):
        threads = [threading.Thread(daemon=True, target=ask, args=(f"user-{number}",)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert {user: reply.request_id for user, reply in replies.items()} == {user: f"of {user}" for user in replies}
    assert len(replies) == 20


@pytest.mark.parametrize(
    ("reply", "says"),
    [(b"{", "not JSON"), (encode(RecommendReply("r", version="v" * 1000)), "over the limit of 500 bytes")],
)
def test_a_reply_that_cannot_be_read_or_is_too_large_fails_its_request_alone(topics: Kafka, reply: bytes, says: str):
    def answer(request: messages.RecommendRequest, copy: int) -> list[bytes]:
        return [reply] if request.user_id == "bad" else echo(request, copy)

    with responding(topics, answer), RecommendClient(replace(client_options(topics), max_reply_bytes=500)) as client:
        with pytest.raises(RequestFailed, match=says):
            client.recommend("bad", timeout_s=WAIT_S)
        assert client.recommend("good", request_id="x", timeout_s=WAIT_S).request_id == "x"


def test_a_batch_that_cannot_be_read_is_left_behind_and_the_replies_behind_it_are_read(
    topics: Kafka, client: RecommendClient, monkeypatch: pytest.MonkeyPatch
):
    """lz4 is a package that the client does not have."""
    stranger = Producer({"bootstrap.servers": topics.bootstrap, "compression.type": "lz4", "linger.ms": 100})
    monkeypatch.setattr(client_module, "BUSY_PAUSE_S", 1.0)  # so that the reply is there when the client looks

    def answer(request: messages.RecommendRequest, copy: int) -> list[bytes]:
        for place in range(topics.partitions * int(request.user_id)):
            name = f"{topics.topic_prefix}recommend-replies"
            stranger.produce(name, b"x" * 1000, partition=place % topics.partitions)
        assert stranger.flush(WAIT_S) == 0
        return echo(request, copy)

    with responding(topics, answer):
        for messages_in_it in ("1", "7", "100"):
            reply = client.recommend(messages_in_it, request_id="x" + messages_in_it, timeout_s=WAIT_S, retries=0)
            assert reply.request_id == "x" + messages_in_it


def test_whoever_stops_waiting_leaves_nothing_behind(topics: Kafka, client: RecommendClient):
    future = client.submit(RecommendRequest("r", "ann"), [0.1])
    future.cancel()
    with pytest.raises(TimeoutError):
        client.recommend("ann", timeout_s=0.1)
    with pytest.raises(TimeoutError):
        client.recommend_many([RecommendRequest(f"r{number}", "ann") for number in range(10)], timeout_s=0.1)
    assert client.pending == 0


def test_a_client_that_is_closed_fails_whoever_waits_and_whoever_comes(topics: Kafka):
    with RecommendClient(client_options(topics)) as client:
        waiting = client.submit(RecommendRequest("r", "ann"))
    with pytest.raises(RequestFailed, match="the client is closed"):
        waiting.result(0)
    with pytest.raises(RequestFailed, match="the client is closed"):
        client.recommend("ann")


def test_without_topics_it_does_not_start(kafka_settings: Settings):
    with pytest.raises(TopicMissing, match="topics --create"):
        RecommendClient(client_options(kafka_settings.kafka))


def test_without_a_broker_it_does_not_start(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(client_module, "START_S", 1.0)
    began = time.monotonic()
    with pytest.raises(KafkaError):
        RecommendClient(client_options(Kafka(bootstrap="127.0.0.1:1")))
    assert time.monotonic() - began < 10


def test_a_broker_that_goes_away_is_named_by_the_time_out_and_nobody_hangs(make_settings, monkeypatch):
    def alive() -> set[threading.Thread]:
        return set(threading.enumerate())

    monkeypatch.setattr(client_module, "SEND_S", 6.0)
    before = alive()
    settings = make_settings(kafka={"partitions": 1})
    with stopping(start_broker(settings, environ=environ_for("noida"))) as broker:
        kafka = settings.kafka.model_copy(update={"bootstrap": broker.bootstrap})
        create_topics(kafka)
        with RecommendClient(client_options(kafka)) as client:
            broker.process.stop()
            began = time.monotonic()
            with pytest.raises(RequestTimeout, match=rf"nor have the brokers acknowledged.*{broker.bootstrap}"):
                client.recommend("ann", timeout_s=0.5)
            assert time.monotonic() - began < 8
        wait_until(lambda: not alive() - before, "the closed client's threads to end", WAIT_S)
