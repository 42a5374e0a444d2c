"""The topics on real brokers: made as the design says, and compared with it."""

import uuid

import pytest
from kafka import KafkaAdminClient

from infra.platform.kafka_clients import kafka_python_options
from infra.platform.run_files import fill_in
from infra.platform.settings import Join, Kafka, Milvus, Settings, to_environ
from streams.kafka.requirements import TopicUnfit, alter_topics, fatal_problems, least_retention_ms, require_settings
from streams.topics import (
    DEAD_LETTERS,
    HOUR_MS,
    IMPRESSIONS,
    ITEMS,
    TOPICS,
    TRAINING_EXAMPLES,
    USER_HISTORIES,
    WATCH_EVENTS,
    check_topics,
    config_of,
    create_topics,
    partition_of,
    wrong_replicas,
)
from tests.harness.needs import require_kafka
from tests.unit.infra.command import commands


def kafka_of(bootstrap: str, **values: object) -> Kafka:
    kafka = Kafka(topic_prefix=f"t{uuid.uuid4().hex[:8]}-", **({"partitions": 2} | values))  # type: ignore[arg-type]
    return fill_in(Settings(kafka=kafka), bootstrap, "").kafka


def make(kafka: Kafka, name: str, partitions: int, **config: str) -> None:
    """A topic as somebody else made it."""
    admin = KafkaAdminClient(**kafka_python_options(kafka))
    wanted = {"num_partitions": partitions, "replication_factor": 1, "configs": config}
    admin.create_topics({kafka.topic_prefix + name: wanted})
    admin.close()


def test_every_topic_has_a_name_of_its_own_and_a_policy():
    assert len({topic.name for topic in TOPICS}) == len(TOPICS) == 19
    kafka = Kafka(retention_h=1, tombstone_h=48, max_message_bytes=1000)
    for topic in TOPICS:
        config = config_of(topic, kafka)
        assert config["cleanup.policy"] == topic.cleanup and config["max.message.bytes"] == "4000"
        assert config.get("retention.ms") == ("3600000" if topic.cleanup == "delete" else None)
        kept_h = 24 if topic.key == "user" else 48
        assert config.get("delete.retention.ms") == (str(kept_h * HOUR_MS) if topic.cleanup == "compact" else None)
        assert ("max.compaction.lag.ms" in config) == (topic.cleanup == "compact" and topic.key == "user")


def partition(number: int, copies: int, in_sync: int) -> dict[str, object]:
    return {
        "partition_index": number,
        "replica_nodes": list(range(copies)),
        "isr_nodes": list(range(in_sync)),
    }


@pytest.mark.parametrize(
    ("copies", "in_sync", "config", "says"),
    [
        (3, 3, {"min.insync.replicas": "2", "unclean.leader.election.enable": "false"}, ""),
        (3, 3, {}, ""),  # of what the brokers do not tell nothing is said
        (1, 1, {"min.insync.replicas": "1"}, "1 of 3 copies"),
        (3, 3, {"min.insync.replicas": "1"}, "min.insync.replicas is 1, expected 2 or more"),
        (3, 3, {"unclean.leader.election.enable": "true"}, "unclean.leader.election.enable is true"),
        (3, 2, {}, "not all copies in sync, of partition 1: is a broker down?"),
    ],
)
def test_copies_that_cannot_keep_what_was_acknowledged_are_found(copies, in_sync, config, says):
    found = list(wrong_replicas([partition(0, copies, copies), partition(1, copies, in_sync)], config, 3))
    assert len(found) == bool(says) and all(says in problem for problem in found)


@pytest.mark.system
def test_the_topics_that_are_missing_are_made_and_then_nothing_differs(kafka):
    settings = kafka_of(kafka)
    make(settings, ITEMS, 2, **config_of(next(topic for topic in TOPICS if topic.name == ITEMS), settings))
    assert any(f"{settings.topic_prefix}{WATCH_EVENTS}: missing" in problem for problem in check_topics(settings))
    made = create_topics(settings)
    assert sorted(made) == sorted(settings.topic_prefix + topic.name for topic in TOPICS if topic.name != ITEMS)
    assert check_topics(settings) == [] and create_topics(settings) == []


