"""All five processes, a broker of each kind and a Milvus: what a viewer, an editor and an operator are promised."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import struct
import threading
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from confluent_kafka import Producer
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from indexer.collection import Index
from infra.local.stack import COMMANDS
from infra.platform import metrics
from infra.platform.guarded_process import GuardedProcess
from infra.platform.kafka_clients import client_options, kafka_python_options
from infra.platform.run_files import read_run_files
from infra.platform.settings import Indexer, Model, Ranker, Serving, Settings, Trainer
from models.ranking.ranking_evaluation import predict
from models.release.bundle import read_bundle
from nextwatch_client import RecommendClient
from streams.export.ranking_archive import _Writer
from streams.kafka.follow import read_to_end
from streams.messages import (
    Impression,
    Item,
    ItemVector,
    Outcome,
    RankingExample,
    RecommendReply,
    RecommendRequest,
    WatchEvent,
    decode,
    encode,
)
from streams.topics import (
    IMPRESSIONS,
    ITEM_VECTORS,
    RECOMMEND_REPLIES,
    RECOMMEND_REQUESTS,
    RIVAL_VECTORS,
    TRAINING_EXAMPLES,
    WATCH_EVENTS,
    partition_of,
)
from streams.trainer.progress import PROGRESS_KEY, Progress
from tests.conftest import on_both_brokers
from tests.harness.deployed.prometheus import expressions_of_panels, scraping
from tests.harness.needs import require_kafka
from tests.harness.system import (
    ALL,
    Cluster,
    cli,
    own_settings,
    process,
    run_cli,
    running,
    wait_for_health,
    wait_until,
    with_section,
)
from tests.harness.traffic import (
    CHANNELS,
    PER_CHANNEL,
    WAIT_S,
    Histories,
    Reader,
    Traffic,
    item_id,
    now_ms,
    past,
    total_of,
    users_by_crc,
    vector_of,
)

pytestmark = on_both_brokers

PARTITIONS = 2
SCORES = {"nextwatch_score_drift_psi", "nextwatch_score_shift_deviations"}  # there once hundreds of lists were ranked
MISHAPS = {  # counted again and again for as long as one lasts, and not before; no gateway runs here
    "nextwatch_send_retries_total",
    "nextwatch_releases_refused_total",
    "nextwatch_gateway_requests_total",
}
BESIDE = {"nextwatch_rival_wanted_info", "nextwatch_rival_learning_info"}  # while an experiment has a second release
RETRAIN = "nextwatch_retrain_"  # of a process that is not among these: tests/unit/infra/operate/retrain looks at them
EVERYTHING = CHANNELS * PER_CHANNEL + 50  # more than there are items
MODEL = Model(dim=16, hidden=(32,), negatives=256, batch=128, epochs=10)
RANKER = Ranker(hidden=(8,), members=1, epochs=1)


@dataclass
class System:
    """A running system, and what was seen of it on its way to the first release."""

    settings: Settings
    processes: dict[str, GuardedProcess]
    stack: contextlib.ExitStack  # whatever is started later is stopped with the rest
    client: RecommendClient
    traffic: Traffic
    histories: Histories
    vectors: Reader
    before: RecommendReply  # to a viewer with a history, before there was a release
    first: dict[str, Any]  # the report of `nextwatch train`

    def recommend(self, user_id: str, k: int = 20) -> RecommendReply:
        reply = self.client.recommend(user_id, k=k, timeout_s=WAIT_S)
        assert reply.error is None
        return reply

    def wait_for_reply(self, user_id: str, found: Any, what: str, k: int = 20) -> RecommendReply:
        """Ask until a reply is as it should be."""
        last: list[RecommendReply] = []

        def look() -> bool:
            last[:] = [self.recommend(user_id, k)]
            return bool(found(last[0]))

        wait_until(look, what, WAIT_S)
        return last[0]

    def viewer(self, channel: int, watches: int = 3) -> str:
        """A new viewer who has watched the first videos of a channel; answers know of it."""
        user = f"viewer-{uuid.uuid4().hex[:8]}"
        for number in range(watches):
            self.traffic.watch(user, item_id(channel, number))
        self.wait_for_reply(user, lambda reply: reply.history_watches == watches, "an answer from the history", k=1)
        return user

    def start(self, name: str) -> GuardedProcess:
        command = cli(*COMMANDS[name])
        started = self.processes[name] = self.stack.enter_context(process(self.settings, name, command))
        return started

    def row(self, item: str, found: Any, what: str) -> ItemVector:
        """The item's newest published row, once `found` is true of it."""

        def look(_: list[Any]) -> ItemVector | None:
            record = self.vectors.newest().get(item.encode())
            row = None if record is None else decode(ItemVector, record.value)
            return row if row is not None and found(row) else None

        row = self.vectors.until(look, f"{what} of {item}")
        assert row is not None
        return row


