"""Announcing on `releases`, waiting until somebody has taken a release up, and reading the experiments there."""

from __future__ import annotations

import time
from collections.abc import Callable

from kafka import KafkaProducer

from infra.platform.kafka_clients import kafka_python_options
from infra.platform.settings import Kafka
from streams import topics
from streams.experiments import Experiments
from streams.kafka.follow import TopicFollower, read_to_end
from streams.messages import Experiment, IndexReady, Refused, Release, ServerState, SourceTopics, decode, encode


def announce(kafka: Kafka, release: Release) -> None:
    """Write one release message and wait for its acknowledgement."""
    producer = KafkaProducer(**kafka_python_options(kafka), client_id="nextwatch-releases")
    try:
        key = key_of(release).encode()
        producer.send(kafka.topic_prefix + topics.RELEASES, key=key, value=encode(release)).get(timeout=30)
    finally:
        producer.close()


def read_experiments(kafka: Kafka) -> Experiments:
    """All that `releases` tells of experiments now. Raises TopicMissing, KafkaError."""
    experiments = Experiments()
    for record in read_to_end(kafka, topics.RELEASES):
        experiments.hear(record.key, record.value)
    return experiments


def key_of(release: Release) -> str:
    """The key of a message on the topic: its kind, and for a server, a worker or an experiment its name too."""
    kind = str(release.__struct_config__.tag)
    match release:
        case ServerState(server_id=name) | SourceTopics(worker=name) | Experiment(name=name):
            return f"{kind}/{name}"
    return kind


def wait_until_served(
    kafka: Kafka, version: str, timeout_s: float, progress: Callable[[str], None] = lambda what: None
) -> bool:
    """Return whether a server says within `timeout_s` that it answers from `version`; `progress` is told of each
    step."""
    deadline = time.monotonic() + timeout_s
    with TopicFollower(kafka, topics.RELEASES) as follower:
        while time.monotonic() < deadline:
            for record in follower.poll(0.1):
                try:
                    release: Release = decode(Release, record.value)  # type: ignore[arg-type]
                except Refused:
                    continue
                if isinstance(release, IndexReady) and release.version == version:
                    progress("index ready")
                if isinstance(release, ServerState) and release.version == version:
                    return True
    return False
