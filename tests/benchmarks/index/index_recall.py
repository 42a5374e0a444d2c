"""How much of the exact top 500 a search of each index type finds, and how long one query takes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing

import numpy as np

from indexer.build import fill, recall_of
from indexer.collection import Index
from indexer.pending_writes import PendingWrites
from indexer.schema import collection_name
from infra.platform.settings import Settings
from tests.benchmarks.index.index_ground import Floats, Ground, many, world_ground
from tests.benchmarks.index.index_server import PREFIX, milvus_of
from tests.benchmarks.report import Report, percentiles, say
from tests.harness.system import temporary_settings, wait_until

KINDS = ("FLAT", "HNSW", "IVF_FLAT")
ON_A_SERVER = ("IVF_SQ8", "SCANN")
ITEMS, TIMES, QUICK_TIMES = 10_000, (1, 10), (1, 2)
HITS, QUERIES = 500, 50
BUILT_S = 1200.0


def measure(report: Report, quick: bool) -> None:
    """Recall@500 against an exact search, and the time of one query, for collections filled as the indexer does it."""
    on_server = "NEXTWATCH_TEST_MILVUS" in os.environ
    where = "a Milvus server" if on_server else "Milvus Lite"
    report.title = f"index recall: {HITS} best of each of {QUERIES} users, {where}, one query at a time"
    small = world_ground(ITEMS)
    report.note(small.note)
    for times in QUICK_TIMES if quick else TIMES:
        size, ground = times * ITEMS, many(small, times)
        if times > 1:
            report.note(f"{size:,}: each item {times} times, its copies half of the vectors' spread apart")
        queries = ground.user_vectors(QUERIES)
        add_exact(report, ground, queries)
        for kind in (*KINDS, *ON_A_SERVER) if on_server else KINDS:
            say(f"{kind}, {size:,} vectors")
            add_kind(report, kind, ground, queries)


def add_exact(report: Report, ground: Ground, queries: Floats) -> None:
    vectors = ground.bundle.model.item_vectors()

    def search(query: Floats) -> None:
        scores = vectors @ query
        best = np.argpartition(scores, -HITS)[-HITS:]
        best[np.argsort(-scores[best])]

    times_ms = timed(search, queries)
    row = {"vectors": len(vectors), "index": "numpy, in process", "recall@500": 1.0, "fill s": 0.0}
    report.add(**row, **percentiles(times_ms))


def add_kind(report: Report, kind: str, ground: Ground, queries: Floats) -> None:
    with temporary_settings() as settings, milvus_of(settings) as (milvus, _), ExitStack() as stack:
        index = stack.enter_context(closing(Index(milvus.model_copy(update={"index_type": kind}))))
        stack.callback(index.drop, ground.bundle.manifest.version)
        filled_s = fill_index(index, ground, settings)
        found: list[Sequence[str]] = []
        version = ground.bundle.manifest.version
        times_ms = timed(lambda query: found.append(index.search(version, query[None], HITS)[0][0]), queries)
        found = found[1:]  # without the one that warms up
    model = ground.bundle.model
    places = np.arange(len(model.item_ids))
    recall = recall_of(found, model, places, queries, HITS)
    row = {"vectors": len(places), "index": kind, "recall@500": recall, "fill s": filled_s}
    report.add(**row, **percentiles(times_ms))
    say(f"  recall {recall:.3f}, filled in {filled_s:.0f} s")
    if kind in {"FLAT", "HNSW"}:
        report.bar(f"recall@500, {kind}, {len(places):,}", recall, at_least=0.99)


def fill_index(index: Index, ground: Ground, settings: Settings) -> float:
    """Seconds until a search uses what was built (Milvus Lite searches a segment row by row until then)."""
    began_s, version = time.monotonic(), ground.bundle.manifest.version
    batch = settings.indexer.batch
    for _ in fill(index, ground.bundle, PendingWrites(), ground.attributes(), batch=batch, retry=lambda call: call()):  # type: ignore[arg-type]
        pass
    client, name = index._client(), collection_name(PREFIX, version)
    wait_until(lambda: client.describe_index(name, "vector")["pending_index_rows"] == 0, "index", BUILT_S, 1.0)
    took_s = time.monotonic() - began_s
    time.sleep(2.0)  # it says so a little too early
    return took_s


def timed(search: Callable[[Floats], object], queries: Floats) -> list[float]:
    """Milliseconds of each query."""
    times_ms = []
    search(queries[0])
    for query in queries:
        began_s = time.perf_counter()
        search(query)
        times_ms.append(1000 * (time.perf_counter() - began_s))
    return times_ms
