"""Where the time of a request goes, at concurrency 1 and 16: each stage, the broker round trip, and what is left."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median

from infra.platform.kafka_clients import client_options
from infra.platform.settings import Settings
from infra.simulation.world import NOTICE, World
from nextwatch_client import RecommendClient, RecommendReply, RecommendRequest
from tests.benchmarks.events.echo import echoing
from tests.benchmarks.report import Report, percentiles
from tests.harness.system import running_release

DAY_MS = 86_400_000
WAIT = "wait"  # from the send until it was read: in the broker, and behind the batch ahead
MILVUS, TORCH = ("retrieve",), ("embed", "rank")

Answer = tuple[float, RecommendReply]  # the whole way in ms, and what came back


def measure(report: Report, quick: bool) -> None:
    """A request's whole way at concurrency 1 and 16, by stage, and how much is neither Milvus, torch nor broker."""
    count, events = (100, 20_000) if quick else (1000, 60_000)
    report.title = f"request: {count} requests at each concurrency, 2,000 items, 500 candidates"
    report.note(f"{NOTICE}; torch is the stages embed and rank, the ranker's features included")
    now_ms = round(time.time() * 1000)
    world = World(seed=5, start_ms=now_ms)
    log, items = world.past_log(now_ms - 7 * DAY_MS, now_ms, events), world.items_frame(now_ms)
    with running_release(log, items) as (settings, _), echoing(settings) as echo:
        for concurrency in (1, 16):
            bare = ask(echo, world.visitors(count), concurrency)
            real = ask(settings, world.visitors(count), concurrency)
            add_rows(report, concurrency, bare, real)


def ask(settings: Settings, user_ids: Sequence[str], concurrency: int) -> list[Answer]:
    """Ask for everyone, `concurrency` requests at a time; the first tenth is a warm-up and left out."""
    with RecommendClient(client_options(settings.kafka)) as client, ThreadPoolExecutor(concurrency) as pool:

        def one(user_id: str) -> Answer:
            request = RecommendRequest(uuid.uuid4().hex, user_id)
            began_s = time.perf_counter()
            reply = client.result(client.submit(request), request, 30.0)
            return 1000 * (time.perf_counter() - began_s), reply

        answers = list(pool.map(one, user_ids))
    return answers[len(answers) // 10 :]


def add_rows(report: Report, concurrency: int, bare: Sequence[Answer], real: Sequence[Answer]) -> None:
    degraded = sum(bool(reply.degraded) or not reply.version for _, reply in real)
    if degraded:
        report.note(f"concurrency {concurrency}: {degraded} of {len(real)} answers were degraded")
    parts = {"whole way": [ms for ms, _ in real], "broker round trip (echo)": [ms for ms, _ in bare]}
    for stage in dict.fromkeys(stage for _, reply in real for stage in reply.stages_ms):
        parts[f"stage {stage}"] = [reply.stages_ms.get(stage, 0.0) for _, reply in real]
    broker_ms = median(ms for ms, _ in bare)
    parts["all else"] = [rest_ms(ms, reply, broker_ms, batched=concurrency > 1) for ms, reply in real]
    for part, times in parts.items():
        report.add(concurrency=concurrency, part=part, **percentiles(times))
    share = median(parts["all else"]) / median(parts["whole way"])
    report.bar(f"share of all else at concurrency {concurrency}", share, at_most=0.30)


def rest_ms(whole_ms: float, reply: RecommendReply, broker_ms: float, *, batched: bool) -> float:
    """What is neither Milvus, torch nor the broker round trip.

    When requests come together, one may wait for the batch ahead, for at most as long as its own batch takes; that wait
    is Milvus and torch in the same proportion as its own batch is.
    """
    own_ms = sum(spent for stage, spent in reply.stages_ms.items() if stage != WAIT)
    busy_ms = sum(reply.stages_ms.get(stage, 0.0) for stage in (*MILVUS, *TORCH))
    around_ms = max(0.0, whole_ms - broker_ms - own_ms)
    waited_ms = min(around_ms, own_ms) if batched else 0.0
    return max(0.0, whole_ms - broker_ms - busy_ms - waited_ms * (busy_ms / own_ms if own_ms else 0.0))