def channel_of(item: str) -> str:
    return item.partition("-")[0]


def until_trending(client: RecommendClient, viewer: str) -> RecommendReply:
    """The first reply after what is trending has been published (once a second)."""
    replies: list[RecommendReply] = []

    def is_trending() -> bool:
        replies[:] = [client.recommend(viewer, timeout_s=WAIT_S)]
        return {item.source for item in replies[0].items} == {"trending"}

    wait_until(is_trending, "an answer of trending items", WAIT_S)
    return replies[0]


@pytest.fixture(scope="module")
def system(kafka: str, milvus_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system that began without any log and got its first release from what its topics held."""
    settings = own_settings(
        kafka,
        tmp_path_factory.mktemp("system"),
        milvus_uri,
        kafka={"partitions": PARTITIONS},
        model=MODEL,
        ranker=RANKER,
        trainer=Trainer(step_s=0.1, publish_s=0.5),
        indexer=Indexer(window_s=0.1),
        serving=Serving(max_k=EVERYTHING, candidates=EVERYTHING, heartbeat_s=0.5, deadline_s=WAIT_S),
    )
    with contextlib.ExitStack() as stack:
        processes = stack.enter_context(running(settings))
        log, items = past(seed=1, until_ms=now_ms())
        log.write_parquet(settings.data_dir / "log.parquet")
        items.write_parquet(settings.data_dir / "items.parquet")
        arguments = (str(settings.data_dir / "log.parquet"), "--items", str(settings.data_dir / "items.parquet"))
        run_cli(settings, "replay", *arguments)
        viewer, watches = log["user_id"][-1], log.filter(log["user_id"] == log["user_id"][-1]).height
        histories = Histories(settings.kafka)
        histories.of(viewer, lambda history: len(history.watches) >= min(50, watches))
        client, traffic = RecommendClient(client_options(settings.kafka)), Traffic(settings.kafka)
        vectors = Reader(settings.kafka, ITEM_VECTORS)
        for each in (client, traffic, histories, vectors):
            stack.callback(each.close)
        before = until_trending(client, viewer)
        first = json.loads(run_cli(settings, "train", "--from-topics", "--wait-s", "60", "--json", timeout_s=180))
        wait_for_health(settings, *processes.values())
        yield System(settings, processes, stack, client, traffic, histories, vectors, before, first)
        for started in processes.values():
            started.ask_to_stop()
        ended = {name: started.stop() for name, started in processes.items()}
        assert ended == dict.fromkeys(processes, 0), "every process ends cleanly when it is asked to"
    index = Index(settings.milvus)
    for version in index.versions():
        index.drop(version)
    index.close()


def test_before_the_first_release_there_are_histories_and_trending_answers(system):
    reply = system.before
    assert reply.version == "" and reply.history_watches > 5
    assert reply.degraded == ("trending: no release is live yet",)
    assert len(reply.items) == 20 and {item.source for item in reply.items} == {"trending"}
    scores = [item.score for item in reply.items]
    assert scores == sorted(scores, reverse=True), "the most watched come first"


def test_a_release_trained_from_the_topics_goes_live(system):
    assert system.first["served"] is True and system.first["items"] == CHANNELS * PER_CHANNEL
    reply = system.recommend("past-3")
    assert reply.version == system.first["version"] and reply.degraded == ()
    assert {item.source for item in reply.items} == {"two_tower"}
    assert all(item.expected_watch_s > 0 for item in reply.items)
    favourite = "c3"  # viewer 3 keeps to it nine times in ten
    best = sorted(system.recommend("past-3", EVERYTHING).items, key=lambda item: -(item.score or 0))[:10]
    assert sum(channel_of(item.item_id) == favourite for item in best) >= 5


def test_a_watch_changes_the_reply(system):
    user = f"viewer-{uuid.uuid4().hex[:8]}"
    stranger = system.recommend(user, EVERYTHING)
    assert stranger.history_watches == 0 and stranger.degraded == ()
    assert {item.source for item in stranger.items[:20]} == {"two_tower"}
    watched = [system.traffic.watch(user, item_id(5, number)) for number in range(3)]
    reply = system.wait_for_reply(user, lambda reply: reply.history_watches == 3, "three watches", EVERYTHING)
    assert reply.history_event_ms == watched[-1].event_ms
    assert not {watch.item_id for watch in watched} & {item.item_id for item in reply.items}, "seen items are left out"
    best = sorted(reply.items, key=lambda item: -(item.score or -99))[:10]
    assert sum(channel_of(item.item_id) == "c5" for item in best) >= 5, "the channel that was watched is preferred"


def new_item_of(system: System) -> str:
    """A new item of channel 2, watched five times."""
    new = f"new-{uuid.uuid4().hex[:8]}"
    system.traffic.publish(Item(new, "brand new", "c2", (), 60.0, now_ms()))
    for number in range(5):
        system.traffic.watch(f"{new}-{number}", new)
    return new


def rank_among_retrieved(reply: RecommendReply, item: str) -> float:
    """Where an item stands by its towers' score, 0 first and 1 last; 1 too where they have not found it."""
    retrieved = [each for each in reply.items if each.source == "two_tower"]  # other sources' scores are other numbers
    in_order = [each.item_id for each in sorted(retrieved, key=lambda each: -(each.score or -99))]
    return in_order.index(item) / len(in_order) if item in in_order else 1.0


def test_a_new_item_is_recommended_after_its_first_watches(system):
    fan, new = system.viewer(channel=2), new_item_of(system)
    system.wait_for_reply(  # topics keep no order: it moves there when its description comes after its watches
        fan,
        lambda reply: rank_among_retrieved(reply, new) < 0.5,
        "the new item where its channel is, not at random",
        EVERYTHING,
    )


@pytest.mark.parametrize("how", ["a tombstone", "available=false"])
def test_what_is_taken_down_is_in_no_reply_and_comes_back_when_it_is_put_up_again(system, how):
    victim = item_id(6, 9) if how == "a tombstone" else item_id(6, 8)
    known, stranger = system.viewer(channel=6), f"stranger-{uuid.uuid4().hex[:8]}"

    def shown(user: str) -> bool:
        return victim in {item.item_id for item in system.recommend(user, EVERYTHING).items}

    assert shown(known) and shown(stranger)
    if how == "a tombstone":
        system.traffic.take_down(victim)
    else:
        system.traffic.publish(Item(victim, available=False))
    wait_until(lambda: not shown(known) and not shown(stranger), "gone from the replies", WAIT_S)
    with Cluster(system.settings.kafka) as cluster:
        examples = cluster.total(TRAINING_EXAMPLES)
    system.traffic.watch("somebody", victim)  # a late watch gives it a new row, which must not bring it back
    system.row(victim, lambda row: row.learnt_to > examples, "a row after the takedown")
    index = Index(system.settings.milvus)
    wait_until(lambda: not index.vectors(system.first["version"], [victim]), "gone from the index", WAIT_S)
    assert not shown(known) and not shown(stranger)
    system.traffic.publish(Item(victim, "again", "c6", (), 60.0))
    wait_until(lambda: shown(known) and shown(stranger), "back in the replies", WAIT_S)
    index.close()


def test_a_client_with_librdkafkas_partitioner_gets_its_history_and_its_answers(system):
    kafka, users = system.settings.kafka, users_by_crc(at_home=2, astray=3, partitions=PARTITIONS)
    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    with replies_of(system.settings, kafka.topic_prefix + RECOMMEND_REPLIES) as replies:
        for each in users:
            event = WatchEvent(uuid.uuid4().hex, each, item_id(1, 0), now_ms(), 60.0, 60.0)
            producer.produce(kafka.topic_prefix + WATCH_EVENTS, encode(event), key=each)
        producer.flush(10)
        for each in users:
            system.histories.of(each, lambda history: len(history.watches) == 1)
            system.wait_for_reply(each, lambda reply: reply.history_watches == 1, "an answer from the history", k=1)
        astray: list[bool] = []
        for each in users:
            producer.produce(
                kafka.topic_prefix + RECOMMEND_REQUESTS,
                encode(RecommendRequest(f"request of {each}", each, 3)),
                key=each,
                headers={"correlation_id": each.encode()},
                on_delivery=lambda _, message: astray.append(
                    message.partition() != partition_of(message.key().decode(), PARTITIONS)
                ),
            )
        producer.flush(10)
        answers = collect(replies, {each.encode() for each in users}, "correlation_id")
    assert sorted(astray) == [False, False, True, True, True], "both kinds of users are in this test"
    for each in users:
        reply = answers[each.encode()]
        assert reply.request_id == f"request of {each}" and reply.history_watches == 1 and len(reply.items) == 3


def test_springs_header_names_are_understood_and_answered(system):
    """As ReplyingKafkaTemplate does it: a reply topic of the application's own, an opaque correlation id."""
    kafka, user = system.settings.kafka, system.viewer(channel=4)
    own = f"{kafka.topic_prefix}app-replies"
    admin = KafkaAdminClient(**kafka_python_options(kafka))
    admin.create_topics({own: {"num_partitions": 2, "replication_factor": 1}})
    admin.wait_for_topics([own])
    admin.close()
    correlation = uuid.uuid4().bytes
    producer = KafkaProducer(**kafka_python_options(kafka))
    with replies_of(system.settings, own) as replies:
        headers = [
            ("kafka_correlationId", correlation),
            ("kafka_replyTopic", own.encode()),
            ("kafka_replyPartition", struct.pack(">i", 1)),
        ]
        request = encode(RecommendRequest("r", user, 3))
        producer.send(kafka.topic_prefix + RECOMMEND_REQUESTS, request, key=user.encode(), headers=headers).get(WAIT_S)
        answers = collect(replies, {correlation}, "kafka_correlationId", partition=1)
    producer.close()
    assert answers[correlation].request_id == "r" and len(answers[correlation].items) == 3


@contextlib.contextmanager
def replies_of(settings: Settings, topic: str) -> Iterator[Any]:
    """A plain consumer at the end of all partitions of a topic."""
    consumer = KafkaConsumer(**kafka_python_options(settings.kafka))
    places = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))]
    consumer.assign(places)
    for place, end in consumer.end_offsets(places).items():
        consumer.seek(place, end)
    yield consumer
    consumer.close()


