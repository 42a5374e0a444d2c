"""How long a vector takes from its topic until a search finds it, under a steady load on the real indexer process."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import numpy as np
from confluent_kafka import Producer

from indexer.collection import Index
from infra.operate.training import published
from infra.platform.settings import Settings
from streams.kafka.releases import announce
from streams.messages import ItemVector, encode
from streams.topics import ITEM_VECTORS, ITEMS
from tests.benchmarks.events.freshness import add_row, every
from tests.benchmarks.index.index_ground import Ground, world_ground
from tests.benchmarks.load import create_load, send_all
from tests.benchmarks.report import Report, histogram_quantile, quantile
from tests.harness.system import embedded, read_metrics, running, temporary_settings, wait_until

ITEMS_COUNT, ROWS_PER_S = 10_000, 500
PROBE_S, LOOK_S, PATIENCE_S = 0.5, 0.05, 30.0
LAG, UPSERTED = "nextwatch_index_lag_seconds", "nextwatch_index_rows_upserted_total"
STANDSTILL = 'nextwatch_index_standstill_seconds_total{dependency="milvus"}'


def measure(report: Report, quick: bool) -> None:
    """Published to found by a search: every row by the indexer's metric, and a probe twice a second from outside."""
    seconds = 10 if quick else 60
    report.title = f"index lag: {ROWS_PER_S} rows/s for {seconds} s, {ITEMS_COUNT:,} items, Milvus Lite, FLAT"
    with temporary_settings() as own:
        ground = world_ground(ITEMS_COUNT, own.bundles_dir)
        report.note(ground.note)
        with (
            embedded(own) as settings,
            running(settings, ("indexer",)),
            contextlib.closing(Index(settings.milvus)) as index,
        ):
            publish(settings, ground)
            wait_until(lambda: is_announced(index, ground), "the index is announced", 120, 1.0)
            before = read_metrics(settings, "indexer")
            found_s, sent = load(settings, ground, index, seconds)
            after = read_metrics(settings, "indexer")
    p50, p99 = (histogram_quantile(before, after, LAG, q) for q in (0.5, 0.99))
    count = round(after[f"{LAG}_count"] - before[f"{LAG}_count"])
    report.add(what="every row written (indexer's metric)", n=count, **{"p50 s": p50, "p99 s": p99})
    add_row(report, "probes, published until a search finds them", found_s)
    still = (after[STANDSTILL] - before.get(STANDSTILL, 0.0)) / seconds
    report.note(f"{sent / seconds:.0f} rows/s sent; the indexer stood still for Milvus {still:.0%} of the time")
    report.bar("vector published to searchable, probes, p99 s", quantile(found_s, 0.99), at_most=2.0)
    report.bar("vector published to searchable, every row, p99 s", p99, at_most=2.0)


def publish(settings: Settings, ground: Ground) -> None:
    """The catalogue, then the release."""
    send_all(settings.kafka, ITEMS, ((item.item_id.encode(), encode(item)) for item in ground.items))
    announce(settings.kafka, published(ground.bundle.manifest))


def is_announced(index: Index, ground: Ground) -> bool:
    version = ground.bundle.manifest.version
    return version in index.versions() and index.mark_of(version).startswith("announced")


def load(settings: Settings, ground: Ground, index: Index, seconds: float) -> tuple[list[float], int]:
    """Seconds until each probe was found, and how many rows were sent beside them."""
    producer = create_load(settings.kafka, linger_ms=1)
    topic = settings.kafka.topic_prefix + ITEM_VECTORS
    rows, sent, began_s = touched_rows(ground), 0, time.monotonic()

    def send_due() -> None:
        nonlocal sent
        while sent < ROWS_PER_S * min(seconds, time.monotonic() - began_s):
            key, value = next(rows)
            producer.produce(topic, key=key, value=value)
            sent += 1
        producer.poll(0)

    found_s: list[float] = []
    with every(0.01, send_due):
        number = 0
        while time.monotonic() - began_s < seconds:
            due_s = began_s + PROBE_S * number
            time.sleep(max(0.0, due_s - time.monotonic()))
            found_s.append(probe(producer, topic, ground, index, number))
            number += 1
    producer.flush(10)
    return found_s, sent


def touched_rows(ground: Ground) -> Iterator[tuple[bytes, bytes]]:
    """Popular items more often than others, each time a little changed."""
    rng, model, version = np.random.default_rng(1), ground.bundle.model, ground.bundle.manifest.version
    vectors, step = model.item_vectors(), 0
    popularity = vectors[:, -1].astype(np.float64)
    chance = np.exp(popularity - popularity.max())
    while True:
        for row in rng.choice(len(vectors), 10_000, p=chance / chance.sum()):
            step += 1
            changed = (vectors[row] + rng.normal(0, 0.01, vectors.shape[1])).astype("<f4")
            yield model.item_ids[row].encode(), encode(ItemVector(version, step, changed.tobytes(), b"", 0))


def probe(producer: Producer, topic: str, ground: Ground, index: Index, number: int) -> float:
    """Seconds from sending the row of a new item until a search for its own vector has it on top."""
    version, dim = ground.bundle.manifest.version, ground.bundle.manifest.dim
    vector = np.random.default_rng(number).normal(0, 3.0, dim).astype(np.float32)  # longer than all others
    item_id, message = f"probe-{number}", ItemVector(version, 1, vector.tobytes(), b"", 0)
    sent_s = time.monotonic()
    producer.produce(topic, key=item_id.encode(), value=encode(message))
    producer.poll(0)
    while time.monotonic() - sent_s < PATIENCE_S:
        if index.search(version, vector[None], 1)[0][0] == [item_id]:
            break
        time.sleep(LOOK_S)
    return time.monotonic() - sent_s
