"""Several servers on one machine beside one: requests a second in a closed loop, CPU of a request, and memory.

The servers share the partitions of the requests through Kafka, and a release's vectors through mapped files
(`serving.processes`); two that do not share stand beside them. Where client, broker and one server take all cores, a
second server finds no time of its own: the figures are of this machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from infra.platform.health import fetch_health
from infra.platform.kafka_clients import client_options
from infra.platform.run_files import read_run_files
from infra.platform.settings import Settings
from infra.simulation.world import NOTICE
from nextwatch_client import RecommendClient
from tests.benchmarks.events.process_cpu import cpu_by_process
from tests.benchmarks.report import Report, quantile, say
from tests.benchmarks.serving.serving_ground import note_of, small_release
from tests.benchmarks.serving.serving_mirror import users
from tests.benchmarks.serving.serving_service import NO_LOAD, Ground, Load, ask, ground, memory_of, publish
from tests.harness.system import cli, process, wait_for_health, wait_until, with_section

SIZES, QUICK_SIZES = (10_000, 100_000), (10_000,)
ROUNDS, QUICK_ROUNDS = 4, 2
CONCURRENCY, REQUESTS, QUICK_REQUESTS = 32, 640, 160
WARM_UPS = 20
NAMES = {"load": "client", "serve": "servers"}  # of whose CPU it is


class Kind(NamedTuple):
    what: str
    servers: int
    processes: int  # as `serving.processes` says: with more than one, vectors are held together


KINDS = Kind("one server", 1, 1), Kind("two, each its own vectors", 2, 1), Kind("two, vectors together", 2, 2)


def measure(report: Report, quick: bool) -> None:
    """One server and two, in turns: requests/s, CPU and memory."""
    small = small_release(quick)
    report.title = f"serving processes: mirror first, closed loop of {CONCURRENCY}"
    report.note(f"{NOTICE}; {note_of(small)}")
    with ground(small) as on:
        for items in QUICK_SIZES if quick else SIZES:
            publish(on, small, items)
            loads = dict.fromkeys(KINDS, NO_LOAD)
            costs = {kind: list[dict[str, float]]() for kind in KINDS}
            for number in range(QUICK_ROUNDS if quick else ROUNDS):
                for kind in KINDS if number % 2 == 0 else reversed(KINDS):
                    load, cost = one_round(on, kind, QUICK_REQUESTS if quick else REQUESTS)
                    loads[kind] += load
                    costs[kind].append(cost)
            add_rows(report, items, loads, costs)


def one_round(on: Ground, kind: Kind, requests: int) -> tuple[Load, dict[str, float]]:
    say(kind.what)
    with several(on, kind) as (settings, pids), RecommendClient(client_options(settings.kafka)) as client:
        answered = ask(client, users(on, requests), CONCURRENCY, warm_up=False)
        for _ in range(WARM_UPS):  # until everyone has partitions, and knows what items are worth
            if len(by(answered)) == kind.servers:
                break
            answered = ask(client, users(on, requests), CONCURRENCY, warm_up=False)
        before = cpu_by_process()
        load = ask(client, users(on, requests), CONCURRENCY, warm_up=False)
        spent = {NAMES.get(name, name): s - before.get(name, 0.0) for name, s in cpu_by_process().items()}
        memory = [memory_of(pid) for pid in pids]
    told = {f"{name}, MB": sum(each[name] for each in memory) for name in memory[0]}
    return load, {f"{name}, CPU ms": 1000 * s / max(1, len(load.replies)) for name, s in spent.items()} | told


@contextmanager
def several(on: Ground, kind: Kind) -> Iterator[tuple[Settings, list[int]]]:
    """So many servers, once each of them answers from the release that was announced last; their pids."""
    settings = with_section(on.settings, "serving", first="mirror", processes=kind.processes)
    version = on.bundle.manifest.version
    with ExitStack() as stack:
        names = ["serving", *(f"serving-{number}" for number in range(2, kind.servers + 1))]
        started = [stack.enter_context(process(settings, name, cli("serve"))) for name in names]
        pids = [each.pid for each in started]
        wait_for_health(settings, *started)
        wait_until(lambda: all(served_by(settings, pid) == version for pid in pids), version, 120)
        yield settings, pids


def served_by(settings: Settings, pid: int) -> str:
    """The version that a server says it serves."""
    record = next((each for each in read_run_files(settings.run_dir) if each["pid"] == pid), None)
    return "" if record is None else str(fetch_health(record).get("version_served"))


def by(load: Load) -> set[str]:
    """Who answered."""
    return {reply.served_by for reply in load.replies}


def add_rows(report: Report, items: int, loads: dict[Kind, Load], costs: dict[Kind, list[dict[str, float]]]) -> None:
    for kind in KINDS:
        load, cost = loads[kind], costs[kind]
        told: dict[str, Any] = {name: quantile([each[name] for each in cost], 0.5) for name in cost[0]}
        p50 = quantile(load.whole_ms, 0.5)
        report.add(items=items, what=kind.what, requests=len(load.replies), p50_ms=p50, per_s=load.per_s, **told)
        report.bar(f"{items:,} items, {kind.what}: servers that answered", len(by(load)), at_least=kind.servers)
        report.bar(f"{items:,} items, {kind.what}: without an answer", load.unanswered, at_most=0)
    own, together = (quantile([each["all, MB"] for each in costs[kind]], 0.5) for kind in KINDS[1:])
    report.bar(f"{items:,} items: memory of two that share over two that do not", together / own, at_most=1.02)
