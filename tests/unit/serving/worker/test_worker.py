"""The serving process against a real broker and a real Milvus Lite: what goes into topics, and what comes back."""

import contextlib
import shutil
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import isnan
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic

from indexer.collection import Index
from indexer.schema import collection_name
from infra.local.broker import Broker
from infra.local.milvus_server import start_milvus
from infra.platform import metrics
from infra.platform.kafka_clients import client_options, kafka_python_options
from infra.platform.run_files import fill_in
from infra.platform.settings import Kafka, Serving, Settings
from models.release.bundle import Manifest
from nextwatch_client import RecommendClient, RequestTimeout
from serving.state.feed import Chunk, Feed
from serving.worker.worker import Worker, run_serving
from streams import topics
from streams.epochs import claim
from streams.erased_users import USER, fingerprint, hash_of
from streams.messages import (
    DeadLetter,
    Impression,
    IndexReady,
    Item,
    ItemVector,
    RecommendReply,
    RecommendRequest,
    Release,
    ServerState,
    Trending,
    UserErased,
    UserHistory,
    decode,
    encode,
)
from streams.topics import open_admin
from tests.conftest import milvus_answers
from tests.harness.beside import beside as in_thread
from tests.harness.needs import require_kafka
from tests.harness.system import stopping, wait_until, with_section
from tests.unit.serving.worlds import CREATED_MS, ITEMS, history, load

pytestmark = pytest.mark.system

WAIT_S = 30.0
PARTITIONS = 3


@dataclass
class System:
    """A running serving worker and what a test needs to speak to it."""

    settings: Settings
    producer: Any
    client: RecommendClient
    index: Index
    bundles: Sequence[Manifest]
    readers: list[Any] = field(default_factory=list)

    def send(self, topic: str, value: bytes | None, key: str, **how: Any) -> None:
        future = self.producer.send(self.name(topic), value, key=key.encode(), **how)
        future.get(timeout=WAIT_S)

    def name(self, topic: str) -> str:
        return self.settings.kafka.topic_prefix + topic

    def tell(self, user: UserHistory) -> None:
        """Publish a history, as the history worker would, and wait until an answer knows of it."""
        self.send(topics.USER_HISTORIES, encode(user), user.user_id, partition=self.home(user.user_id))
        self.until(lambda: self.client.recommend(user.user_id).history_watches == len(user.watches))

    def home(self, user_id: str) -> int:
        return topics.partition_of(user_id, PARTITIONS)

    def announce(self, manifest: Manifest) -> None:
        ready = IndexReady(manifest.version, collection_name("items_", manifest.version), manifest.items, CREATED_MS)
        self.send(topics.RELEASES, encode(ready), "index")
        self.until(lambda: self.client.recommend("somebody").version == manifest.version)

    def until(self, true: Callable[[], bool]) -> None:
        wait_until(true, "what the test waits for", WAIT_S, every_s=0.02)

    def reading(self, topic: str) -> Any:
        """A consumer at the end of all partitions of a topic, given with its prefix."""
        consumer = KafkaConsumer(**kafka_python_options(self.settings.kafka))
        places = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))]
        consumer.assign(places)
        for place, end in consumer.end_offsets(places).items():
            consumer.seek(place, end)
        self.readers.append(consumer)
        return consumer

    def ask(self, request: RecommendRequest, *headers: tuple[str, bytes], partition: int | None = None) -> None:
        """A request by hand, on the partition of its user if no other is given."""
        place = self.home(request.user_id) if partition is None else partition
        how = {"partition": place, "headers": list(headers)}
        self.send(topics.RECOMMEND_REQUESTS, encode(request), request.user_id, **how)

    def make_topic(self, topic: str, partitions: int = 1, **configs: str) -> str:
        """A topic of a client's, as serving learns of it; its name."""
        name = self.name(topic)
        with open_admin(self.settings.kafka) as admin:
            admin.create_topics([NewTopic(name, partitions, 1, topic_configs=configs)])
            admin.wait_for_topics([name])
        time.sleep(0.6)  # serving asks the brokers for topics that it does not know at most twice a second
        return name

    def close(self) -> None:
        for consumer in self.readers:
            consumer.close()


