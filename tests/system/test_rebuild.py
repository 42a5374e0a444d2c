"""Histories made again from the topics: damaged ones, lost ones, and all of them in a cluster that was restored from a
backup."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from msgspec.structs import replace

from infra.local.broker import Broker
from infra.platform.kafka_clients import kafka_python_options
from infra.platform.settings import History, Settings, to_environ
from streams import topics
from streams.history import rebuild_histories as module
from streams.history.rebuild_histories import RebuildRefused, create_producer, rebuild_histories
from streams.kafka.topic_ids import TopicReplaced
from streams.messages import Context, Impression, SearchEvent, Shown, SignalEvent, UserHistory, decode, encode
from tests.harness.crash.replay import read_all
from tests.harness.needs import require_kafka
from tests.harness.system import Cluster, own_settings, running, wait_until
from tests.harness.traffic import Traffic, now_ms
from tests.unit.infra.command import commands
from tests.unit.streams.kafka.test_topic_ids import make_again

PARTITIONS = 2
PATIENCE_S = 90.0
USERS = [f"user-{number}" for number in range(6)]
SOURCES = (topics.WATCH_EVENTS, topics.SEARCH_EVENTS, topics.SIGNALS, topics.IMPRESSIONS)
HELD = History(watches=5, searches=3, impressions=4, unwanted=1, signals=2)
SAID: tuple[Any, ...] = ("dislike", "like", "not_interested", "save", "undo")
Table = dict[bytes, bytes]


def live(settings: Settings) -> None:
    """More of everything than a history keeps: late, twice, astray and unusable messages among it."""
    traffic, start_ms = Traffic(settings.kafka), now_ms() - 1_000_000
    for number, user in enumerate(USERS):
        for n in range(9):
            at_ms, watch_s = start_ms + 10_000 * (n if n % 4 else n - 3), 5.0 if n % 3 == 0 else 50.0
            context = Context(region="de") if n == 2 else None
            traffic.watch(user, f"i{n}", at_ms, event_id=f"{user}/{n - (n == 7)}", watch_s=watch_s, context=context)
        for n in range(5):
            search = SearchEvent(f"{user}/s{n}", user, f"query {n}", start_ms + n)
            traffic.send_later(topics.SEARCH_EVENTS, user, encode(search))
            at_ms = start_ms + 10 * (n if n % 3 else n + 1)  # some come late
            signal = SignalEvent(f"{user}/g{n}", user, SAID[n], at_ms, f"i{n % 3}")
            traffic.send_later(topics.SIGNALS, user, encode(signal))
            shown = tuple(Shown(f"i{n + place}", place, "retrieval") for place in (1, 2))
            impression = Impression(f"{user}/r{n}", user, start_ms + n, "server", "v", shown)
            traffic.send_later(topics.IMPRESSIONS, user, encode(impression))
        traffic.flush()
        traffic.send(topics.WATCH_EVENTS, user, b"junk", partition=number % PARTITIONS)
        astray = 1 - topics.partition_of(user, PARTITIONS)
        search = SearchEvent(f"{user}/astray", user, "astray", start_ms + 9)
        traffic.send(topics.SEARCH_EVENTS, user, encode(search), partition=astray)
    traffic.close()


def table_of(settings: Settings) -> Table:
    newest = {record.key: record.value for record in read_all(settings, topics.USER_HISTORIES)}
    return {key: value for key, value in newest.items() if value is not None}


def write(settings: Settings, changes: dict[bytes, bytes | None]) -> None:
    producer = KafkaProducer(**kafka_python_options(settings.kafka))
    for key, value in changes.items():
        place = topics.partition_of(key.decode(), PARTITIONS)
        producer.send(settings.kafka.topic_prefix + topics.USER_HISTORIES, value, key=key, partition=place).get(30)
    producer.close()


def work(settings: Settings) -> Table:
    """A history worker until it has read and committed everything; what it leaves."""
    with running(settings, ["history"]), Cluster(settings.kafka) as cluster:
        wait_until(
            lambda: not any(cluster.behind("history", topic) for topic in SOURCES), "all is read", PATIENCE_S, 0.2
        )
        assert cluster.total(topics.TRAINING_EXAMPLES)
    return table_of(settings)


@pytest.fixture(scope="module")
def lived(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Table]:
    settings = own_settings(broker.bootstrap, tmp_path_factory.mktemp("lived"), history=HELD)
    live(settings)
    return settings, work(settings)


@pytest.fixture
def histories(lived: tuple[Settings, Table]) -> Iterator[tuple[Settings, Table]]:
    """Settings and the table, which is as it was again after the test."""
    yield lived
    settings, before = lived
    now = table_of(settings)
    write(settings, {key: value for key, value in before.items() if now.get(key) != value})
    assert table_of(settings) == before


def run(settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: Any, *arguments: str) -> Any:
    for name, value in to_environ(settings).items():
        monkeypatch.setenv(name, value)
    return commands(monkeypatch, capsys)("rebuild", "histories", *arguments)


def test_damaged_and_lost_histories_are_what_they_were(histories, monkeypatch, capsys):
    settings, before = histories
    keys = list(before)
    assert len(keys) == len(USERS)
    found = rebuild_histories(settings, dry_run=True)
    assert (found.users, found.differ, found.written) == (len(USERS), 0, 0), "nothing differs where nothing is wrong"
    whole = decode(UserHistory, before[keys[0]])
    halved = encode(UserHistory(whole.user_id, whole.watches[:2], watch_offset=whole.watch_offset))
    write(settings, {keys[0]: halved, keys[1]: None, keys[2]: b"junk"})
    assert run(settings, monkeypatch, capsys, "--dry-run").code == 1
    done = run(settings, monkeypatch, capsys)
    assert done.code == 0 and "3 differed, of which 1 were missing; 3 written, 0 deleted" in done.out
    assert table_of(settings) == before
    assert rebuild_histories(settings).written == 0


def test_a_cluster_that_is_restored_from_a_copy_of_its_topics_has_the_same_histories(
    lived, broker, tmp_path, monkeypatch, capsys
):
    """The records with their keys, headers and times, in topics that are new: offsets are others, and no group has read
    anything. The oldest watches are gone with the retention, and only the histories know of them."""
    settings, before = lived
    restored = own_settings(broker.bootstrap, tmp_path, history=HELD)
    copy_topics(settings, restored, (*SOURCES, topics.USER_HISTORIES), without=4)
    done = run(restored, monkeypatch, capsys, "--restored")
    assert done.code == 0 and f"{len(USERS)} written" in done.out
    traffic = Traffic(restored.kafka)
    late = traffic.watch(USERS[0], "after the restore")
    traffic.close()
    again = {key: content_of(value) for key, value in work(restored).items()}
    user = USERS[0].encode()
    watches = again[user][1]
    assert watches[-1][0] == late.event_id, "offsets of before would have let it pass for handled"
    del again[user]
    assert again == {key: content_of(value) for key, value in before.items() if key != user}
    refused = run(restored, monkeypatch, capsys, "--restored")
    assert refused.code == 2 and "have read here already" in refused.err


def test_what_only_the_histories_know_is_kept_and_from_scratch_it_is_not(histories):
    """As if the retention had taken the first events, and one user's events altogether."""
    settings, before = histories
    old = encode(UserHistory("long-ago", seen=b"\x01\x02\x03\x04\x05\x06", watch_offset=1))
    write(settings, {b"long-ago": old})
    delete_before(settings, {topics.WATCH_EVENTS: 7, topics.IMPRESSIONS: 3, topics.SIGNALS: 4})
    assert rebuild_histories(settings).written == 0
    assert table_of(settings) == before | {b"long-ago": old}
    found = rebuild_histories(settings, from_scratch=True)
    now = table_of(settings)
    assert found.deleted == 1 and b"long-ago" not in now
    assert found.written > 0 and now != before, "the watches that are gone are in no history"


