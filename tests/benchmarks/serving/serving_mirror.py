"""The exact mirror in place of Milvus: by choice (serving.first = mirror), and because Milvus was killed.

By choice: whole requests beside the broker round trip, in turns. Killed: the same closed loop while all is well, while
Milvus dies under it, and after that; the mirror answers, and the p99 is told beside the healthy one.
"""

from __future__ import annotations

import threading

from infra.platform.guarded_process import wait_until_ready
from infra.platform.kafka_clients import client_options
from infra.platform.settings import Settings
from infra.simulation.world import NOTICE
from nextwatch_client import RecommendClient
from tests.benchmarks.events.echo import echoing
from tests.benchmarks.report import Report, percentiles, quantile, say
from tests.benchmarks.serving.serving_ground import note_of, small_release
from tests.benchmarks.serving.serving_service import NO_LOAD, Ground, Load, ask, ground, publish, served

SIZES, QUICK_SIZES = (10_000, 100_000), (10_000,)
ROUNDS, QUICK_ROUNDS = 5, 2
REQUESTS, QUICK_REQUESTS = {1: 200, 32: 640}, {1: 30, 32: 96}  # of a round
FALLEN, QUICK_FALLEN = {1: 500, 32: 2000}, {1: 60, 32: 200}
WARM_UP = 960  # requests until a server knows what most candidates are worth
KILL_AFTER_S = 0.3
ECHO = "broker round trip (echo)"


def measure(report: Report, quick: bool) -> None:
    """Requests that the mirror answers beside the broker round trip; p99 with Milvus killed beside the healthy one."""
    small = small_release(quick)
    report.title = "serving mirror: exact search in the worker's memory, closed loop"
    report.note(f"{NOTICE}; {note_of(small)}")
    with ground(small) as on:
        for items in QUICK_SIZES if quick else SIZES:
            publish(on, small, items)
            with served(on, first="mirror") as (settings, _), echoing(on.settings) as echo:
                by_choice(report, on, settings, echo, quick)
            with served(on, first="index") as (settings, _):
                when_killed(report, on, settings, quick)
            on.milvus.restart()
            wait_until_ready(on.milvus.process, on.milvus.is_ready, 60)


def by_choice(report: Report, on: Ground, settings: Settings, echo: Settings, quick: bool) -> None:
    requests = QUICK_REQUESTS if quick else REQUESTS
    whole, broker = dict.fromkeys(requests, NO_LOAD), dict.fromkeys(requests, NO_LOAD)
    with (
        RecommendClient(client_options(settings.kafka)) as client,
        RecommendClient(client_options(echo.kafka)) as echo_client,
    ):
        ask(client, users(on, WARM_UP), 32, warm_up=False)
        for _ in range(QUICK_ROUNDS if quick else ROUNDS):
            for concurrency, count in requests.items():
                whole[concurrency] += ask(client, users(on, count), concurrency)
                broker[concurrency] += ask(echo_client, users(on, count), concurrency)
    for concurrency in requests:
        add_row(report, on, concurrency, ECHO, broker[concurrency])
        add_row(report, on, concurrency, "mirror first", whole[concurrency])
        add_stages(report, on, concurrency, whole[concurrency])
    items = len(on.bundle.model.item_ids)
    beyond_ms = quantile(whole[1].whole_ms, 0.5) - quantile(broker[1].whole_ms, 0.5)
    report.bar(f"{items:,} items: p50 beyond the broker round trip at concurrency 1, ms", beyond_ms, at_most=20)
    report.bar(f"{items:,} items: requests/s at concurrency 32", whole[32].per_s, at_least=100)


def when_killed(report: Report, on: Ground, settings: Settings, quick: bool) -> None:
    """Healthy at each concurrency; then Milvus dies under a load, and stays dead."""
    counts, items = QUICK_FALLEN if quick else FALLEN, len(on.bundle.model.item_ids)
    with RecommendClient(client_options(settings.kafka)) as client:
        healthy = {each: ask(client, users(on, count), each) for each, count in counts.items()}
        say("killing Milvus")
        killer = threading.Timer(KILL_AFTER_S, on.milvus.process.kill)
        killer.start()
        down = {32: ask(client, users(on, counts[32]), 32, warm_up=False)}
        killer.join()
        down[1] = ask(client, users(on, counts[1]), 1, warm_up=False)
    for each in counts:
        add_row(report, on, each, "index first, healthy", healthy[each])
        add_row(report, on, each, "Milvus killed meanwhile" if each > 1 else "Milvus is dead", down[each])
        ratio = quantile(down[each].whole_ms, 0.99) / quantile(healthy[each].whole_ms, 0.99)
        what = f"{items:,} items, concurrency {each}"
        report.bar(f"{what}: p99 with Milvus killed over the healthy one", ratio, at_most=2.0)
        report.bar(f"{what}: requests without an answer", down[each].unanswered, at_most=0)


def users(on: Ground, count: int) -> list[str]:
    return [on.viewers[at % len(on.viewers)].user_id for at in range(count)]


def add_row(report: Report, on: Ground, concurrency: int, what: str, load: Load) -> None:
    items = len(on.bundle.model.item_ids)
    row = {"items": items, "concurrency": concurrency, "what": what, "requests": len(load.replies)}
    degraded = None if what == ECHO else load.degraded
    report.add(**row, **percentiles(load.whole_ms), **{"requests/s": load.per_s}, degraded=degraded)


def add_stages(report: Report, on: Ground, concurrency: int, load: Load) -> None:
    stages = dict.fromkeys(stage for reply in load.replies for stage in reply.stages_ms)
    p50 = {stage: quantile([reply.stages_ms.get(stage, 0.0) for reply in load.replies], 0.5) for stage in stages}
    told = ", ".join(f"{stage} {ms:.1f}" for stage, ms in p50.items())
    report.note(f"{len(on.bundle.model.item_ids):,} items, mirror first, concurrency {concurrency}, p50 ms: {told}")
