"""The serving process over a real broker and Milvus Lite, with a release of any size: started, asked, and stopped.

Only what answers a request runs beside it: the indexer, which fills the collection as it does for any release.
Histories, catalogue and trending are written into their topics as their workers write them.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from indexer.collection import Index
from indexer.errors import IndexFailure
from infra.local.milvus_server import MilvusServer
from infra.operate.training import published
from infra.platform.guarded_process import GuardedProcess
from infra.platform.health import fetch_health
from infra.platform.run_files import read_run_files
from infra.platform.settings import Settings
from models.release.bundle import Bundle, read_bundle
from nextwatch_client import RecommendClient, RecommendReply, RecommendRequest, RequestFailed
from streams.kafka.releases import announce
from streams.messages import UserHistory, encode
from streams.topics import ITEMS, TRENDING, USER_HISTORIES
from tests.benchmarks.load import send_all
from tests.benchmarks.report import say
from tests.benchmarks.serving.large import enlarged
from tests.benchmarks.serving.serving_ground import items_of, trending_of, viewers_of
from tests.harness.system import (
    cli,
    process,
    running,
    services,
    temporary_settings,
    wait_for_health,
    wait_until,
    with_section,
)

VIEWERS = 200
FILL_S, TELL_EVERY_S = 1800.0, 10.0
PATIENCE_S = 30.0  # of a client, so that nothing is shed: what is late shall show as late
MEMORY = {"anonymous": "Pss_Anon", "mapped": "Pss_File", "all": "Pss"}


@dataclass
class Ground:
    """A broker, Milvus Lite and an indexer that run, and the release that was announced last."""

    settings: Settings
    milvus: MilvusServer
    bundle: Bundle
    viewers: list[UserHistory]


@dataclass(frozen=True)
class Load:
    """What became of a closed loop of requests: the whole way of each in ms and its reply, in their order; `wall_s`
    from the first to the last. `unanswered` are in neither list."""

    whole_ms: list[float]
    replies: list[RecommendReply]
    wall_s: float
    unanswered: int = 0

    @property
    def per_s(self) -> float:
        return len(self.replies) / self.wall_s

    @property
    def degraded(self) -> int:
        return sum(bool(reply.degraded) or not reply.version for reply in self.replies)

    def __add__(self, other: Load) -> Load:
        return Load(
            self.whole_ms + other.whole_ms,
            self.replies + other.replies,
            self.wall_s + other.wall_s,
            self.unanswered + other.unanswered,
        )


NO_LOAD = Load([], [], 0.0)


@contextlib.contextmanager
def ground(small: Bundle, **sections: dict[str, Any]) -> Iterator[Ground]:
    """Services, topics and an indexer; no release is announced yet. On NEXTWATCH_TEST_MILVUS, where it is set."""
    with temporary_settings(**sections) as own, services(own) as (given, _, milvus):
        settings = with_section(given, "milvus", uri=os.environ.get("NEXTWATCH_TEST_MILVUS", given.milvus.uri))
        with running(settings, ["indexer"]):
            yield Ground(settings, milvus, small, [])


def publish(on: Ground, small: Bundle, items: int) -> None:
    """Announce a release of so many items, with its catalogue and its viewers, and wait for its collection."""
    settings, now_ms = on.settings, time.time_ns() // 1_000_000
    manifest = enlarged(small, settings.bundles_dir, items)
    on.bundle = read_bundle(settings.bundles_dir / manifest.version)
    item_ids = on.bundle.model.item_ids
    on.viewers = viewers_of(item_ids, VIEWERS, now_ms)
    send_all(settings.kafka, ITEMS, ((i.item_id.encode(), encode(i)) for i in items_of(on.bundle.catalogue)))
    send_all(settings.kafka, USER_HISTORIES, ((v.user_id.encode(), encode(v)) for v in on.viewers))
    send_all(settings.kafka, TRENDING, [(b"global/0", encode(trending_of(item_ids, now_ms)))])
    announce(settings.kafka, published(manifest))
    _wait_for_collection(settings, manifest.version, items)


def _wait_for_collection(settings: Settings, version: str, items: int) -> None:
    """Until the indexer has announced it; how far it is goes to the person who waits."""
    began_s = told_s = time.monotonic()
    with contextlib.closing(Index(settings.milvus)) as index:

        def is_announced() -> bool:
            nonlocal told_s
            if time.monotonic() - told_s >= TELL_EVERY_S:
                told_s = time.monotonic()
                with contextlib.suppress(IndexFailure):  # not made yet, or busy
                    say(f"  {index.count(version):,} of {items:,} rows in the collection")
            return health_of(settings, "indexer").get("index_version") == version

        wait_until(is_announced, f"the collection of {items:,} items", FILL_S, every_s=0.5)
    say(f"collection of {items:,} items: {time.monotonic() - began_s:.0f} s from its announcement")


@contextlib.contextmanager
def served(on: Ground, **serving: Any) -> Iterator[tuple[Settings, GuardedProcess]]:
    """A serving process with these settings, once it answers from the release that was announced last."""
    settings = with_section(on.settings, "serving", **serving)
    with process(settings, "serving", cli("serve")) as started:
        wait_for_health(settings, started)
        version = on.bundle.manifest.version
        wait_until(lambda: health_of(settings, "serving").get("version_served") == version, version, 120)
        yield settings, started


def health_of(settings: Settings, name: str) -> dict[str, Any]:
    """What a process says of itself beside ready and live; empty when it does not answer."""
    record = next((each for each in read_run_files(settings.run_dir) if each["name"] == name), None)
    return {} if record is None else dict(fetch_health(record))


def ask(client: RecommendClient, user_ids: Sequence[str], concurrency: int, *, warm_up: bool = True) -> Load:
    """Ask for everyone, `concurrency` requests at a time, each as soon as one is answered; `warm_up`: a tenth more is
    asked first and left out."""
    if warm_up:
        ask(client, user_ids[: max(concurrency, len(user_ids) // 10)], concurrency, warm_up=False)
    with ThreadPoolExecutor(concurrency) as pool:
        began_s = time.perf_counter()
        answers = list(pool.map(lambda user_id: _one(client, user_id), user_ids))
        wall_s = time.perf_counter() - began_s
    found = [answer for answer in answers if answer is not None]
    return Load([ms for ms, _ in found], [reply for _, reply in found], wall_s, len(answers) - len(found))


def _one(client: RecommendClient, user_id: str) -> tuple[float, RecommendReply] | None:
    request = RecommendRequest(uuid.uuid4().hex, user_id, deadline_ms=round(1000 * PATIENCE_S))
    began_s = time.perf_counter()
    try:
        reply = client.result(client.submit(request), request, PATIENCE_S)
    except RequestFailed:
        return None
    return 1000 * (time.perf_counter() - began_s), reply


def memory_of(pid: int) -> dict[str, float]:
    """Megabytes of a process in memory (of what it shares, its share): `anonymous`, `mapped` files, `all`."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    kb = {name: float(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}
    return {name: 1.024e-3 * kb[kind] for name, kind in MEMORY.items()}
