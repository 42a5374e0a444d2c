"""A user is forgotten: gone from every table, compacted log and state, and not brought back by any replay."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType

from infra.local.broker import Broker
from infra.platform.kafka_clients import kafka_python_options
from infra.platform.settings import Forget, Join, Settings
from models.logs.log import LogError
from streams import topics
from streams.dead_letters.box import read_box
from streams.export.archive import store_archive
from streams.export.ranking_archive import store_served
from streams.kafka.follow import TopicFollower
from streams.messages import (
    Impression,
    JoinState,
    RankingExample,
    RecommendReply,
    RecommendRequest,
    SearchEvent,
    Shown,
    SignalEvent,
    UserHistory,
    decode,
    encode,
)
from tests.harness.needs import require_kafka
from tests.harness.system import Cluster, own_settings, read_metrics, run_cli, running, try_cli, wait_until
from tests.harness.traffic import Traffic, now_ms

T = TypeVar("T")

PARTITIONS = 2
PATIENCE_S = 90.0
SOON = {
    "segment.ms": "100",
    "min.cleanable.dirty.ratio": "0",
    "max.compaction.lag.ms": "100",
    "file.delete.delay.ms": "0",
}
TABLES = (topics.USER_HISTORIES, topics.JOIN_STATE)
WORKERS = ("history", "join")


@pytest.fixture
def settings(broker: Broker, tmp_path: Path) -> Settings:
    forget = Forget.model_validate({"secret": "of the test"})
    return own_settings(broker.bootstrap, tmp_path, join=Join(publish_s=0.2), forget=forget)


@pytest.fixture
def cleaner_in_a_hurry(broker: Broker, settings: Settings) -> Iterator[None]:
    """Compaction within a second instead of a day: what is overwritten goes at once, tombstones too."""
    require_kafka(broker.kind, "noida does not compact")
    admin = KafkaAdminClient(**kafka_python_options(settings.kafka))

    def alter(kind: Any, name: str, **config: Any) -> None:
        admin.alter_configs([ConfigResource(kind, name, config["config"])])

    alter(ConfigResourceType.BROKER, "1", config={"log.cleaner.backoff.ms": "200"})
    for table in TABLES:
        alter(ConfigResourceType.TOPIC, settings.kafka.topic_prefix + table, config=SOON | {"delete.retention.ms": "0"})
    yield
    alter(ConfigResourceType.BROKER, "1", config={"log.cleaner.backoff.ms": ("DELETE", None)})
    admin.close()


class Town:
    """People who watch, search and are shown lists."""

    def __init__(self, settings: Settings) -> None:
        self.settings, kafka = settings, settings.kafka
        self.traffic = Traffic(kafka)

    def live(self, user: str) -> None:
        """Two watches, a search, a signal, a list that waits for its outcome, a request with its reply, and two
        messages that cannot be used, one of them without a key."""
        at_ms = now_ms() - 5000
        for item in ("a", "b"):
            self.traffic.watch(user, item, at_ms)
        self._send(topics.SEARCH_EVENTS, user, SearchEvent(uuid.uuid4().hex, user, "cats", at_ms))
        self._send(topics.SIGNALS, user, SignalEvent(uuid.uuid4().hex, user, "dislike", at_ms, "e"))
        self.show(user, at_ms)
        request = f"of-nobody-{uuid.uuid4().hex}"
        self._send(topics.RECOMMEND_REQUESTS, user, RecommendRequest(request, user))
        self._send(topics.RECOMMEND_REPLIES, request, RecommendReply(request))
        self.traffic.send(topics.WATCH_EVENTS, user, b"junk")
        self.traffic.send(topics.WATCH_EVENTS, None, f"junk of {user}, and more".encode(), partition=0)

    def show(self, user: str, at_ms: int) -> None:
        shown = (Shown("c", 1, "retrieval"), Shown("d", 2, "retrieval"))
        self._send(topics.IMPRESSIONS, user, Impression(uuid.uuid4().hex, user, at_ms, "server", "v", shown))

    def settle(self, *users: str) -> None:
        """Until all of this is in the tables."""

        def is_whole(user: str) -> bool:
            history = self.history_of(user)
            has_events = history is not None and history.watches and history.searches and history.signals
            return bool(has_events and history.impressions) and self.state_of(user) is not None

        wait_until(lambda: all(map(is_whole, users)), "all of it in the tables", PATIENCE_S, every_s=0.5)

    def history_of(self, user: str) -> UserHistory | None:
        return self._newest(topics.USER_HISTORIES, user, UserHistory)

    def state_of(self, user: str) -> JoinState | None:
        return self._newest(topics.JOIN_STATE, user, JoinState)

    def _newest(self, topic: str, user: str, kind: type[T]) -> T | None:
        """What a table holds of a user, read from the beginning: a log that is being compacted has no count."""
        place, value = topics.partition_of(user, PARTITIONS), None
        with TopicFollower(self.settings.kafka, topic, partitions=[place]) as follower:
            while not follower.caught_up:
                for record in follower.poll(0.5):
                    value = record.value if record.key == user.encode() else value
        return None if value is None else decode(kind, value, max_bytes=len(value))

    def _send(self, topic: str, key: str, message: Any) -> None:
        self.traffic.send(topic, key, encode(message))


@pytest.fixture
def town(settings: Settings) -> Iterator[Town]:
    town = Town(settings)
    yield town
    town.traffic.close()


def stored_at(broker: Broker, settings: Settings, user: str) -> set[str]:
    """The topics in whose files the user's id stands."""
    prefix, found = settings.kafka.topic_prefix, set()
    for directory in (broker.settings.data_dir / "kafka" / "data").glob(f"{prefix}*"):
        if any(user.encode() in _read(file) for file in directory.rglob("*") if file.is_file()):
            found.add(directory.name.removeprefix(prefix).rpartition("-")[0])
    return found


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:  # the cleaner has been here
        return b""


