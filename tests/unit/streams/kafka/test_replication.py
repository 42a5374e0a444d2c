"""Copies that are not in sync, as the brokers describe them."""

import time
from typing import Any

import pytest

from infra.platform import metrics
from infra.platform.settings import Kafka, Settings
from streams import topics
from streams.kafka import replication
from streams.kafka.replication import lacking, look, watching_copies
from tests.harness.system import wait_until

THREE = [1, 2, 3]


def topic(name: str, *in_sync: list[int]) -> dict[str, Any]:
    return {"name": name, "partitions": [{"replica_nodes": THREE, "isr_nodes": each} for each in in_sync]}


def shown() -> dict[str, float]:
    [family] = metrics.UNDER_REPLICATED.collect()
    return {each.labels["topic"]: each.value for each in family.samples}


def test_partitions_with_too_few_copies_in_sync_are_counted_by_topic() -> None:
    described = [topic("items", THREE, [1, 3], []), topic("releases", [3, 2, 1])]
    assert lacking(described) == {"items": 2, "releases": 0}


def test_nothing_is_said_of_copies_before_the_brokers_have_told_nor_when_they_are_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers: list[Any] = [{"items": 3}, OSError("away"), {"items": 0}]
    seen: list[dict[str, float]] = []

    def answer(kafka: Kafka) -> dict[str, int]:
        seen.append(shown())
        found = answers.pop(0) if answers else {"items": 0}
        if isinstance(found, OSError):
            raise found
        return found  # type: ignore[no-any-return]

    monkeypatch.setattr(replication, "LOOK_S", 0.01)
    monkeypatch.setattr(replication, "look", answer)
    with watching_copies(Kafka()):
        wait_until(lambda: len(seen) >= 4, "four looks", 10.0, every_s=0.01)
    assert seen[:4] == [{}, {"items": 3}, {}, {"items": 0}]
    time.sleep(0.05)
    assert shown() == {}, "another indexer tells it now"


def test_a_whole_cluster_lacks_nothing_and_topics_that_are_not_there_are_left_out(kafka_settings: Settings) -> None:
    topics.create_topics(kafka_settings.kafka.model_copy(update={"topic_prefix": "somebody-elses-"}))
    assert look(kafka_settings.kafka) == {}
    topics.create_topics(kafka_settings.kafka)
    assert look(kafka_settings.kafka) == {each.name: 0 for each in topics.TOPICS}
