"""A line to Milvus that is late or cut (tests/harness/network/line.py): a search costs no more than its time, and what
was to be written is written afterwards. The same of a whole system: tests/system/test_outages.py."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from indexer.build import fill
from indexer.collection import Index
from indexer.errors import IndexUnavailable
from indexer.item_attributes import AttributeTable
from indexer.pending_writes import PendingWrites
from indexer.retry import Retry
from indexer.rollout import WHOLE
from infra.local.milvus_server import MilvusServer
from infra.platform.health import Health
from infra.platform.settings import Milvus, Serving
from models.release.bundle import read_bundle
from serving.request.retrieval import INDEX, MIRROR, Query, Retrieval
from serving.state.release import load_release
from streams.bundles.source import BundleSource
from tests.harness.network.line import Line, line_to
from tests.harness.system import wait_until
from tests.unit.serving.worlds import train_small

VECTORS = np.eye(3, 9, dtype=np.float32)
SEARCH_S, LATE_S = 0.5, 3.0
PATIENCE_S = 30.0


@pytest.fixture
def line(milvus: MilvusServer) -> Iterator[Line]:
    with line_to(milvus.address) as line:
        yield line


@pytest.fixture
def index(line: Line) -> Iterator[Index]:
    section = Milvus(uri=f"http://{line.address}", collection_prefix="slow_", timeout_s=1.0)
    with contextlib.closing(Index(section)) as index:
        yield index
        for version in index.versions():
            index.drop(version)


def test_a_row_that_is_to_be_written_while_the_line_is_cut_is_there_afterwards(line: Line, index: Index):
    index.create("a", 9)
    index.upsert("a", ["x"], VECTORS[:1], [0])
    health = Health("indexer", ready=True, waiting_for="")
    retry = Retry(threading.Event(), health, lambda: None)
    writing = threading.Thread(daemon=True, target=lambda: retry(lambda: index.upsert("a", ["y"], VECTORS[1:2], [1])))
    with line.cut():
        writing.start()
        wait_until(lambda: health.waiting_for.startswith("Milvus"), "it says what it waits for", PATIENCE_S)
        assert writing.is_alive() and not health.ready
    writing.join(PATIENCE_S)
    assert sorted(index.vectors("a", ["x", "y"])) == ["x", "y"] and health.ready


def test_while_milvus_is_late_the_mirror_answers_in_time_and_afterwards_the_index_again(
    line: Line, index: Index, tmp_path: Path
):
    bundle = read_bundle(tmp_path / train_small(tmp_path, 1).version)
    version, retry = bundle.manifest.version, Retry(threading.Event(), Health("indexer"), lambda: None)
    for _ in fill(index, bundle, PendingWrites(), AttributeTable(), batch=1000, retry=retry):
        pass
    index.mark(version, WHOLE)
    release = load_release(BundleSource(tmp_path), version, index, mirror_items=1_000_000)
    query = Query(release.model.item_vectors()[0], 5)
    with contextlib.closing(Retrieval(Serving(first="index", search_s=SEARCH_S, audit_share=0.0), seed=1)) as retrieval:

        def ask(now_ms: int) -> str:
            """Who answers."""
            search = retrieval.start([query], release, now_ms=now_ms, left_s=PATIENCE_S)
            answer = retrieval.finish(search, now_ms=now_ms)
            assert answer.found is not None and len(answer.found[0][0]) == 5
            return answer.by

        assert ask(0) == INDEX
        with line.late(LATE_S):
            began_s = time.monotonic()
            assert [ask(1), ask(2)] == [MIRROR, MIRROR]
            assert time.monotonic() - began_s < LATE_S
            with pytest.raises(IndexUnavailable):
                index.search(version, query.vector[None], 5, timeout_s=SEARCH_S)
        hours = iter(range(3_600_000, 10**12, 3_600_000))  # of the breaker's clock: a shadow is due at each
        wait_until(lambda: ask(next(hours)) == INDEX, "the index again", PATIENCE_S)