@pytest.fixture(scope="module")
def system(
    kafka: str,
    milvus_uri: str,
    tmp_path_factory: pytest.TempPathFactory,
    bundles_dir: Path,
    bundles: Sequence[Manifest],
) -> Iterator[System]:
    data_dir = tmp_path_factory.mktemp("serving")
    shutil.copytree(bundles_dir, data_dir / "bundles")
    settings = fill_in(
        Settings(
            data_dir=data_dir,
            kafka=Kafka(topic_prefix=f"s{uuid.uuid4().hex[:8]}-", partitions=PARTITIONS),
            # busy machines answer late
            serving=Serving(first="index", max_k=60, heartbeat_s=0.5, deadline_s=20.0, search_s=10.0),
        ),
        kafka,
        milvus_uri,
    )
    topics.create_topics(settings.kafka)
    index = Index(settings.milvus)
    for manifest in bundles:
        fill(index, load(bundles_dir, manifest))
    producer = KafkaProducer(**kafka_python_options(settings.kafka))
    with serving(settings), RecommendClient(client_options(settings.kafka)) as client:
        running = System(settings, producer, client, index, bundles)
        furnish(running)
        yield running
        running.close()
    producer.close()
    for manifest in bundles:
        index.drop(manifest.version)
    index.close()


def fill(index: Index, bundle: Any) -> None:
    version = bundle.manifest.version
    index.drop(version)
    index.create(version, bundle.model.dim)
    index.upsert(version, bundle.model.item_ids, bundle.model.item_vectors(), [0] * len(bundle.model.item_ids))
    index.flush(version)
    index.mark(version, "whole")


@contextlib.contextmanager
def serving(settings: Settings) -> Iterator[None]:
    """A worker while the block runs, stopped cleanly."""
    stop = threading.Event()
    thread = threading.Thread(daemon=True, target=run_serving, args=(settings, stop))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=WAIT_S)
    assert not thread.is_alive()


def furnish(system: System) -> None:
    """A catalogue, what is trending, and the first release live."""
    for item_id in ITEMS:
        system.send(topics.ITEMS, encode(Item(item_id, duration_s=60.0)), item_id)
    counts = tuple((item_id, 50.0 - at) for at, item_id in enumerate(ITEMS))
    system.send(topics.TRENDING, encode(Trending("global", 0, CREATED_MS, 3600.0, counts)), "global/0")
    system.announce(system.bundles[0])


def items_of(reply: RecommendReply) -> list[str]:
    return [item.item_id for item in reply.items]


def next_record(consumer: Any) -> Any:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        for records in consumer.poll(100, max_records=1).values():
            return records[0]
    raise AssertionError("no record in time")


def test_an_unknown_user_is_answered_by_the_towers(system: System) -> None:
    reply = system.client.recommend("nobody", k=5, timeout_s=WAIT_S)
    assert {item.source for item in reply.items} == {"two_tower"} and len(reply.items) == 5
    assert all(item.expected_watch_s is not None for item in reply.items)
    assert reply.error is None and reply.degraded == ()


def test_a_history_changes_the_reply_and_is_never_recommended(system: System) -> None:
    system.tell(history("ann", "item-3", "item-4"))
    reply = system.client.recommend("ann", k=30)
    assert reply.history_event_ms == CREATED_MS
    assert {item.source for item in reply.items} == {"two_tower"}
    assert not {"item-3", "item-4"} & set(items_of(reply))
    assert reply.degraded == ()