@pytest.mark.system
def test_a_topic_that_somebody_made_otherwise_is_reported_and_left_as_it_is(kafka):
    settings = kafka_of(kafka)
    design = {topic.name: config_of(topic, settings) for topic in TOPICS}
    make(settings, USER_HISTORIES, 2, **design[USER_HISTORIES] | {"cleanup.policy": "delete"})
    make(settings, WATCH_EVENTS, 3, **design[WATCH_EVENTS])
    make(settings, TRAINING_EXAMPLES, 2, **design[TRAINING_EXAMPLES])
    make(settings, IMPRESSIONS, 1, **design[IMPRESSIONS])
    make(settings, ITEMS, 1, **design[ITEMS])  # who reads it reads all of it
    create_topics(settings)
    problems = {
        problem.partition(": ")[0].removeprefix(settings.topic_prefix): problem for problem in check_topics(settings)
    }
    assert problems.keys() == {USER_HISTORIES, WATCH_EVENTS, TRAINING_EXAMPLES, IMPRESSIONS}
    assert "1 partitions, expected 2 (stop history, join, trending and serving, then" in problems[IMPRESSIONS]
    assert "cleanup.policy is delete, expected compact" in problems[USER_HISTORIES]
    assert "3 partitions, expected 2" in problems[WATCH_EVENTS] and "kafka.partitions" in problems[WATCH_EVENTS]
    assert "2 partitions, expected 1 (must have one)" in problems[TRAINING_EXAMPLES]


def test_what_would_lose_data_is_fatal_and_what_the_broker_does_not_tell_is_believed():
    by_name = {topic.name: topic for topic in TOPICS}
    settings = Settings(join=Join(window_s=3600, grace_s=60, early_s=10))

    def problems(name: str, **config: str) -> list[str]:
        return list(fatal_problems(by_name[name], settings, {key.replace("_", "."): v for key, v in config.items()}))

    assert "must be compact" in problems(USER_HISTORIES, cleanup_policy="delete")[0]
    assert "must be compact" in problems(ITEMS, cleanup_policy="compact,delete")[0]
    assert "must be delete" in problems(WATCH_EVENTS, cleanup_policy="compact")[0]
    assert least_retention_ms(WATCH_EVENTS, settings) == 3_660_000
    for name in (WATCH_EVENTS, IMPRESSIONS):
        assert "3660000 or more" in problems(name, cleanup_policy="delete", retention_ms="3659999")[0]
        assert problems(name, cleanup_policy="delete", retention_ms="3660000") == []
        assert problems(name, retention_ms="-1") == [], "for ever"
    assert problems(TRAINING_EXAMPLES, retention_ms="1") == [], "nothing waits for them but their reader"
    assert problems(USER_HISTORIES) == []
    needed = 4 * settings.kafka.max_message_bytes
    for name in (DEAD_LETTERS, USER_HISTORIES):
        assert f"must be {needed} or more" in problems(name, max_message_bytes=str(needed - 1))[0], "we write these"
        assert problems(name, max_message_bytes=str(needed)) == []


@pytest.mark.system
def test_a_table_that_is_not_compacted_ends_the_start_with_the_command_that_mends_it(broker, monkeypatch, capsys):
    require_kafka(broker.kind, "noida does not tell the settings of topics")
    settings = Settings(kafka=kafka_of(broker.bootstrap), milvus=Milvus(uri="http://127.0.0.1:1"))
    make(settings.kafka, USER_HISTORIES, 2, **{"cleanup.policy": "delete"})
    make(settings.kafka, WATCH_EVENTS, 2, **{"cleanup.policy": "delete", "retention.ms": "600000"})
    create_topics(settings.kafka)
    names = [topic.name for topic in TOPICS]
    with pytest.raises(TopicUnfit, match=r"user-histories: cleanup.policy is delete and must be compact") as unfit:
        require_settings(settings, names)
    assert "watch-events: retention.ms is 600000" in str(unfit.value) and "topics --alter" in str(unfit.value)
    for name, value in to_environ(settings).items():
        monkeypatch.setenv(name, value)
    run = commands(monkeypatch, capsys)
    for command in (("worker", "history"), ("serve",)):
        done = run(*command)
        assert done.code == 2 and "user-histories: cleanup.policy is delete and must be compact" in done.err
    assert run("topics", "--alter").code == 0
    require_settings(settings, names)
    assert check_topics(settings.kafka) == [] and alter_topics(settings.kafka) == []


@pytest.mark.system
def test_a_broker_that_does_not_tell_is_believed(with_topics):
    require_settings(with_topics, [topic.name for topic in TOPICS])


@pytest.mark.system
def test_a_message_over_the_limit_still_reaches_us_to_be_refused_with_a_reason(with_topics, send):
    """The brokers take more than we accept; else the producer alone would learn of it."""
    value = b"x" * (2 * with_topics.kafka.max_message_bytes)
    assert send(DEAD_LETTERS, None, value, partition=0).offset >= 0


@pytest.mark.system
def test_partitions_are_those_that_kafka_python_chooses(with_topics, send):
    for user in (f"user-{number}" for number in range(8)):
        chosen = send(WATCH_EVENTS, user.encode(), b"{}").partition
        assert chosen == partition_of(user, with_topics.kafka.partitions)
