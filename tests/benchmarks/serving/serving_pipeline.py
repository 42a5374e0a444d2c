"""What a request costs the answering thread of a server, from its record to its reply: dispatcher and pipeline in this
process, the exact mirror in place of Milvus, an outbox that counts in place of Kafka.

`serving --part mirror` measures the same with everything around it. Here a change of a few tenths of a millisecond can
be seen: CPU by request and the time of each stage, one request at a time and batches of 16.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from infra.platform.logs import set_up_logging
from infra.platform.settings import Settings
from infra.simulation.world import NOTICE
from models.release.bundle import newest_version, read_manifest
from models.threads import limit_threads
from serving.request.pipeline import Pipeline
from serving.request.retrieval import Retrieval
from serving.state.mirror import Mirror
from serving.state.release import LiveRelease, load_release, match_mirror
from serving.state.trending_view import TrendingView
from serving.state.views import CatalogueView, HistoryView, StatisticsView, Views
from serving.worker.dispatcher import Dispatcher
from serving.worker.reply_cache import ReplyCache
from serving.worker.worker import in_bfloat16
from streams import topics
from streams.bundles.source import BundleSource
from streams.messages import RecommendRequest, StatisticsRow, UserHistory, encode
from streams.topics import partition_of
from tests.benchmarks.ranking.ranking_ground import scratch
from tests.benchmarks.report import Report, quantile, say
from tests.benchmarks.serving.large import enlarged
from tests.benchmarks.serving.serving_ground import items_of, note_of, small_release, trending_of, viewers_of
from tests.benchmarks.serving.serving_memory import FRESH_H, MIRROR_ITEMS, FromMirror

SIZES, QUICK_SIZES = (10_000, 100_000), (10_000,)
TURNS, QUICK_TURNS = {1: 300, 16: 40}, {1: 60, 16: 10}  # by requests together
VIEWERS, WARM_UP = 200, 60  # of the latter batches of 16: what items are worth is known then
SINCE = 20_000  # items that the stream has statistics of
INDEXED = 1_000  # items that the stand-in of an index finds where there is no mirror


class Sent:
    """An outbox that counts what it is given, by topic; all of it is on record at once."""

    def __init__(self) -> None:
        self.messages: Counter[str] = Counter()
        self.offsets = self

    def wait_for_open(self) -> None:
        """It is."""

    def send(self, topic: str, *_: Any, **__: Any) -> None:
        self.messages[topic] += 1

    send_outside = send


class Server:
    """All that a server's answering thread has, with the release of a directory; the stream has statistics of the
    first `since` items. `mirror_items` as load_release takes them; what is sent goes to `outbox`."""

    def __init__(
        self,
        bundles_dir: Path,
        since: int = SINCE,
        *,
        mirror_items: int | None = MIRROR_ITEMS,
        mirror_bytes: int = 0,
        outbox: Any = None,
    ) -> None:
        settings = Settings.model_construct()
        serving = settings.serving.model_copy(update={"first": "mirror"})
        self.settings = settings.model_copy(update={"serving": serving})
        self.now_ms = time.time_ns() // 1_000_000
        self.live = self._load(bundles_dir, mirror_items, mirror_bytes)
        self.viewers = viewers_of(self.live.model.item_ids, VIEWERS, self.now_ms)
        self.views = self._views(since)
        self.sent, self.offset = outbox or Sent(), 0
        pipeline = Pipeline(self.views, Retrieval(serving, 1), serving, self.settings.selection, "server")
        self.dispatcher = Dispatcher(self.settings, pipeline, self.sent, lambda topic: 4, ReplyCache(60_000, 0), set())

    def _load(self, bundles_dir: Path, mirror_items: int | None, mirror_bytes: int) -> LiveRelease:
        version = newest_version(bundles_dir)
        index = FromMirror(read_manifest(bundles_dir / version).dim)
        live = load_release(
            BundleSource(bundles_dir),
            version,
            index,
            mirror_items=mirror_items,
            mirror_bytes=mirror_bytes,
            in_bfloat16=in_bfloat16(self.settings.serving),
        )
        some = slice(0, INDEXED)
        index.mirror = live.mirror or Mirror(live.model.item_ids[some], live.model.item_vectors(some))
        return live

    def _views(self, since: int) -> Views:
        """Fed with records, as a worker's are."""
        live, now_ms, partitions = self.live, self.now_ms, self.settings.kafka.partitions
        catalogue, statistics = CatalogueView(FRESH_H * 3_600_000), StatisticsView(partitions, 168.0)
        for item in items_of(live.catalogue):
            catalogue.apply(item.item_id.encode(), encode(item), now_ms)
        for item_id in live.catalogue.item_ids[:since]:
            row = StatisticsRow("item", item_id, 0, now_ms, 10.0, 5.0, 100.0, 3.0, 0.0, (0, 0))
            statistics.apply(b"", encode(row))
        catalogue.describe_all(live.catalogue)
        match_mirror(live, catalogue)
        trending, histories = TrendingView(), HistoryView()
        trending.apply(b"global/0", encode(trending_of(live.model.item_ids, now_ms)))
        for viewer in self.viewers:
            histories.apply(partition_of(viewer.user_id, partitions), viewer.user_id.encode(), encode(viewer))
        return Views(histories, catalogue, trending, statistics)

    def records(self, size: int, rng: np.random.Generator) -> list[Any]:
        return [self._record(self.viewers[at], rng) for at in rng.integers(0, len(self.viewers), size).tolist()]

    def _record(self, viewer: UserHistory, rng: np.random.Generator) -> Any:
        self.offset += 1
        request_id = uuid.UUID(int=int(rng.integers(2**63))).hex
        address = ("correlation_id", b"x" * 16), ("reply_topic", b"replies"), ("reply_partition", b"\0\0\0\0")
        return SimpleNamespace(
            topic=topics.RECOMMEND_REQUESTS,
            partition=partition_of(viewer.user_id, self.settings.kafka.partitions),
            offset=self.offset,
            timestamp=self.now_ms,
            key=viewer.user_id.encode(),
            value=encode(RecommendRequest(request_id, viewer.user_id, deadline_ms=60_000)),
            headers=list(address),
        )

    def serve(self, records: list[Any]) -> dict[str, float]:
        """Answer a batch; milliseconds by stage."""
        batch = self.dispatcher.begin([(record, 0.0) for record in records], self.live, self.now_ms)
        if (bug := self.dispatcher.finish(batch)) is not None:
            raise bug
        return batch.stages.ms