def test_a_forgotten_user_is_answered_as_a_new_one_also_before_the_history_is_gone(system: System) -> None:
    system.tell(history("gone", "item-3", "item-4"))
    forgotten = UserErased(time.time_ns() // 1_000_000, fingerprint(b""))
    system.send(topics.FORGOTTEN, encode(forgotten), USER + hash_of("gone", b"").hex())
    system.until(lambda: system.client.recommend("gone").history_watches == 0)


def test_a_reply_topic_that_takes_nothing_holds_up_nobody_else(system: System) -> None:
    theirs = system.make_topic("replies-without-replicas", **{"min.insync.replicas": "2"})
    system.ask(RecommendRequest("to-nowhere", "jvm", k=2), ("reply_topic", theirs.encode()))
    for number in range(300):
        assert system.client.recommend(f"other-{number}", k=1, timeout_s=4.0, retries=0).items


def test_a_reply_topic_that_is_deleted_between_two_requests_holds_up_nobody_else(system: System) -> None:
    theirs = system.make_topic("replies-deleted")
    replies = system.reading(theirs)
    system.ask(RecommendRequest("before", "jvm", k=2), ("reply_topic", theirs.encode()))
    assert next_record(replies).key == b"before"
    replies.close()
    with open_admin(system.settings.kafka) as admin:
        admin.delete_topics([theirs])
    for number in range(30):  # of the first ones the producer learns that the topic is gone
        system.ask(RecommendRequest(f"after-{number}", "jvm", k=2), ("reply_topic", theirs.encode()))
        assert system.client.recommend(f"other-{number}", k=1, timeout_s=4.0, retries=0).items
        time.sleep(0.1)


def test_many_requests_in_flight_each_get_their_own_reply(system: System) -> None:
    requests = [RecommendRequest(f"many-{number}", f"user-{number}", k=3) for number in range(200)]
    replies = system.client.recommend_many(requests, timeout_s=WAIT_S)
    assert [reply.request_id for reply in replies] == [request.request_id for request in requests]
    assert all(len(reply.items) == 3 for reply in replies)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (b"{broken", "JSON"),
        (b'{"request_id": "r1"}', "user_id"),
        (b'{"request_id": "r1", "user_id": "ann", "k": "x"}', "k"),
    ],
)
def test_a_broken_request_gets_an_error_reply_and_goes_to_the_dead_letters(
    system: System, value: bytes, says: str
) -> None:
    replies, dead_letters = (system.reading(system.name(topic)) for topic in ("recommend-replies", "dead-letters"))
    correlation = uuid.uuid4().bytes
    system.send(topics.RECOMMEND_REQUESTS, value, "ann", headers=[("correlation_id", correlation)])
    record = next_record(replies)
    assert dict(record.headers)["correlation_id"] == correlation
    reply = decode(RecommendReply, record.value)
    assert says in (reply.error or "")
    assert reply.items == ()
    letter = decode(DeadLetter, next_record(dead_letters).value)
    assert letter.value == value
    assert letter.topic == "recommend-requests"


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (RecommendRequest("too-many", "ann", k=61), "at most 60"),
        (RecommendRequest("filtered", "ann", filter="duration < 60"), "duration_s"),
    ],
)
def test_what_is_not_supported_is_refused_with_the_reason(
    system: System, request_: RecommendRequest, says: str
) -> None:
    [reply] = system.client.recommend_many([request_], timeout_s=WAIT_S)
    assert reply.request_id == request_.request_id
    assert says in (reply.error or "")


def test_a_spring_client_is_answered_on_its_own_topic_and_partition(system: System) -> None:
    theirs = system.make_topic("spring-replies", 2)
    replies = system.reading(theirs)
    correlation = bytes(range(16))
    system.ask(
        RecommendRequest("spring", "jvm", k=2),
        ("kafka_replyTopic", theirs.encode()),
        ("kafka_replyPartition", struct.pack(">i", 1)),
        ("kafka_correlationId", correlation),
    )
    record = next_record(replies)
    assert record.partition == 1
    assert record.key == b"spring"
    assert dict(record.headers) == {"kafka_correlationId": correlation}
    assert len(decode(RecommendReply, record.value).items) == 2


