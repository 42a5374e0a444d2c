from __future__ import annotations

import uuid

import pytest

from infra.platform.run_files import fill_in
from infra.platform.settings import Kafka, Settings
from models.release.bundle import Bundle, read_bundle
from streams.topics import create_topics
from tests.unit.serving.worlds import train_small


@pytest.fixture(scope="module")
def with_topics(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of a broker on which our topics are; the tests of a module share them."""
    own = Settings(
        data_dir=tmp_path_factory.mktemp("streams"),
        kafka=Kafka(topic_prefix=f"t{uuid.uuid4().hex[:8]}-", partitions=2),
    )
    settings = fill_in(own, kafka, "")
    create_topics(settings.kafka)
    return settings


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A release of 40 items. Tests only read it."""
    bundles_dir = tmp_path_factory.mktemp("bundles")
    return read_bundle(bundles_dir / train_small(bundles_dir).version)
