"""Copies of our topics that are not in sync, looked for now and then: the brokers tell, and nobody else here would.

One process looks for all (the indexer that holds the lease), in a thread of its own. While the brokers do not answer,
nothing is said of copies; that they are away is told by whoever waits for them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import structlog

from infra.platform import metrics
from infra.platform.settings import Kafka
from streams.topics import TOPICS, open_admin

log = structlog.get_logger(__name__)

LOOK_S = 60.0


@contextmanager
def watching_copies(kafka: Kafka) -> Iterator[None]:
    """Show how many partitions of each topic lack copies, while the block runs."""
    stop = threading.Event()
    thread = threading.Thread(target=_watch, args=(kafka, stop), name="copies", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=1.0)  # it may be waiting for a broker, and is nothing that has to end well
        metrics.UNDER_REPLICATED.clear()


def lacking(described: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """By topic, as the brokers describe them, how many partitions have fewer copies in sync than there should be."""
    return {
        topic["name"]: sum(len(each["isr_nodes"]) < len(each["replica_nodes"]) for each in topic["partitions"])
        for topic in described
    }


def look(kafka: Kafka) -> dict[str, int]:
    """Ask the brokers for the same of those of our topics that are there. Raises KafkaError."""
    names = {kafka.topic_prefix + topic.name: topic.name for topic in TOPICS}
    with open_admin(kafka) as admin:
        there = names.keys() & set(admin.list_topics())
        found = lacking(admin.describe_topics(sorted(there))) if there else {}  # of none it would describe all
    return {names[name]: count for name, count in found.items()}


def _watch(kafka: Kafka, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            found = look(kafka)
        except Exception as error:  # outermost: a broker that is away, or answers oddly, ends no look after this one
            log.debug("copies are not known", error=str(error))
            found = {}
        metrics.UNDER_REPLICATED.clear()
        for topic, count in () if stop.is_set() else found.items():
            metrics.UNDER_REPLICATED.labels(topic).set(count)
        stop.wait(LOOK_S)
