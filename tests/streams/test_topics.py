"""The topics on real brokers: made as the design says, and compared with it."""

from __future__ import annotations

import uuid

import pytest
from kafka import KafkaAdminClient, KafkaProducer

from infra.kafka_clients import kafka_python_options
from infra.run_files import fill_in
from infra.settings import Kafka, Settings
from streams.topics import (
    DEAD_LETTERS,
    ITEMS,
    TOPICS,
    TRAINING_EXAMPLES,
    USER_HISTORIES,
    WATCH_EVENTS,
    check_topics,
    config_of,
    create_topics,
    partition_of,
)


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
    assert len({topic.name for topic in TOPICS}) == len(TOPICS) == 15
    kafka = Kafka(retention_h=1, tombstone_h=2, max_message_bytes=1000)
    for topic in TOPICS:
        config = config_of(topic, kafka)
        assert config["cleanup.policy"] == topic.cleanup and config["max.message.bytes"] == "4000"
        assert config.get("retention.ms") == ("3600000" if topic.cleanup == "delete" else None)
        assert config.get("delete.retention.ms") == ("7200000" if topic.cleanup == "compact" else None)


@pytest.mark.system
def test_the_topics_that_are_missing_are_made_and_then_nothing_differs(kafka):
    settings = kafka_of(kafka)
    make(settings, ITEMS, 2, **{"cleanup.policy": "compact"})
    assert any(f"{settings.topic_prefix}{WATCH_EVENTS}: missing" in problem for problem in check_topics(settings))
    made = create_topics(settings)
    assert sorted(made) == sorted(settings.topic_prefix + topic.name for topic in TOPICS if topic.name != ITEMS)
    assert check_topics(settings) == [] and create_topics(settings) == []


@pytest.mark.system
def test_a_topic_that_somebody_made_otherwise_is_reported_and_left_as_it_is(kafka):
    settings = kafka_of(kafka)
    make(settings, USER_HISTORIES, 2, **{"cleanup.policy": "delete"})
    make(settings, WATCH_EVENTS, 3, **{"cleanup.policy": "delete"})
    make(settings, TRAINING_EXAMPLES, 2, **{"cleanup.policy": "delete"})
    create_topics(settings)
    problems = {
        problem.partition(": ")[0].removeprefix(settings.topic_prefix): problem for problem in check_topics(settings)
    }
    assert problems.keys() == {USER_HISTORIES, WATCH_EVENTS, TRAINING_EXAMPLES}
    assert "cleanup.policy is delete, expected compact" in problems[USER_HISTORIES]
    assert "3 partitions, expected 2" in problems[WATCH_EVENTS] and "kafka.partitions" in problems[WATCH_EVENTS]
    assert "2 partitions, expected 1 (must have one)" in problems[TRAINING_EXAMPLES]


@pytest.mark.system
def test_a_message_over_the_limit_still_reaches_us_to_be_refused_with_a_reason(with_topics):
    """The brokers take more than we accept; else the producer alone would learn of it."""
    kafka = with_topics.kafka
    producer = KafkaProducer(**kafka_python_options(kafka), max_request_size=8 * kafka.max_message_bytes)
    value = b"x" * (2 * kafka.max_message_bytes)
    sent = producer.send(kafka.topic_prefix + DEAD_LETTERS, value, partition=0).get(timeout=30)
    producer.close()
    assert sent.offset >= 0


@pytest.mark.system
def test_partitions_are_those_that_kafka_python_chooses(with_topics):
    kafka = with_topics.kafka
    producer = KafkaProducer(**kafka_python_options(kafka))
    users = [f"user-{number}" for number in range(8)]
    sent = {user: producer.send(kafka.topic_prefix + WATCH_EVENTS, b"{}", key=user.encode()) for user in users}
    chosen = {user: future.get(timeout=30).partition for user, future in sent.items()}
    producer.close()
    assert chosen == {user: partition_of(user, kafka.partitions) for user in users}