def rewind(settings: Settings) -> None:
    """Set the workers' groups back to the beginning, as an operator would."""
    admin = KafkaAdminClient(**kafka_python_options(settings.kafka))
    for worker in WORKERS:
        group = f"{settings.kafka.topic_prefix}nextwatch-{worker}"
        offsets = admin.list_group_offsets({group: None})[group]
        admin.alter_group_offsets(group, {place: known._replace(offset=0) for place, known in offsets.items()})
    admin.close()


def wait_until_read(settings: Settings) -> None:
    read = {"history": (topics.WATCH_EVENTS, topics.SEARCH_EVENTS, topics.SIGNALS, topics.IMPRESSIONS)}
    read["join"] = (topics.WATCH_EVENTS, topics.IMPRESSIONS)
    with Cluster(settings.kafka) as cluster:
        wait_until(
            lambda: not any(cluster.behind(group, topic) for group, names in read.items() for topic in names),
            "all is read",
            PATIENCE_S,
            every_s=0.2,
        )


def test_a_forgotten_user_is_in_no_stored_byte_and_no_replay_brings_the_user_back(
    broker, settings, town, cleaner_in_a_hurry, tmp_path_factory
):
    tag = uuid.uuid4().hex[:8]
    alice, bob, carol = f"alice-{tag}", f"bob-{tag}", f"carol-{tag}"
    everybody = (alice, bob, carol)
    with running(settings, WORKERS):
        for user in everybody:
            town.live(user)
        town.settle(*everybody)
        wait_until(lambda: len(read_box(settings.kafka)) == 6, "dead letters", PATIENCE_S)
        assert set(TABLES) < stored_at(broker, settings, alice), "this test can see what it looks for"
        report = json.loads(run_cli(settings, "forget", alice, "--json", timeout_s=PATIENCE_S))
        assert report["waiting_for"] == [] and report["hidden_letters"] == 2
        assert town.history_of(alice) is None and town.state_of(alice) is None
        check_held(report["held"])
        late_ms = report["at_ms"] - 1000
        town.traffic.watch(alice, "late", late_ms)
        wait_until(lambda: not _in_tables(broker, town, alice, bob), "compaction", PATIENCE_S, every_s=0.3)
        assert stored_at(broker, settings, alice) == {each["topic"] for each in report["held"]} - {
            *TABLES,
            topics.RECOMMEND_REPLIES,  # known by their request
        }
    own = [file for file in settings.data_dir.rglob("*") if file.is_file()]
    assert own and not [file for file in own if alice.encode() in file.read_bytes()], "neither log nor state"
    bobs, letters = town.history_of(bob), read_box(settings.kafka)
    assert [place for place, letter in letters.items() if letter.state == "open"] and len(letters) == 6

    # whoever is down forgets before he reads on
    unsure = try_cli(settings, "forget", carol, "--wait-s", "0.2", "--json")
    place = topics.partition_of(carol, PARTITIONS)
    assert unsure.returncode == 1 and carol not in unsure.stdout + unsure.stderr
    assert json.loads(unsure.stdout)["waiting_for"] == [f"history/{place}", f"join/{place}"]
    assert {each["topic"] for each in json.loads(unsure.stdout)["held"] if each["in_use"]} == set(TABLES)
    town.traffic.watch(alice, "anew")
    rewind(settings)
    with running(settings, WORKERS):
        wait_until_read(settings)
        counted = read_metrics(settings, "history")
        assert run_cli(settings, "forget", carol, "--json"), "confirmed"
    assert town.history_of(carol) is None and town.state_of(carol) is None
    back = town.history_of(alice)
    assert back is not None and [watch.item_id for watch in back.watches] == ["anew"]
    assert (back.since_ms, back.searches, back.signals, back.impressions) == (report["at_ms"], (), (), ())
    assert town.history_of(bob) == bobs
    assert counted['nextwatch_messages_forgotten_total{topic="watch-events"}'] >= 7, "the late watch, and the junk"
    assert counted['nextwatch_users_forgotten_total{worker="history"}'] == 1
    after = read_box(settings.kafka)
    assert after.keys() == letters.keys(), "nor do their dead letters come again"
    check_training(settings, tmp_path_factory.mktemp("archive"), bob, alice)


