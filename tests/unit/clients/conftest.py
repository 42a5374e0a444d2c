"""Topics that the tests of a module share; each test has a client of its own."""

from __future__ import annotations

import uuid

import pytest

from infra.platform.settings import Kafka
from streams.topics import create_topics


@pytest.fixture(scope="module")
def topics(kafka: str) -> Kafka:
    settings = Kafka(bootstrap=kafka, topic_prefix=f"c{uuid.uuid4().hex[:8]}-", partitions=2)
    create_topics(settings)
    return settings
