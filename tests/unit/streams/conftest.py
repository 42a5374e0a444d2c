from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kafka import KafkaProducer

from infra.platform.kafka_clients import kafka_python_options
from infra.platform.run_files import fill_in
from infra.platform.settings import Kafka, Settings
from models.release.bundle import Bundle, read_bundle
from streams.topics import create_topics
from tests.unit.serving.worlds import train_small


@pytest.fixture(scope="module")
def with_topics(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of a broker on which our topics are; the tests of a module share them."""
    own = Settings(
        data_dir=tmp_path_factory.mktemp("streams"), kafka=Kafka(topic_prefix=f"t{uuid.uuid4().hex[:8]}-", partitions=2)
    )
    settings = fill_in(own, kafka, "")
    create_topics(settings.kafka)
    return settings


@pytest.fixture(scope="module")
def send(with_topics: Settings) -> Iterator[Callable[..., Any]]:
    """Write a record to a topic of ours; where it stands, acknowledged."""
    kafka = with_topics.kafka
    producer = KafkaProducer(**kafka_python_options(kafka), max_request_size=8 * kafka.max_message_bytes)

    def write(topic: str, key: bytes | None, value: bytes | None, **how: Any) -> Any:
        return producer.send(kafka.topic_prefix + topic, value, key=key, **how).get(timeout=30)

    yield write
    producer.close()


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A release of 40 items. Tests only read it."""
    bundles_dir = tmp_path_factory.mktemp("bundles")
    return read_bundle(bundles_dir / train_small(bundles_dir).version)
