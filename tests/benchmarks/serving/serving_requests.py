"""A whole request beside the least that it can cost: the broker round trip, a bare search, a bare pass of the networks.

At concurrency 1 nothing overlaps: a request is divided by one bare search (nq = 1) and one bare pass (500 candidates).
At concurrency 32 a request waits for the others: in a closed loop its p50 is the time in which 32 are answered. It is
divided by the same work of 32 requests in batches as large as serving's were (B, read from its own metric): 32 / B
times a bare search with nq = B and a bare pass of B x 500 candidates. Everything is measured in the same rounds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median

from infra.platform.kafka_clients import client_options
from infra.platform.settings import Settings
from infra.simulation.world import NOTICE
from nextwatch_client import RecommendClient
from tests.benchmarks.events.echo import echoing
from tests.benchmarks.report import Report, percentiles, quantile
from tests.benchmarks.serving.serving_ground import note_of, small_release
from tests.benchmarks.serving.serving_raw import Search, batches_of, measure_raw, raw_client
from tests.benchmarks.serving.serving_service import NO_LOAD, Ground, Load, ask, ground, memory_of, publish, served
from tests.harness.system import read_metrics

SIZES, QUICK_SIZES = (10_000, 100_000), (10_000,)
CONCURRENCIES = (1, 32)
ROUNDS, QUICK_ROUNDS = 5, 2
REQUESTS, QUICK_REQUESTS = {1: 200, 32: 640}, {1: 30, 32: 96}  # of a round
PATIENT_S = 10.0  # for the index: a slow answer shall show as slow, not as the mirror's
BATCHES = 'nextwatch_batch_messages_{}{{stage="serving"}}'


@dataclass
class Measured:
    """Of one concurrency: requests, echoes, bare parts in ms by request, and how many serving answered together."""

    whole: Load = NO_LOAD
    echo: Load = NO_LOAD
    raw: dict[str, list[float]] = field(default_factory=lambda: {"search": [], "forward": []})
    batches: list[float] = field(default_factory=list)  # mean of each round

    @property
    def batch(self) -> float:
        return median(self.batches)


def measure(report: Report, quick: bool) -> None:
    """Whole requests by stage, beside broker, bare search and bare pass; on Milvus Lite or NEXTWATCH_TEST_MILVUS."""
    rounds, requests = (QUICK_ROUNDS, QUICK_REQUESTS) if quick else (ROUNDS, REQUESTS)
    small = small_release(quick)
    where = "a Milvus server" if "NEXTWATCH_TEST_MILVUS" in os.environ else "Milvus Lite"
    report.title = f"serving requests: 500 candidates, closed loop, {rounds} rounds in turns, {where} (FLAT) first"
    report.note(f"{NOTICE}; {note_of(small)}")
    report.note(f"serving.search_s {PATIENT_S:.0f} and clients that wait {PATIENT_S * 3:.0f} s: nothing is shed")
    with ground(small) as on:
        for items in QUICK_SIZES if quick else SIZES:
            publish(on, small, items)
            with served(on, first="index", search_s=PATIENT_S) as (settings, process), echoing(on.settings) as echo:
                found = in_turns(on, settings, echo, rounds, requests)
                memory = memory_of(process.pid)
            add_rows(report, items, found)
            report.note(
                f"{items:,} items: the serving process has {memory['anonymous']:,.0f} MB of its own in memory "
                f"and {memory['mapped']:,.0f} MB of mapped files"
            )


def in_turns(
    on: Ground, settings: Settings, echo: Settings, rounds: int, requests: dict[int, int]
) -> dict[int, Measured]:
    """Round by round: requests, echoes and bare parts at each concurrency; who goes first changes."""
    found = {concurrency: Measured() for concurrency in CONCURRENCIES}
    with (
        RecommendClient(client_options(settings.kafka)) as client,
        RecommendClient(client_options(echo.kafka)) as echo_client,
        raw_client(settings.milvus.uri, on.bundle.manifest.version, settings.milvus.consistency) as search,
    ):
        for number in range(rounds):
            for concurrency, mine in found.items():
                users = [on.viewers[at % len(on.viewers)].user_id for at in range(requests[concurrency])]
                works: list[Callable[[], None]] = [
                    partial(_ask_whole, mine, settings, client, users, concurrency),
                    partial(_ask_bare, mine, on, search, requests[1], batched=concurrency > 1),
                    partial(_ask_echo, mine, echo_client, users, concurrency),
                ]
                for work in works if number % 2 == 0 else [works[2], *works[:2]]:
                    work()
    return found


def _ask_whole(
    mine: Measured, settings: Settings, client: RecommendClient, users: Sequence[str], concurrency: int
) -> None:
    before = read_metrics(settings, "serving")
    mine.whole += ask(client, users, concurrency)
    mine.batches.append(batch_between(before, read_metrics(settings, "serving")))


def _ask_bare(mine: Measured, on: Ground, search: Search, requests: int, *, batched: bool) -> None:
    """For the work of so many requests, in batches as serving has just made them."""
    size = max(1, round(mine.batch)) if batched else 1
    batches = batches_of(on.bundle, on.viewers, search, size, time.time_ns() // 1_000_000)
    for part, times in measure_raw(on.bundle, search, batches, max(4, requests // size)).items():
        mine.raw[part] += [ms / size for ms in times]


def _ask_echo(mine: Measured, client: RecommendClient, users: Sequence[str], concurrency: int) -> None:
    mine.echo += ask(client, users, concurrency)


def batch_between(before: dict[str, float], after: dict[str, float]) -> float:
    """How many requests serving has answered together between two readings of its metrics."""
    total, count = (after[BATCHES.format(of)] - before.get(BATCHES.format(of), 0.0) for of in ("sum", "count"))
    return total / count if count else 1.0


def add_rows(report: Report, items: int, found: dict[int, Measured]) -> None:
    for concurrency, mine in found.items():
        for part, times in parts_of(mine, concurrency).items():
            row = {"items": items, "concurrency": concurrency, "part": part}
            report.add(**row, **percentiles(times))
        add_bars(report, items, concurrency, mine)
    one, many = (found[concurrency].whole.per_s for concurrency in CONCURRENCIES)
    report.note(f"{items:,} items: {one:.1f} requests/s at concurrency 1, {many:.1f} at {CONCURRENCIES[1]}")
    report.bar(f"{items:,} items: requests/s at {CONCURRENCIES[1]} over those at 1", many / one, at_least=2.0)


def parts_of(mine: Measured, concurrency: int) -> dict[str, list[float]]:
    """Milliseconds by part; bare parts are those of as many requests as are in flight."""
    replies = mine.whole.replies
    parts = {"whole": mine.whole.whole_ms, "broker round trip (echo)": mine.echo.whole_ms}
    for stage in dict.fromkeys(stage for reply in replies for stage in reply.stages_ms):
        parts[f"stage {stage}"] = [reply.stages_ms.get(stage, 0.0) for reply in replies]
    what = "" if concurrency == 1 else f", of {concurrency} requests in batches of {mine.batch:.0f}"
    return parts | {f"bare {part}{what}": [concurrency * ms for ms in times] for part, times in mine.raw.items()}


def add_bars(report: Report, items: int, concurrency: int, mine: Measured) -> None:
    whole, broker = (quantile(load.whole_ms, 0.5) for load in (mine.whole, mine.echo))
    bare = concurrency * sum(quantile(times, 0.5) for times in mine.raw.values())
    what = f"{items:,} items, concurrency {concurrency}"
    report.bar(f"{what}: p50 of a request over bare search and pass", whole / bare, at_most=1.3)
    report.note(
        f"{what}: {(whole - broker) / bare:.2f} without the broker round trip ({whole:.1f} - {broker:.1f} ms over "
        f"{bare:.1f} ms); batches of {mine.batch:.1f}; {mine.whole.unanswered} unanswered, "
        f"{mine.whole.degraded} degraded"
    )