def test_what_retention_takes_while_it_reads_is_kept_of_the_histories(histories, monkeypatch):
    settings, before = histories
    read = module._request_ids

    def read_slowly(*arguments: Any) -> Any:
        monkeypatch.setattr(module, "_request_ids", read)
        delete_before(settings, {topics.WATCH_EVENTS: 9})
        return read(*arguments)

    monkeypatch.setattr(module, "_request_ids", read_slowly)
    assert rebuild_histories(settings).written == 0
    assert table_of(settings) == before


def test_a_history_as_large_as_the_workers_write_is_written(histories):
    """kafka-python's own limit is 1 MB."""
    settings, before = histories
    large = encode(UserHistory("large", seen=b"123456" * 200_000))
    producer = create_producer(settings.kafka)
    module._write(producer, settings.kafka, topics.partition_of("large", PARTITIONS), {"large": large})
    producer.close()
    assert table_of(settings) == before | {b"large": large}
    write(settings, {b"large": None})


def test_beside_a_worker_it_is_refused(lived, monkeypatch, capsys):
    settings, _ = lived
    with running(settings, ["history"]):
        with pytest.raises(RebuildRefused, match="1 history workers run"):
            rebuild_histories(settings, dry_run=True)
        done = run(settings, monkeypatch, capsys)
    assert done.code == 2 and "stop them first" in done.err


