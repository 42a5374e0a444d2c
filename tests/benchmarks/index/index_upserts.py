"""Rows per second into Milvus Lite through the indexer's writing, beside pymilvus' own upserts of the same
batches."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from statistics import median
from typing import Any

import numpy as np
from pymilvus import MilvusClient

from indexer.collection import LITE_MEMTABLE_ROWS, Index
from indexer.item_attributes import AttributeTable, as_row
from indexer.pending_writes import PendingWrites, Row
from indexer.schema import collection_name
from indexer.upserts import Upserts
from infra.local.milvus_server import start_milvus
from tests.benchmarks.index.index_ground import Ground, world_ground
from tests.benchmarks.report import Report
from tests.conftest import milvus_answers
from tests.harness.system import stopping, temporary_settings

ITEMS, BATCH = 10_000, 1000
OURS, RAW, FLUSHED = "indexer's writing", "raw pymilvus", "raw pymilvus, flushed as often"

Write = Callable[[], None]
Prepare = Callable[[int], Write]
Batches = list[tuple[list[str], Any]]


def measure(report: Report, quick: bool) -> None:
    """Three writers in turns, each into a collection of its own: all rows new, then all touched, round by round."""
    rounds = 3 if quick else 6
    report.title = f"index upserts: {ITEMS:,} rows in batches of {BATCH:,}, {rounds} rounds in turns, Milvus Lite, FLAT"
    ground = world_ground(ITEMS)
    report.note(ground.note)
    with temporary_settings() as settings, ExitStack() as stack:
        server = stack.enter_context(stopping(start_milvus(settings, probe=milvus_answers)))
        index = stack.enter_context(closing(Index(settings.milvus.model_copy(update={"uri": server.uri}))))
        client = stack.enter_context(closing(MilvusClient(server.uri)))
        add_rows(report, in_turns(writers(index, client, ground), rounds))


def in_turns(writers: dict[str, Prepare], rounds: int) -> dict[str, list[float]]:
    """Rows per second of each writer, round by round; the first round is of new rows."""
    rates: dict[str, list[float]] = {name: [] for name in writers}
    for number in range(rounds):
        for name in sorted(writers, key=lambda name: (name == OURS) ^ number % 2):  # each goes first now and then
            write = writers[name](number)
            began_s = time.perf_counter()
            write()
            rates[name].append(ITEMS / (time.perf_counter() - began_s))
    return rates


def add_rows(report: Report, rates: dict[str, list[float]]) -> None:
    """Ratios are medians over the rounds of what was measured in the same round."""
    of_raw = {name: [mine / raw for mine, raw in zip(each, rates[RAW], strict=True)] for name, each in rates.items()}
    for name, mine in rates.items():
        row = {"new rows/s": mine[0], "touched rows/s (median)": median(mine[1:]), "last round": mine[-1]}
        report.add(writer=name, **row, **{"new, of raw": of_raw[name][0], "touched, of raw": median(of_raw[name][1:])})
    report.bar("touched rows/s, the indexer's writing over raw pymilvus", median(of_raw[OURS][1:]), at_least=0.9)
    report.bar("new rows/s, the indexer's writing over raw pymilvus", of_raw[OURS][0], at_least=0.9)


def writers(index: Index, client: MilvusClient, ground: Ground) -> dict[str, Prepare]:
    bundle, attributes = ground.bundle, ground.attributes()
    item_ids, vectors = bundle.model.item_ids[:ITEMS], bundle.model.item_vectors()[:ITEMS]
    for version in ("ours", "raw", "flushed"):
        index.create(version, bundle.manifest.dim, rows=ITEMS)

    def batches(step: int) -> Batches:
        """Other items together each time, as touched rows come."""
        order = np.random.default_rng(step).permutation(ITEMS).reshape(-1, BATCH)
        return [([item_ids[row] for row in rows], vectors[rows]) for rows in order]

    return {
        OURS: ours(index, attributes, batches),
        RAW: raw(client, "raw", attributes, batches, flush=False),
        FLUSHED: raw(client, "flushed", attributes, batches, flush=True),
    }


def ours(index: Index, attributes: AttributeTable, batches: Callable[[int], Batches]) -> Prepare:
    """From touched rows, as they were read from the topic."""
    rows = PendingWrites()
    rows.follow("ours")
    upserts = Upserts(index, rows, attributes, batch=BATCH, retry=_at_once)  # type: ignore[arg-type]

    def prepare(step: int) -> Write:
        read = [
            [(item_id, Row(step, vector.tobytes())) for item_id, vector in zip(*batch, strict=True)]
            for batch in batches(step)
        ]

        def write() -> None:
            for batch in read:
                for item_id, row in batch:
                    rows.put("ours", item_id, row, now_ms=0)
                upserts.write_all(["ours"])
            if step == 0:
                index.flush("ours")  # the end of a fill

        return write

    return prepare


def raw(
    client: MilvusClient, version: str, attributes: AttributeTable, batches: Callable[[int], Batches], *, flush: bool
) -> Prepare:
    """The client's own call, with rows that are ready for it."""
    name = collection_name("items_", version)

    def prepare(step: int) -> Write:
        ready = [
            [{"item_id": i, "vector": v, "step": step} | as_row(attributes.of(i)) for i, v in zip(*batch, strict=True)]
            for batch in batches(step)
        ]

        def write() -> None:
            for number, batch in enumerate(ready, start=1):
                client.upsert(name, batch)
                if flush and number * BATCH % LITE_MEMTABLE_ROWS == 0:
                    client.flush(name)

        return write

    return prepare


def _at_once(call: Callable[[], Any]) -> Any:
    return call()