def test_a_reply_topic_of_our_own_is_refused_on_the_default_topic(system: System) -> None:
    replies = system.reading(system.name("recommend-replies"))
    system.ask(RecommendRequest("loop", "ann"), ("reply_topic", system.name("watch-events").encode()))
    reply = decode(RecommendReply, next_record(replies).value)
    assert reply.request_id == "loop"
    assert "own topics" in (reply.error or "")


def test_a_request_on_a_foreign_partition_is_forwarded_once_and_answered_with_its_history(system: System) -> None:
    system.tell(history("far", "item-7"))
    replies = system.reading(system.name("recommend-replies"))
    requests = system.reading(system.name("recommend-requests"))
    home = system.home("far")
    foreign = (home + 1) % PARTITIONS
    system.ask(RecommendRequest("moved", "far", k=3), ("correlation_id", b"c1"), partition=foreign)
    record = next_record(replies)
    reply = decode(RecommendReply, record.value)
    assert dict(record.headers) == {"correlation_id": b"c1"}
    assert (reply.request_id, reply.history_watches) == ("moved", 1)
    first, second = next_record(requests), next_record(requests)
    assert (first.partition, second.partition) == (foreign, home)
    assert first.timestamp == second.timestamp
    assert [name for name, _ in second.headers] == ["correlation_id", topics.FORWARDED]
    assert not requests.poll(300)


def test_a_takedown_is_gone_from_the_next_replies_and_a_return_comes_back(system: System) -> None:
    system.tell(history("cat", "item-9"))
    best = items_of(system.client.recommend("cat", k=5))[0]
    before = takedowns()
    sent_s = time.time() - 5.0
    system.send(topics.ITEMS, None, best, timestamp_ms=int(sent_s * 1000))
    system.until(lambda: best not in items_of(system.client.recommend("cat", k=60)))
    count, late_s = (after - ago for after, ago in zip(takedowns(), before, strict=True))
    assert count == 1 and 5.0 <= late_s <= time.time() - sent_s
    assert best not in items_of(system.client.recommend("nobody", k=60))
    system.send(topics.ITEMS, encode(Item(best, duration_s=60.0)), best)
    system.until(lambda: best in items_of(system.client.recommend("cat", k=60)))
    assert takedowns()[0] == before[0] + 1, "a return is none"


def takedowns() -> tuple[float, float]:
    """How many takedowns the servers of this process have heard of, and how late in all."""
    samples = {each.name: each.value for each in next(iter(metrics.TAKEDOWN.collect())).samples}
    return samples["nextwatch_takedown_seconds_count"], samples["nextwatch_takedown_seconds_sum"]