def test_what_the_group_has_not_committed_is_left_to_the_worker(histories):
    """Else the worker would take it for handled, and make no example of it."""
    settings, before = histories
    traffic = Traffic(settings.kafka)
    traffic.watch(USERS[0], "not read yet")
    traffic.close()
    assert rebuild_histories(settings).written == 0
    assert table_of(settings) == before


def delete_before(settings: Settings, firsts: dict[str, int]) -> None:
    """As the retention does: what lies before these offsets is gone, in each partition."""
    admin = KafkaAdminClient(**kafka_python_options(settings.kafka))
    for topic, first in firsts.items():
        places = [TopicPartition(settings.kafka.topic_prefix + topic, number) for number in range(PARTITIONS)]
        admin.delete_records(dict.fromkeys(places, first))
    admin.close()


def copy_topics(source: Settings, target: Settings, names: tuple[str, ...], *, without: int) -> None:
    """What docs/operating.md calls a backup and its restore, in one step; `without` the first watches."""
    producer = KafkaProducer(**kafka_python_options(target.kafka))
    for name in names:
        for record in read_all(source, name):
            if name == topics.WATCH_EVENTS and record.offset < without:
                continue
            producer.send(
                target.kafka.topic_prefix + name,
                record.value,
                key=record.key,
                partition=record.partition,
                timestamp_ms=record.timestamp,
                headers=list(record.headers),
            )
    producer.flush(30)
    producer.close()


def content_of(value: bytes) -> Any:
    """A history without the offsets, which are others in another cluster."""
    history = decode(UserHistory, value, max_bytes=len(value))
    watches = [(watch.event_id, watch.item_id, watch.event_ms, watch.watch_s) for watch in history.watches]
    searches = [(search.event_id, search.query) for search in history.searches]
    signals = [replace(signal, offset=0) for signal in history.signals]
    return history.user_id, watches, searches, history.impressions, history.seen, history.context, signals


def test_a_topic_that_was_made_again_is_an_error_and_then_its_watches_are_learnt(
    lived, broker: Broker, monkeypatch, capsys
):
    """A watch at a small offset of the new topic is not taken for a replay of what the old one held there. The last
    test of this file: the topic is gone with it."""
    require_kafka(broker.kind, "noida tells no topic ids")
    settings, before = lived
    user, command = USERS[0].encode(), commands(monkeypatch, capsys, settings=settings)
    make_again(settings, topics.WATCH_EVENTS)
    traffic = Traffic(settings.kafka)
    late = traffic.watch(USERS[0], "in the new topic")
    traffic.close()
    with pytest.raises(TopicReplaced):
        rebuild_histories(settings)
    started = command("worker", "history")
    assert started.code == 2 and "watch-events: was deleted and made again" in started.err
    done = command("rebuild", "offsets")
    assert done.code == 0 and done.out.startswith(f"watch-events: {len(before)} records")
    again = work(settings)
    watches = [watch[0] for watch in content_of(again[user])[1]]
    assert watches[-1] == late.event_id and set(watches[:-1]) <= {watch[0] for watch in content_of(before[user])[1]}
    assert {key: content_of(value) for key, value in again.items() if key != user} == {
        key: content_of(value) for key, value in before.items() if key != user
    }
