"""One topic has no leader for a while, and all others have: its only copies are on a broker that is stopped.

All our processes run, on three brokers and a Milvus.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from kafka import KafkaAdminClient, TopicPartition

from infra.local.milvus_server import start_milvus
from infra.local.stack import milvus_answers
from streams import topics
from tests.harness.cluster.brokers import ASKED, Brokers, insist_on
from tests.harness.outages import System, outage_settings, running_on
from tests.harness.system import stopping, wait_until, with_section

MOVED_S = 60.0
WRITTEN = (  # by our own processes, from watch-events and requests on
    topics.USER_HISTORIES,
    topics.TRAINING_EXAMPLES,
    topics.ITEM_VECTORS,
    topics.IMPRESSIONS,
    topics.RECOMMEND_REPLIES,
    topics.RANKING_EXAMPLES,
)


@contextlib.contextmanager
def running_on_three(data_dir: Path) -> Iterator[System[Brokers]]:
    settings = outage_settings(data_dir)
    with Brokers(data_dir) as brokers, stopping(start_milvus(settings, probe=milvus_answers)) as milvus:
        settings = with_section(settings, "kafka", bootstrap=brokers.bootstrap)
        settings = with_section(settings, "milvus", uri=milvus.uri)
        topics.create_topics(settings.kafka)
        with running_on(settings, brokers, milvus) as system:
            brokers.wait_whole()
            yield system


@contextlib.contextmanager
def without(brokers: Brokers, topic: str) -> Iterator[None]:
    """Within the block nobody leads the topic; afterwards all brokers have all copies of everything again. The broker
    hands over what else it leads, and does not lead the quorum, so that nothing else is away."""
    lost = next(number for number in brokers.nodes if number not in (ASKED, brokers.controller()))
    copy_to(brokers, topic, [lost])
    insist_on(brokers, [topic], 1)
    brokers.stop(lost)
    try:
        yield
    finally:
        brokers.start(lost)
        wait_until(lambda: brokers.answers(lost), f"broker {lost}", MOVED_S, every_s=0.2)
        wait_until(lambda: brokers.leader(topic) == lost, f"{topic} led again", MOVED_S, every_s=0.2)
        copy_to(brokers, topic, list(brokers.nodes))
        brokers.wait_whole()
        insist_on(brokers, [topic], len(brokers.nodes) - 1)


def copy_to(brokers: Brokers, topic: str, numbers: list[int]) -> None:
    """Let these brokers have all partitions of the topic, and no others; return when they do."""
    places = [TopicPartition(topic, number) for number in brokers.copies(topic)]
    admin = KafkaAdminClient(bootstrap_servers=brokers.bootstrap.split(","))
    try:
        refused = admin.alter_partition_reassignments(dict.fromkeys(places, numbers))
        assert not any(refused.values()), refused
        wait_until(
            lambda: all(copies == set(numbers) for copies in brokers.copies(topic).values()), f"{topic} moved", MOVED_S
        )
    finally:
        admin.close()