def measure(report: Report, quick: bool) -> None:
    """CPU of a request by batch and size of the catalogue, and where its time goes."""
    limit_threads(1)
    set_up_logging("info")  # as a server's: what is left out of the log costs little
    small = small_release(quick)
    report.title = "serving pipeline: dispatcher and pipeline alone, mirror first, one thread"
    report.note(f"{NOTICE}; {note_of(small)}; without Kafka, outbox counts")
    for items in QUICK_SIZES if quick else SIZES:
        say(f"{items:,} items")
        directory, rng = scratch(), np.random.default_rng(2)
        enlarged(small, directory, items)
        server = Server(directory)
        for _ in range(WARM_UP):
            server.serve(server.records(16, rng))
        for size, turns in (QUICK_TURNS if quick else TURNS).items():
            add_row(report, server, items, size, turns)


def add_row(report: Report, server: Server, items: int, size: int, turns: int) -> None:
    rng = np.random.default_rng(1)
    wall_ms, stages, cpu_s = [], list[dict[str, float]](), 0.0
    server.sent.messages.clear()
    for _ in range(turns):
        records = server.records(size, rng)
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        told = server.serve(records)
        wall_ms.append(1000 * (time.perf_counter() - began_s) / size)
        cpu_s += time.process_time() - began_cpu_s
        stages.append(told)
    done = server.sent.messages
    by_stage = {name: quantile([each[name] / size for each in stages], 0.5) for name in stages[0]}
    cpu_ms = 1000 * cpu_s / (turns * size)
    times = {"p50 ms/request": quantile(wall_ms, 0.5), "CPU ms/request": cpu_ms}
    report.add(items=items, batch=size, **times, **by_stage)
    what = f"{items:,} items, batches of {size}"
    report.bar(f"{what}: replies sent over asked", done["replies"] / (turns * size), at_least=1)
    report.bar(f"{what}: impressions sent over asked", done[topics.IMPRESSIONS] / (turns * size), at_least=1)
