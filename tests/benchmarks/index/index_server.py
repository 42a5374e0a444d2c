"""Retrieval on a Milvus server beside the bare search that it cannot do without, and what becomes of rows that are
written meanwhile.

The product's way is serving's own (serving/request/retrieval.py), the index first and no mirror; the bare one is
pymilvus' search of the same collection at the same consistency. Both are asked in turns, query by query.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain

import numpy as np
from pymilvus import MilvusClient

from indexer.build import fill
from indexer.collection import Index
from indexer.errors import IndexFailure
from indexer.pending_writes import PendingWrites
from indexer.rollout import WHOLE
from indexer.schema import collection_name
from infra.local.milvus_server import start_milvus
from infra.platform.settings import Milvus, Serving, Settings
from serving.request.retrieval import Query, Retrieval
from serving.state.release import LiveRelease, load_release
from streams.bundles.source import source_of
from tests.benchmarks.index.index_ground import Floats, Ground, world_ground
from tests.benchmarks.report import Report, percentiles, quantile
from tests.conftest import milvus_answers
from tests.harness.system import stopping, temporary_settings

PREFIX = "benchmark_"  # beside whatever else the server holds
ITEMS, QUICK_ITEMS = 10_000, 2_000
QUERIES, QUICK_QUERIES = 400, 60  # of each concurrency, for each of the two
CONCURRENCIES = (1, 8)
WRITTEN_TIMES = 2  # every row
HITS, BATCH = 500, 1000
PATIENT_S = 10.0
SERVING = Serving(first="index", search_s=PATIENT_S, audit_share=0.0)

Ask = Callable[[Floats], int]  # searches, and returns how many hits there were


@dataclass
class Written:
    """What became of rows that were written while another searched."""

    rows: int = 0
    searches: int = 0
    short: int = 0  # searches that found fewer than they were asked for
    failed: int = 0


@contextmanager
def milvus_of(settings: Settings) -> Iterator[tuple[Milvus, str]]:
    """Where it is measured: NEXTWATCH_TEST_MILVUS where it is set, else a Milvus Lite of our own; and its name."""
    with ExitStack() as stack:
        uri, name = os.environ.get("NEXTWATCH_TEST_MILVUS", ""), "a Milvus server"
        if not uri:
            uri, name = stack.enter_context(stopping(start_milvus(settings, probe=milvus_answers))).uri, "Milvus Lite"
        more = {"uri": uri, "collection_prefix": PREFIX, "timeout_s": 60.0}
        yield settings.milvus.model_copy(update=more), name


def measure(report: Report, quick: bool) -> None:
    """Search times in turns, at each concurrency; then all rows written anew while one searches."""
    items, queries = (QUICK_ITEMS, QUICK_QUERIES) if quick else (ITEMS, QUERIES)
    with temporary_settings() as settings, milvus_of(settings) as (milvus, name), closing(Index(milvus)) as index:
        ground = world_ground(items, settings.bundles_dir)
        version, vectors = ground.bundle.manifest.version, ground.user_vectors(queries)
        report.title = f"milvus: {items:,} items, {HITS} best, {name}, {milvus.consistency}, {queries} queries of each"
        report.note(ground.note)
        try:
            release = filled(index, ground, settings)
            for concurrency in CONCURRENCIES:
                add_turns(report, milvus, release, vectors, concurrency)
            add_written(report, milvus, index, ground, vectors)
        finally:
            with suppress(IndexFailure):
                index.drop(version)


def filled(index: Index, ground: Ground, settings: Settings) -> LiveRelease:
    """The release as a server holds it, with a whole collection and without a mirror."""
    version, batch = ground.bundle.manifest.version, settings.indexer.batch
    for _ in fill(index, ground.bundle, PendingWrites(), ground.attributes(), batch=batch, retry=lambda call: call()):  # type: ignore[arg-type]
        pass
    index.mark(version, WHOLE)
    return load_release(source_of(settings), version, index)


@contextmanager
def product(release: LiveRelease) -> Iterator[Ask]:
    retrieval = Retrieval(SERVING, seed=1)

    def ask(vector: Floats) -> int:
        started = retrieval.start([Query(vector, HITS)], release, now_ms=0, left_s=PATIENT_S)
        answer = retrieval.finish(started, now_ms=0)
        if answer.found is None:
            raise IndexFailure(answer.reason)
        return len(answer.found[0][0])

    with closing(retrieval):
        yield ask


@contextmanager
def bare(milvus: Milvus, version: str) -> Iterator[Ask]:
    with closing(MilvusClient(milvus.uri)) as client:

        def ask(vector: Floats) -> int:
            [hits] = client.search(
                collection_name(PREFIX, version),
                data=[vector],
                anns_field="vector",
                limit=HITS,
                search_params={"metric_type": "IP"},
                output_fields=["item_id"],  # Milvus Lite takes none for all
                consistency_level=milvus.consistency,
            )
            return len(hits.ids)

        yield ask


def add_turns(report: Report, milvus: Milvus, release: LiveRelease, vectors: Floats, concurrency: int) -> None:
    """So many askers at once, each with its own connection of each kind."""
    with ThreadPoolExecutor(concurrency) as pool:
        parts = pool.map(lambda mine: in_turns(milvus, release, mine), np.array_split(vectors, concurrency))
        found = [list(chain.from_iterable(times)) for times in zip(*parts, strict=True)]
    for who, times in zip(("retrieval", "bare pymilvus"), found, strict=True):
        report.add(concurrency=concurrency, what=who, searches=len(times), **percentiles(times))
    ours, theirs = (quantile(times, 0.5) for times in found)
    if concurrency == 1:
        report.bar("p50 of retrieval over that of a bare search, concurrency 1", ours / theirs, at_most=1.3)
    else:
        report.note(f"concurrency {concurrency}: {ours / theirs:.2f} times a bare search")


def in_turns(milvus: Milvus, release: LiveRelease, vectors: Floats) -> tuple[list[float], list[float]]:
    """Milliseconds of each, who goes first changes; the first two of each are a warm-up."""
    with product(release) as ours, bare(milvus, release.version) as theirs:
        found: dict[Ask, list[float]] = {ours: [], theirs: []}
        for number, vector in enumerate(vectors[[0, 1, *range(len(vectors))]]):
            for ask in (ours, theirs) if number % 2 == 0 else (theirs, ours):
                began_s = time.perf_counter()
                ask(vector)
                found[ask].append(1000 * (time.perf_counter() - began_s))
        return found[ours][2:], found[theirs][2:]


def add_written(report: Report, milvus: Milvus, index: Index, ground: Ground, queries: Floats) -> None:
    """All rows are written anew, twice, while one searches; then each must hold what was written last."""
    told, stop = Written(), threading.Event()
    with closing(Index(milvus)) as reader:
        searcher = threading.Thread(target=search_on, args=(reader, ground, queries, told, stop))
        searcher.start()
        began_s = time.monotonic()
        try:
            write_all(index, ground, told)
        finally:
            spent_s = time.monotonic() - began_s
            stop.set()
            searcher.join()
    version, items = ground.bundle.manifest.version, ground.bundle.manifest.items
    stale = count_stale(index, ground)
    report.note(f"{told.rows:,} rows upserted ({told.rows / spent_s:,.0f}/s) beside {told.searches} searches of one")
    report.bar("calls that failed", told.failed, at_most=0)
    report.bar(f"searches that found fewer than {HITS}", told.short, at_most=0)
    report.bar("rows that do not hold what was written last", stale, at_most=0)
    report.bar("rows too many or too few", abs(index.count(version) - items), at_most=0)


def search_on(reader: Index, ground: Ground, queries: Floats, told: Written, stop: threading.Event) -> None:
    version, at = ground.bundle.manifest.version, 0
    while not stop.is_set():
        try:
            [(found, _)] = reader.search(version, queries[at % len(queries)][None], HITS, timeout_s=PATIENT_S)
            told.short += len(found) < HITS
        except IndexFailure:
            told.failed += 1
        told.searches, at = told.searches + 1, at + 1


def write_all(index: Index, ground: Ground, told: Written) -> None:
    for step in range(1, WRITTEN_TIMES + 1):
        for ids, vectors in batches_of(ground):
            try:
                index.upsert(
                    ground.bundle.manifest.version, ids, vectors * np.float32(1 + step / 1000), [step] * len(ids)
                )
                told.rows += len(ids)
            except IndexFailure:
                told.failed += 1


def count_stale(index: Index, ground: Ground) -> int:
    stale = 0
    for ids, vectors in batches_of(ground):
        found, last = index.vectors(ground.bundle.manifest.version, ids), vectors * np.float32(1 + WRITTEN_TIMES / 1000)
        for item_id, vector in zip(ids, last, strict=True):
            step, held = found.get(item_id, (0, vector))
            stale += step != WRITTEN_TIMES or not np.array_equal(held, vector)
    return stale


def batches_of(ground: Ground) -> Iterator[tuple[list[str], Floats]]:
    model = ground.bundle.model
    for start in range(0, len(model.item_ids), BATCH):
        rows = slice(start, start + BATCH)
        yield model.item_ids[rows], model.item_vectors(rows)
