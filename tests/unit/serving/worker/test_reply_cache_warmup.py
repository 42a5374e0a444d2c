"""What a new owner knows of the replies that the one before has given, read from a real broker."""

import time

import pytest
from kafka import KafkaProducer

from infra.platform.kafka_clients import kafka_python_options
from infra.platform.settings import Settings
from serving.worker.reply_cache import Key
from serving.worker.reply_cache_warmup import Recent, ReplyCacheWarmup, read_recent
from streams import topics
from streams.messages import Assigned, Impression, RecommendReply, Shown, decode, encode
from tests.conftest import on_both_brokers
from tests.harness.system import wait_until, with_section

pytestmark = [pytest.mark.system, on_both_brokers]

NOW_MS = int(time.time() * 1000)  # what is older than the topic's retention, a broker may delete at any moment


@pytest.fixture
def told(kafka_settings: Settings) -> Settings:
    """Impressions of a minute and a second ago, one on the other partition, and what is no impression."""
    settings = with_section(kafka_settings, "kafka", partitions=2)
    topics.create_topics(settings.kafka)
    name = settings.kafka.topic_prefix + topics.IMPRESSIONS
    producer = KafkaProducer(**kafka_python_options(settings.kafka))
    for request_id, partition, ago_ms in (("old", 0, 60_000), ("new", 0, 1000), ("other", 1, 1000)):
        shown = (Shown("a", 1, "two_tower", 1.5, 20.0, probability=0.25), Shown("b", 2, "trending", 7.0))
        impression = Impression(
            request_id,
            "ann",
            NOW_MS - ago_ms,
            "server-1",
            "v1",
            shown,
            assigned=Assigned("one", "b"),
            ranked_by="v2",
        )
        producer.send(name, encode(impression), partition=partition, timestamp_ms=NOW_MS - ago_ms)
    producer.send(name, b"broken", partition=0, timestamp_ms=NOW_MS)
    producer.flush()
    producer.close()
    return settings


def test_the_replies_of_the_last_moments_are_read_from_impressions(told: Settings) -> None:
    [found] = read_recent(told.kafka, [0], NOW_MS - 30_000)
    assert (found.key, found.at_ms) == (Key("ann", "new"), NOW_MS - 1000)
    reply = decode(RecommendReply, found.reply)
    assert (reply.request_id, reply.version, reply.served_by) == ("new", "v1", "server-1")
    assert (reply.experiment, reply.variant, reply.ranked_by) == ("one", "b", "v2")
    assert [
        (item.item_id, item.rank, item.source, item.expected_watch_s, item.probability) for item in reply.items
    ] == [("a", 1, "two_tower", 20.0, 0.25), ("b", 2, "trending", None, None)]


def test_only_partitions_that_are_new_are_read_and_each_says_when_it_was(told: Settings) -> None:
    warmup = ReplyCacheWarmup(told.kafka, window_s=30.0)
    warmup.begin(frozenset({0}), NOW_MS)
    assert [recent.key.request_id for recent in until_read(warmup, frozenset({0}))] == ["new"]
    warmup.begin(frozenset({0, 1}), NOW_MS)
    assert warmup.read >= {0}
    assert [recent.key.request_id for recent in until_read(warmup, frozenset({0, 1}))] == ["other"]
    warmup.begin(frozenset({1}), NOW_MS)
    assert warmup.read == {1}


def test_without_a_window_nothing_is_waited_for(told: Settings) -> None:
    warmup = ReplyCacheWarmup(told.kafka, window_s=0.0)
    warmup.begin(frozenset({0, 1}), NOW_MS)
    assert warmup.read == {0, 1}
    assert warmup.take() == []


def until_read(warmup: ReplyCacheWarmup, partitions: frozenset[int]) -> list[Recent]:
    wait_until(lambda: warmup.read == partitions, "the partitions are read", 20, every_s=0.01)
    return warmup.take()