def test_how_long_ago_a_server_began_its_last_round_is_told_while_it_runs(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    def age_s() -> float:
        return float(next(iter(metrics.TURN_AGE.collect())).samples[0].value)

    going_on = threading.Event()
    with beside(system, system.settings.milvus.uri) as other, serving(other.settings):
        other.until(lambda: age_s() < 1.0)
        monkeypatch.setattr(Worker, "_report", lambda worker: going_on.wait(WAIT_S))
        other.until(lambda: age_s() > 1.0)
        going_on.set()
        other.until(lambda: age_s() < 1.0)
    assert isnan(age_s())


def test_an_impression_is_recorded_for_each_answer_and_none_for_an_error(system: System) -> None:
    impressions = system.reading(system.name("impressions"))
    requests = [RecommendRequest("bad", "eve", k=61), RecommendRequest("good", "eve", k=4)]
    _, good = system.client.recommend_many(requests, timeout_s=WAIT_S)
    record = next_record(impressions)
    impression = decode(Impression, record.value)
    assert (impression.request_id, impression.user_id, record.key) == ("good", "eve", b"eve")
    assert record.partition == system.home("eve")
    assert [shown.item_id for shown in impression.items] == items_of(good)
    assert impression.version == good.version
    assert not impressions.poll(300)


def test_a_server_says_what_it_serves(system: System) -> None:
    releases = system.reading(system.name("releases"))
    state = decode(Release, next_record(releases).value)  # type: ignore[arg-type,var-annotated]
    assert isinstance(state, ServerState)
    assert state.version == system.client.recommend("nobody").version


def test_answered_requests_are_committed(system: System) -> None:
    system.client.recommend("nobody")
    group = f"{system.settings.kafka.topic_prefix}serving"
    consumer = KafkaConsumer(**kafka_python_options(system.settings.kafka), group_id=group)
    places = [TopicPartition(system.name("recommend-requests"), number) for number in range(PARTITIONS)]

    def is_committed() -> bool:
        ends = consumer.end_offsets(places)
        return all((consumer.committed(place) or 0) == ends[place] for place in places)

    system.until(is_committed)
    consumer.close()


def test_a_swap_under_load_mixes_no_versions_and_loses_no_reply(system: System) -> None:
    """The two releases give the same items other scores: each reply's scores must be those of its own version."""
    users = [history(f"load-{number}", ITEMS[number], ITEMS[number + 1]) for number in range(6)]
    for user in users:
        system.tell(user)
    scores = {manifest.version: expected_scores(system, manifest, users) for manifest in system.bundles}
    futures: list[tuple[str, Any]] = []

    def ask(stop: threading.Event) -> None:
        number = 0
        while not stop.is_set():
            user_id = users[number % len(users)].user_id
            request = RecommendRequest(f"load-{number}", user_id, k=5)
            futures.append((user_id, system.client.submit(request)))
            number += 1
            time.sleep(0.01)

    with in_thread(ask, "requests"):
        for manifest in (system.bundles[1], system.bundles[0], system.bundles[1]):
            system.announce(manifest)
            time.sleep(0.3)
    seen = set()
    for user_id, future in futures:
        reply = future.result(timeout=WAIT_S)
        assert reply.degraded == ()
        seen.add(reply.version)
        for item in reply.items:
            assert item.score == pytest.approx(scores[reply.version][user_id, item.item_id], abs=1e-3)
    assert seen == {manifest.version for manifest in system.bundles}


def expected_scores(system: System, manifest: Manifest, users: Sequence[UserHistory]) -> dict[tuple[str, str], float]:
    """(user, item) -> inner product, computed from the bundle alone."""
    model = load(system.settings.bundles_dir, manifest).model
    products = model.user_vectors(users, CREATED_MS) @ model.item_vectors().T
    return {
        (user.user_id, item_id): float(products[row, column])
        for row, user in enumerate(users)
        for column, item_id in enumerate(model.item_ids)
    }


def test_workers_share_the_requests_and_none_is_lost_or_answered_without_its_history(system: System) -> None:
    """A second worker comes, and goes again by a clean stop, while requests of users with histories keep coming."""
    users = [history(f"shared-{number}", ITEMS[number]) for number in range(9)]
    for user in users:
        system.tell(user)
    replies: list[RecommendReply] = []

    def ask() -> set[str]:
        requests = [RecommendRequest(uuid.uuid4().hex, user.user_id, k=2) for user in users]
        answered = system.client.recommend_many(requests, timeout_s=WAIT_S)
        replies.extend(answered)
        return {reply.served_by for reply in answered}

    alone = ask()
    with serving(system.settings):
        system.until(lambda: len(ask()) == 2)
    system.until(lambda: ask() == alone)
    assert all(reply.history_watches == 1 and reply.error is None and len(reply.items) == 2 for reply in replies)


def test_a_takedown_outlives_a_restart_and_nothing_is_answered_twice_after_a_clean_stop(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are promises to the next worker, so they are shown with one that starts after the other has gone, and that
    reads slowly: it must not answer before it has read the takedown."""
    with beside(system, system.settings.milvus.uri) as other:
        client = other.client
        with serving(other.settings):
            furnish(other)
            best = items_of(client.recommend("nobody", k=1, timeout_s=WAIT_S))[0]
            other.send(topics.ITEMS, None, best)
            other.until(lambda: best not in items_of(client.recommend("nobody", k=1)))
        replies, heard = other.reading(other.name("recommend-replies")), takedowns()[0]
        waiting = client.submit(RecommendRequest("meanwhile", "nobody", k=40))
        monkeypatch.setattr("serving.worker.worker.Feed", SlowFeed)
        with serving(other.settings):
            answered = items_of(waiting.result(timeout=WAIT_S))
            assert len(answered) == len(ITEMS) - 1
            assert best not in answered
            assert takedowns()[0] == heard, "one of before is none of now"
            assert decode(RecommendReply, next_record(replies).value).request_id == "meanwhile"
            assert not replies.poll(300)


class SlowFeed(Feed):
    """Reads the catalogue and what else is shared later than histories and requests."""

    def __init__(self, kafka: Kafka, *names: str, **how: Any) -> None:
        self._from = time.monotonic() + (3.0 if topics.ITEMS in names else 0.0)
        super().__init__(kafka, *names, **how)

    def take(self, most: int) -> list[Chunk]:
        return super().take(most) if time.monotonic() > self._from else []


@pytest.mark.parametrize(("mirror_items", "source"), [(0, "trending"), (1000, "two_tower")])
def test_without_milvus_everybody_is_answered_and_with_it_the_index_is_used_again_by_itself(
    system: System, tmp_path: Path, bundles_dir: Path, mirror_items: int, source: str
) -> None:
    with (
        stopping(start_milvus(Settings(data_dir=tmp_path), probe=milvus_answers)) as milvus,
        beside(system, milvus.uri, mirror_items=mirror_items) as other,
        serving(other.settings),
    ):
        fill(other.index, load(bundles_dir, system.bundles[0]))
        furnish(other)
        other.tell(history("ann", "item-3"))
        milvus.process.stop()
        reply = other.client.recommend("ann", k=5, timeout_s=WAIT_S)
        step = "mirror" if mirror_items else "trending"
        assert {item.source for item in reply.items} == {source}
        assert reply.degraded[0].startswith(f"{step}: the index did not answer")
        milvus.restart()
        other.until(lambda: other.client.recommend("ann", k=5, timeout_s=WAIT_S).degraded == ())


@contextlib.contextmanager
def beside(system: System, milvus_uri: str, **serving: Any) -> Iterator[System]:
    """The same brokers and bundles with topics of their own, and no worker yet."""
    settings = with_section(system.settings, "kafka", topic_prefix=f"s{uuid.uuid4().hex[:8]}-")
    settings = with_section(with_section(settings, "milvus", uri=milvus_uri), "serving", **serving)
    topics.create_topics(settings.kafka)
    with (
        RecommendClient(client_options(settings.kafka)) as client,
        contextlib.closing(Index(settings.milvus)) as index,
        contextlib.closing(System(settings, system.producer, client, index, system.bundles)) as running,
    ):
        yield running


def test_without_a_server_the_client_times_out_with_a_clear_message(kafka_settings: Settings) -> None:
    topics.create_topics(kafka_settings.kafka)
    with RecommendClient(client_options(kafka_settings.kafka)) as client:
        with pytest.raises(TimeoutError, match="is a serving worker running"):
            client.recommend("ann", timeout_s=2.0)
        with pytest.raises(RequestTimeout):
            client.recommend_many([RecommendRequest("r1", "ann")], timeout_s=0.1)


def test_a_burst_beyond_the_queue_is_answered_whole_and_who_comes_too_late_from_the_bottom(
    system: System, milvus_uri: str, bundles_dir: Path
) -> None:
    """Requests that wait while there is no worker: those that were given a second are late by the time it starts."""
    with beside(system, milvus_uri, queue=20, batch=8) as other:
        with serving(other.settings):
            furnish(other)
            other.tell(history("ann", "item-3"))
        late = [RecommendRequest(f"late-{at}", "ann", k=5, deadline_ms=1000) for at in range(100)]
        patient = [RecommendRequest(f"patient-{at}", "ann", k=5, deadline_ms=60_000) for at in range(30)]
        waiting = [(other.client.submit(request), request) for request in (*late, *patient)]
        time.sleep(1.1)
        with serving(other.settings):
            replies = [other.client.result(future, request, WAIT_S) for future, request in waiting]
    assert all(len(reply.items) == 5 for reply in replies)
    assert all("deadline" in reply.degraded[0] for reply in replies[:100])
    assert all(reply.degraded == () for reply in replies[100:])


def test_a_row_of_a_trainer_that_was_replaced_changes_no_answer(system: System) -> None:
    version, dim = system.client.recommend("anybody").version, system.bundles[0].dim - 1
    first, second = [item for item in ITEMS if system.home(item) == system.home(ITEMS[0])][:2]

    def write(item_id: str, value: float, epoch: int) -> None:
        ends = struct.pack(f"<{dim}f", *[value] * dim)
        row = ItemVector(version, 1, ends + struct.pack("<f", 0.0), ends, 0, epoch=epoch)
        system.send(topics.ITEM_VECTORS, encode(row), item_id)

    def scores(watched: str) -> list[float | None]:
        items = system.client.recommend(f"fan-of-{watched}", k=20).items
        return [item.score for item in items if item.source == "two_tower"]

    for item_id in (first, second):
        system.tell(history(f"fan-of-{item_id}", item_id))
    before = scores(first)
    write(first, 0.5, epoch=1)
    system.until(lambda: scores(first) != before)
    good, other = scores(first), scores(second)
    for partition in range(PARTITIONS):
        key, value = claim(2, "trainer-2")
        system.producer.send(system.name(topics.ITEM_VECTORS), value, key=key, partition=partition).get(WAIT_S)
    write(first, -0.5, epoch=1)
    write(second, 0.5, epoch=2)
    system.until(lambda: scores(second) != other)
    assert scores(first) == good


def test_impressions_that_cannot_be_written_end_nothing_and_are_written_when_they_can(
    system: System, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their topic is away for longer than the producer tries. Users are answered meanwhile; when more would be kept in
    memory than there is room for, their requests wait."""
    require_kafka(broker.kind, "noida 0.2.3 makes a topic that is written to: it cannot be away")
    monkeypatch.setattr("serving.worker.outbox.DELIVERY_MS", 1000)
    monkeypatch.setattr("serving.worker.outbox.ANSWER_MS", 1000)
    monkeypatch.setattr("serving.worker.offset_tracker.STUCK_S", 0.5)
    with beside(system, system.settings.milvus.uri) as other, serving(other.settings):
        furnish(other)
        name, kafka = other.name("impressions"), other.settings.kafka
        with open_admin(kafka) as admin:
            admin.delete_topics([name])
            wait_until(lambda: name not in admin.list_topics(), "impressions are away", WAIT_S)
        asked = [RecommendRequest(f"stuck-{at}", "ann", k=5) for at in range(6)]
        for request in asked[:3]:
            other.client.recommend_many([request], timeout_s=WAIT_S)
            time.sleep(0.7)
        monkeypatch.setattr("serving.worker.offset_tracker.MOST_WAITING_BYTES", 1)
        time.sleep(0.5)
        waiting = [other.client.submit(request) for request in asked[3:]]
        time.sleep(1.0)
        assert not any(each.done() for each in waiting)
        assert topics.create_topics(kafka) == [name]
        for each, request in zip(waiting, asked[3:], strict=True):
            other.client.result(each, request, WAIT_S)
        impressions = other.reading(name)
        impressions.seek_to_beginning()
        written: set[str] = set()
        while not written >= {request.request_id for request in asked}:
            written.add(decode(Impression, next_record(impressions).value).request_id)