def check_held(held: list[dict[str, Any]]) -> None:
    records = {each["topic"]: each["records"] for each in held}
    assert records == {
        topics.WATCH_EVENTS: 4,
        topics.SEARCH_EVENTS: 1,
        topics.SIGNALS: 1,
        topics.IMPRESSIONS: 1,
        topics.TRAINING_EXAMPLES: 2,
        topics.RECOMMEND_REQUESTS: 1,
        topics.RECOMMEND_REPLIES: 1,
        topics.DEAD_LETTERS: 2,
    } | {name: records[name] for name in TABLES}, "the tables' records are being cleaned away"
    assert not any(each["in_use"] for each in held)
    week_ms = 168 * topics.HOUR_MS
    for each in held:
        if each["topic"] not in TABLES:
            assert each["until_ms"] == each["newest_ms"] + week_ms + week_ms // 7


def _in_tables(broker: Broker, town: Town, user: str, other: str) -> bool:
    """Whether the tables' files still hold the id. Others live on meanwhile: a segment ends when something comes."""
    for name in (other, *(f"passer-by-{number}" for number in range(4))):
        town.traffic.watch(name, "x")
        town.show(name, now_ms())
    return bool(stored_at(broker, town.settings, user) & set(TABLES))


def check_training(settings: Settings, directory: Path, stays: str, forgotten: str) -> None:
    """What is learnt from is of those who stayed, and of what came after."""
    archive = store_archive(settings, directory)
    watches = archive.log.frame()
    assert archive.erased >= 5
    users = set(watches["user_id"].to_list()) if "user_id" in watches.columns else set()
    items = watches["item_id"].to_list()
    assert items.count("late") == 0 and items.count("a") == 1, f"only {stays}'s: {users}"


def test_what_the_ranker_learns_from_leaves_the_forgotten_out(settings, town, tmp_path):
    at_ms = now_ms()
    for user in ("dan", "eve"):
        impression = Impression(f"r-{user}", user, at_ms - 1000, "server", "v", (Shown("c", 1, "x"),))
        town.traffic.send(topics.RANKING_EXAMPLES, user, encode(RankingExample(impression, (), 0, ord(user[0]), at_ms)))
    assert store_served(settings, tmp_path / "before", None).erased == 0
    done = try_cli(settings, "forget", "-", "--wait-s", "0", "--no-held", stdin="eve\n")
    assert done.returncode == 1 and "not confirmed by worker history" in done.stdout
    assert store_served(settings, tmp_path / "after", None).erased == 1
    with pytest.raises(LogError):
        store_archive(settings, tmp_path / "log")