def collect(
    consumer: Any, wanted: set[bytes], header: str, partition: int | None = None
) -> dict[bytes, RecommendReply]:
    """The replies by correlation id, once all that are wanted have come."""
    found: dict[bytes, RecommendReply] = {}

    def look() -> bool:
        for records in consumer.poll(100).values():
            for record in records:
                correlation = dict(record.headers).get(header)
                if correlation in wanted:
                    assert partition in {None, record.partition}
                    found[correlation] = decode(RecommendReply, record.value)
        return found.keys() == wanted

    wait_until(look, "replies", WAIT_S)
    return found


def test_every_process_serves_metrics_that_parse_under_the_names_of_the_one_page(system):
    page = {each._name for each in vars(metrics).values() if isinstance(each, MetricWrapperBase)}
    records = {record["name"]: record for record in read_run_files(system.settings.run_dir)}
    assert records.keys() == set(ALL)
    own = {
        "history": "nextwatch_event_to_history_seconds",
        "trending": "nextwatch_batch_seconds",
        "join": "nextwatch_batch_seconds",
        "trainer": "nextwatch_training_steps",
        "indexer": "nextwatch_event_to_vector_seconds",
        "serving": "nextwatch_requests",
    }
    for name, record in records.items():
        with urllib.request.urlopen(f"http://127.0.0.1:{record['port']}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        families = {family.name: family for family in text_string_to_metric_families(text)}
        ours = {family for family in families if family.startswith("nextwatch_") and not family.endswith("_created")}
        assert ours == page, name
        assert any(sample.value > 0 for sample in families[own[name]].samples), f"{name} counts what it does"
        samples = [sample for family in families.values() for sample in family.samples]
        labels = {value for sample in samples for value in sample.labels.values()}
        assert not any(value.startswith(("viewer-", "past-", "c5-")) for value in labels), "no user, no item"


def test_prometheus_has_data_for_every_alarm_and_every_panel(system, broker, tmp_path):
    require_kafka(broker.kind, "one system is enough to be scraped")
    targets = system.settings.run_dir / "prometheus-targets.json"
    with scraping(targets, tmp_path) as prometheus:
        wait_until(lambda: len(prometheus.query("up == 1")) == len(ALL), "every process scraped", 30)
        viewer = system.viewer(2)

        missing = set[str]()
        for _ in range(15):
            system.traffic.watch(viewer, item_id(2, 4))
            system.traffic.send(WATCH_EVENTS, viewer, b"no watch at all")
            system.recommend(viewer)
            drawn = [each for each in expressions_of_panels("10s") if RETRAIN not in each]
            missing = {each for each in drawn if not prometheus.query(each)}
            if missing <= SCORES:
                break
            time.sleep(1)
        assert missing <= SCORES, "a panel that draws nothing"
        rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
        assert len(rules) > 30 and not [rule for rule in rules if rule["health"] != "ok"]
        names = set(re.findall(r"nextwatch_\w+", " ".join(rule["query"] for rule in rules)))
        without = {name for name in names if not prometheus.query(name) and not name.startswith(RETRAIN)}
        assert without <= SCORES | MISHAPS | BESIDE, "an alarm that looks at nothing"


def test_the_commands_of_the_readme_speak_to_the_running_system(system):
    user = f"cli-{uuid.uuid4().hex[:8]}"
    assert "sent" in run_cli(system.settings, "watch", user, item_id(3, 1), "--duration", "60")
    system.histories.of(user, lambda history: len(history.watches) == 1)
    history = json.loads(run_cli(system.settings, "history", user, "--json"))
    assert [watch[0] for watch in history["watches"]] == [item_id(3, 1)]
    reply = json.loads(run_cli(system.settings, "recommend", user, "-k", "3", "--json"))
    assert len(reply["items"]) == 3 and reply["version"] == system.first["version"]
    status = json.loads(run_cli(system.settings, "status", "--json"))
    assert status["ready"] and {each["name"] for each in status["processes"]} == set(ALL)
    versions = {each["name"]: each["version"] for each in status["processes"]}
    assert versions["trainer"] == versions["serving"] == system.first["version"]
    assert status["event_to_history"]["count"] > 0 and status["index_rows"] >= CHANNELS * PER_CHANNEL


def test_an_experiment_splits_viewers_in_a_running_server_until_it_is_stopped(system):
    variants = ("--variant", "ranked", "--variant", "retrieved:serving.ranker=false")
    run_cli(system.settings, "experiment", "start", "order", *variants)
    viewers = [f"past-{number}" for number in range(12)]
    system.wait_for_reply(viewers[0], lambda reply: reply.experiment == "order", "an answer of the experiment")
    replies = {user: system.recommend(user) for user in viewers}
    by_variant = Counter(reply.variant for reply in replies.values())
    assert by_variant.keys() == {"ranked", "retrieved"} and by_variant.total() == len(viewers)
    for user, reply in replies.items():
        assert reply.degraded == () and system.recommend(user).variant == reply.variant, "for as long as it runs"
        assert all((item.expected_watch_s is None) == (reply.variant == "retrieved") for item in reply.items)
    report = json.loads(run_cli(system.settings, "experiment", "status", "--json"))
    assert {each["name"]: each["viewers"] for each in report["variants"]} == by_variant, "by the impressions on record"
    assert all(each["took_ms"] > 0 and each["fallbacks"] == 0 for each in report["variants"])
    page = metrics_of(system, "serving")
    assert 'nextwatch_experiment_requests_total{outcome="answered",variant="retrieved"}' in page
    run_cli(system.settings, "experiment", "stop", "order", "--reason", "seen enough")
    reply = system.wait_for_reply(viewers[0], lambda reply: not reply.experiment, "an answer of none")
    assert reply.variant == "" and all(item.expected_watch_s for item in reply.items)


@pytest.fixture(scope="module")
def rival(system) -> str:
    """A release with the first one's candidates and a ranker of its own, of the log that the system began with; not
    announced."""
    other = with_section(system.settings, "ranker", seed=9, hidden=(6,))
    arguments = ("--stage", "ranking", "--warm-start", system.first["version"], "--no-announce", "--json")
    report = json.loads(
        run_cli(other, "train", str(system.settings.data_dir / "log.parquet"), *arguments, timeout_s=180)
    )
    assert not report["announced"]
    return str(report["version"])


def compared(system: System, name: str, release: str) -> list[tuple[RecommendReply, Impression]]:
    """Start an experiment of the live release and this one; lists of viewers of both, and what is on record of them."""
    viewers = [f"past-{number}" for number in range(12)]
    run_cli(system.settings, "experiment", "start", name, "--variant", "control", "--variant", f"new:release={release}")
    system.wait_for_reply(viewers[0], lambda reply: reply.experiment == name, "an answer of the experiment")
    replies = [system.recommend(user) for user in viewers]
    assert {reply.variant for reply in replies} == {"control", "new"}
    impressions = impressions_of(system, replies)
    return [(reply, impressions[reply.request_id]) for reply in replies]


def test_two_rankers_are_live_at_once_each_for_its_own_viewers(system, rival, tmp_path):
    first = system.first["version"]
    for reply, impression in compared(system, "rankers", rival):
        assert reply.degraded == () and reply.version == impression.version == first, "one candidate model"
        own = rival if reply.variant == "new" else first
        assert (reply.ranked_by or first) == (impression.ranked_by or first) == own
        told = [item.expected_watch_s for item in reply.items]
        assert told == sorted(told, reverse=True)
        by = {version: expected_by(system, version, impression, tmp_path) for version in (first, rival)}
        assert told == pytest.approx(by[own], rel=0.02), "as this bundle's ranker says by itself"
        other = by[first if own == rival else rival]
        assert told != pytest.approx(other, rel=0.02), "and not as the other one does"
    assert f'nextwatch_rival_ranker_info{{version="{rival}"}} 1' in metrics_of(system, "serving")
    report = json.loads(run_cli(system.settings, "releases", "--json"))
    assert report["live"] == report["newest"] == first and report["compared"] == sorted([first, rival])
    run_cli(system.settings, "experiment", "stop", "rankers")
    system.wait_for_reply("past-0", lambda reply: not reply.experiment, "an answer of none")
    assert 'nextwatch_rival_ranker_info{version="' not in metrics_of(system, "serving")


def test_two_rankers_draw_up_one_list_in_turns(system, rival, tmp_path):
    first, variants = system.first["version"], ("--variant", "control", "--variant", f"new:release={rival}")
    run_cli(system.settings, "experiment", "start", "turns", "--interleave", *variants)
    reply = system.wait_for_reply("past-1", lambda reply: reply.experiment == "turns", "a list of both")
    shown = impressions_of(system, [reply])[reply.request_id]
    teams = Counter(item.team for item in shown.items)
    assert teams == {"control": 10, "new": 10} and reply.degraded == () and shown.ranked_by == ""
    for team, version in (("control", first), ("new", rival)):
        expected = expected_by(system, version, shown, tmp_path)
        own = [seconds for seconds, item in zip(expected, shown.items, strict=True) if item.team == team]
        assert all(below <= above * 1.02 for above, below in itertools.pairwise(own)), f"the order of {team}"
    run_cli(system.settings, "experiment", "stop", "turns")


@pytest.fixture(scope="module")
def beside(system) -> str:
    """A release with towers and rows of its own, of the log that the system began with; not announced."""
    other = with_section(system.settings, "model", seed=9, **MODEL.model_dump(exclude={"seed"}))
    log = str(system.settings.data_dir / "log.parquet")
    report = json.loads(run_cli(other, "train", log, "--no-announce", "--json", timeout_s=180))
    assert not report["announced"]
    return str(report["version"])


def test_two_releases_are_live_at_once_and_both_learn(system, beside):
    """All of both: towers, rows and ranker; and the trainer teaches both what is watched."""
    first = system.first["version"]
    for reply, shown in compared(system, "towers", beside):
        own = beside if reply.variant == "new" else first
        assert reply.degraded == () and reply.version == shown.version == own
        assert reply.ranked_by == shown.ranked_by == ("" if own == first else beside)
    fan = next(user for user in (system.viewer(channel=2) for _ in range(40)) if variant_of(system, user) == "new")
    new = new_item_of(system)
    reply = system.wait_for_reply(
        fan, lambda reply: rank_among_retrieved(reply, new) < 1, "the new item among the candidates", EVERYTHING
    )
    assert reply.version == beside, "retrieved by the release beside the live one"
    with contextlib.closing(Reader(system.settings.kafka, RIVAL_VECTORS)) as rows:
        record = rows.until(lambda _: rows.newest().get(new.encode()), "a row of the new item")
    assert decode(ItemVector, record.value).version == beside
    system.row(new, lambda row: row.version == first, "a row of the live release")
    report = json.loads(run_cli(system.settings, "experiment", "status", "--json"))
    assert report["problems"] == [] and {each["name"] for each in report["variants"]} == {"control", "new"}
    page = metrics_of(system, "trainer")
    assert all(f'{name}{{version="{beside}"}} 1' in page for name in BESIDE)
    run_cli(system.settings, "experiment", "stop", "towers")
    system.wait_for_reply(fan, lambda reply: not reply.experiment and reply.version == first, "an answer of none")
    ended = "nextwatch_rival_learning_info{"
    wait_until(lambda: ended not in metrics_of(system, "trainer"), "nobody is taught beside the live one", WAIT_S)


def variant_of(system: System, user: str) -> str:
    return system.recommend(user, k=1).variant


def impressions_of(system: System, replies: Iterable[RecommendReply]) -> dict[str, Impression]:
    """What is on record of these replies, by request."""
    wanted = {reply.request_id for reply in replies}
    found = (decode(Impression, record.value) for record in read_to_end(system.settings.kafka, IMPRESSIONS))
    return {each.request_id: each for each in found if each.request_id in wanted}


def expected_by(system: System, version: str, impression: Impression, scratch: Path) -> list[float]:
    """The seconds that a bundle's ranker, asked by itself, expects of what was shown, by the features on record and the
    list's calibration."""
    ranker = read_bundle(system.settings.bundles_dir / version).ranker
    outcomes = tuple(Outcome(item.item_id, 0.0, False) for item in impression.items)
    writer = _Writer(scratch / uuid.uuid4().hex, None)
    writer.add(RankingExample(impression, outcomes, 0, 0, 0))
    return [float(seconds * impression.factor) for seconds in predict(ranker, writer.finish())]


def metrics_of(system: System, process: str) -> str:
    port = next(each["port"] for each in read_run_files(system.settings.run_dir) if each["name"] == process)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


def test_a_restarted_trainer_has_its_rows_and_learns_no_example_twice(system):
    learnt, resting, fresh = item_id(7, 0), item_id(7, 1), f"new-{uuid.uuid4().hex[:8]}"
    tag = uuid.uuid4().hex[:8]
    for number in range(4):
        for item in (learnt, resting, fresh):
            system.traffic.watch(f"{tag}-{number}", item)
    wait_for_rest(system)
    before = {item: system.row(item, lambda row: True, "a row") for item in (learnt, resting, fresh)}
    progress = progress_of(system)
    assert system.processes["trainer"].stop() == 0
    for number in range(3):  # while nobody learns
        system.traffic.watch(f"{tag}-gone-{number}", learnt)
    wait_for_health(system.settings, system.start("trainer"))
    system.traffic.watch(f"{tag}-back", resting)
    system.traffic.watch(f"{tag}-back", fresh)
    rows = {
        item: system.row(item, lambda row, total=total_of(before[item]) + more: total_of(row) == total, "counts")
        for item, more in ((learnt, 3), (resting, 1), (fresh, 1))
    }
    for item, row in rows.items():
        assert row.version == before[item].version and row.step > before[item].step
        moved = np.linalg.norm(vector_of(row)[:-1] - vector_of(before[item])[:-1])
        assert moved < 0.2, f"{item} went on from where it was"
    wait_for_rest(system)  # whatever is counted twice is published by then
    again = {item: total_of(system.row(item, lambda row: True, "a row")) - total_of(before[item]) for item in rows}
    assert again == {learnt: 3, resting: 1, fresh: 1}
    after = progress_of(system)
    assert after.next_offset >= progress.next_offset + 5
    assert all(after.watched[partition] >= offset for partition, offset in progress.watched.items())


def wait_for_rest(system: System) -> None:
    """Return when all that was sent has been learnt and is published, and all rows are here."""
    with Cluster(system.settings.kafka) as cluster:
        wait_until(lambda: cluster.behind("history", WATCH_EVENTS) == 0, "histories at rest", WAIT_S)
        examples = cluster.total(TRAINING_EXAMPLES)
    system.row(PROGRESS_KEY.decode(), lambda row: progress_in(row).next_offset >= examples, "all published")
    system.vectors.to_the_end()


def progress_of(system: System) -> Progress:
    return progress_in(system.row(PROGRESS_KEY.decode(), lambda row: True, "progress"))


def progress_in(row: ItemVector) -> Progress:
    return msgspec.msgpack.decode(row.state, type=Progress)


def test_a_second_release_is_swapped_in_under_load_without_a_mixed_or_lost_reply(system):
    """Nothing is watched meanwhile, so each version gives each viewer fixed scores: a reply of mixed versions shows."""
    users = [f"past-{number}" for number in range(12)]
    old, new = system.first["version"], ""
    expected = {old: {user: scores(at_rest(system, user)) for user in users}}
    during: list[tuple[str, RecommendReply]] = []
    failures: list[Exception] = []
    stop = threading.Event()

    def ask_on() -> None:
        at = 0
        while not stop.wait(0.05):
            user = users[at % len(users)]
            at += 1
            try:
                during.append((user, system.recommend(user, 30)))
            except Exception as error:  # the test's own outermost loop: any failure is a failure
                failures.append(error)

    askers = [threading.Thread(daemon=True, target=ask_on) for _ in range(2)]
    for asker in askers:
        asker.start()
    try:
        second = with_section(system.settings, "model", seed=2)
        report = json.loads(run_cli(second, "train", "--from-topics", "--wait-s", "60", "--json", timeout_s=180))
        new = report["version"]
        wait_until(lambda: during[-1][1].version == new, "replies of the second release", WAIT_S)
        time.sleep(0.5)
    finally:
        stop.set()
        for asker in askers:
            asker.join()
    expected[new] = {user: scores(at_rest(system, user)) for user in users}
    assert report["served"] and new != old and not failures
    assert {reply.version for _, reply in during} == {old, new}
    for user, reply in during:
        # an index that is being built may be late on a busy machine: the mirror is of the same version
        assert all(step.startswith("mirror: ") for step in reply.degraded) and len(reply.items) == 30
        for item in reply.items:
            assert item.score == pytest.approx(expected[reply.version][user][item.item_id], abs=1e-3)
    assert expected[old] != expected[new], "the versions can be told apart"
    wait_until(lambda: trainer_version(system) == new, "the trainer on the new release", WAIT_S)


def scores(reply: RecommendReply) -> dict[str, float]:
    return {item.item_id: item.score or 0.0 for item in reply.items if item.source == "two_tower"}


def at_rest(system: System, user: str) -> RecommendReply:
    """The reply when nothing moves any more: two in a row with the same scores."""
    last: list[RecommendReply] = []

    def look() -> bool:
        last.append(system.recommend(user, EVERYTHING))
        return len(last) > 1 and scores(last[-1]) == pytest.approx(scores(last[-2]))

    wait_until(look, f"answers to {user} at rest", WAIT_S)
    return last[-1]


def trainer_version(system: System) -> str:
    status = json.loads(run_cli(system.settings, "status", "--json"))
    return next(each["version"] for each in status["processes"] if each["name"] == "trainer")
