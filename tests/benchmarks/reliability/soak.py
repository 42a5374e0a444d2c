"""Serving for a long time under load, while all that can happen to it does: swaps, takedowns, deaths of its parts.

Two servers answer at half of what they can while releases are swapped and rolled back, items are taken down and put up
again, rows are rewritten, a server is restarted, another killed, and Milvus killed twice, once in the middle of a
build. Whatever was answered is read back from the topics and checked (tests/harness/witness.py). Nothing is learnt
meanwhile, so that every score is known.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from statistics import median
from tempfile import TemporaryDirectory

from infra.platform.kafka_clients import client_options
from infra.simulation.world import NOTICE
from nextwatch_client import RecommendClient
from streams.topics import RECOMMEND_REQUESTS
from tests.benchmarks.events.freshness import every
from tests.benchmarks.reliability.soak_events import AWAY, HEALTHY, Editor, Operator
from tests.benchmarks.report import Report, quantile, say
from tests.harness.requests import PATIENCE_S, Asked, steady, wait_for_replies
from tests.harness.service import Service, Size, running_service
from tests.harness.system import Cluster
from tests.harness.witness import Witness

SMALL = Size()


@dataclass(frozen=True)
class Plan:
    """How long, how many requests a second (0: half of what is measured), and what happens when."""

    seconds: float
    swap_s: float  # between two swaps
    per_s: float = 0.0
    away_s: float = 10.0  # how long Milvus, or a killed server, stays away
    size: Size = SMALL
    servers: Sequence[str] = ("serving-1", "serving-2")
    kills: bool = True  # of a server too

    def events(self) -> list[tuple[float, str]]:
        """What happens to the service and when, in seconds; swaps go forward and back by turns."""
        swaps = int(self.seconds / self.swap_s - 0.1)
        found = [(at * self.swap_s, "swap" if at % 2 else "roll back") for at in range(1, swaps + 1)]
        forward = list(range(1, swaps + 1, 2))
        broken = forward[3 * len(forward) // 4] - 1
        found[broken] = (found[broken][0], "swap without Milvus")
        others = [(0.07, "server restarted"), (0.17, "server killed"), (0.45, "Milvus killed")]
        happening = [each for each in others if self.kills or each[1] != "server killed"]
        return sorted([*found, *((share * self.seconds, what) for share, what in happening)])

    @property
    def releases(self) -> int:
        return 1 + sum(what.startswith("swap") for _, what in self.events())


@dataclass
class Outcome:
    plan: Plan
    capacity: float
    per_s: float
    witness: Witness
    operator: Operator
    editor: Editor
    asked: list[Asked] = field(default_factory=list)
    sent_again: int = 0
    memory: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))  # s and MB

    @property
    def unanswered(self) -> int:
        return sum(each.reply is None for each in self.asked)


def run_soak(plan: Plan, data_dir: Path, tell: Callable[[str], None]) -> Outcome:
    """The whole soak; what became of it."""
    tell(f"training {plan.releases} releases")
    with contextlib.ExitStack() as stack:
        running = running_service(data_dir, plan.releases, plan.size, servers=plan.servers, partitions=4)
        service = stack.enter_context(running)
        capacity = measure_capacity(service, 10.0) if not plan.per_s else float("nan")
        per_s = plan.per_s or capacity / 2
        tell(f"capacity {capacity:.0f} requests/s; {plan.seconds:.0f} s at {per_s:.0f}")
        client = stack.enter_context(RecommendClient(client_options(service.settings.kafka)))
        cluster = stack.enter_context(Cluster(service.settings.kafka))
        witness = stack.enter_context(contextlib.closing(Witness(service.settings.kafka, service.releases)))
        operator, editor = Operator(service, plan.servers, plan.away_s), Editor(service, witness)
        outcome = Outcome(plan, capacity, per_s, witness, operator, editor)
        before = cluster.total(RECOMMEND_REQUESTS)
        live_through(service, client, outcome, tell)
        wait_for_replies(outcome.asked)
        outcome.sent_again = cluster.total(RECOMMEND_REQUESTS) - before - len(outcome.asked)
        witness.read_to_the_end()
    return outcome


def measure_capacity(service: Service, seconds: float, concurrency: int = 32) -> float:
    """Requests per second that are answered when so many are always under way."""
    users = list(service.releases.histories)
    began_s = time.monotonic()

    def work(number: int) -> int:
        done = 0
        while time.monotonic() - began_s < seconds:
            request_id = f"{users[(number + done) % len(users)]}/capacity-{number}-{done}"
            Asked(request_id).send(client).future.result(PATIENCE_S)
            done += 1
        return done

    with RecommendClient(client_options(service.settings.kafka)) as client, ThreadPoolExecutor(concurrency) as pool:
        return sum(pool.map(work, range(concurrency))) / seconds


def live_through(service: Service, client: RecommendClient, outcome: Outcome, tell: Callable[[str], None]) -> None:
    """Load, edits and events, side by side, until the last event is over and the time too."""
    began_s, users = time.monotonic(), list(service.releases.histories)
    with contextlib.ExitStack() as beside:
        beside.callback(outcome.editor.close)
        beside.enter_context(every(0.05, outcome.witness.read))
        beside.enter_context(every(0.1, outcome.editor.step))
        beside.enter_context(every(2.0, lambda: note_memory(service, outcome.memory, began_s)))
        beside.enter_context(steady(client, partial(Random(1).choice, users), outcome.per_s, outcome.asked))
        for at_s, what in outcome.plan.events():
            time.sleep(max(0.0, began_s + at_s - time.monotonic()))
            tell(f"{time.monotonic() - began_s:.0f} s: {what}; {len(outcome.asked)} requests so far")
            outcome.operator.do(what)
        time.sleep(max(0.0, began_s + outcome.plan.seconds - time.monotonic()))


def note_memory(service: Service, memory: dict[str, list[tuple[float, float]]], began_s: float) -> None:
    for name, process in list(service.processes.items()):
        if mb := resident_mb(process.pid):
            memory[f"{name} (pid {process.pid})"].append((time.monotonic() - began_s, mb))


def resident_mb(pid: int) -> float:
    """Resident memory of a process; 0 when it is gone."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1]
    except OSError:
        return 0.0
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


# --- the report ------------------------------------------------------------------------------------------------------

FULL = Plan(1200.0, swap_s=120.0, size=Size(users=400, items=2000, watches=20_000, dim=32))
QUICK = Plan(60.0, swap_s=12.0, away_s=4.0)


def measure(report: Report, quick: bool) -> None:
    """Twenty minutes of load, swaps, takedowns and deaths: what was lost, mixed or shown too late, and at what cost."""
    plan = QUICK if quick else FULL
    with TemporaryDirectory(prefix="nextwatch-") as directory:
        outcome = run_soak(plan, Path(directory), say)
    report.title = (
        f"soak: {plan.seconds:.0f} s at {outcome.per_s:.0f} requests/s (capacity {outcome.capacity:.0f}), "
        f"{plan.size.items:,} items, {len(plan.servers)} servers"
    )
    report.note(NOTICE)
    add_latencies(report, outcome)
    add_memory(report, outcome, judge=not quick)
    add_counts(report, outcome)


def add_latencies(report: Report, outcome: Outcome) -> None:
    """A row for whatever was going on when requests were sent."""
    by: dict[str, list[Asked]] = defaultdict(list)
    for each in outcome.asked:
        if each.reply is not None:
            by[outcome.operator.spans.at(each.sent_s)].append(each)
    for what, mine in by.items():
        ms = [each.ms for each in mine]
        degraded = sum(bool(each.reply and each.reply.degraded) for each in mine)
        row = {"what": what, "n": len(mine), "p50": quantile(ms, 0.5), "p99": quantile(ms, 0.99), "most": max(ms)}
        report.add(**row, degraded=degraded)
    healthy, away = ([each.ms for each in by[what]] for what in (HEALTHY, AWAY))
    report.bar("p99 without Milvus / p99 healthy", quantile(away, 0.99) / quantile(healthy, 0.99), at_most=2.0)


def add_memory(report: Report, outcome: Outcome, *, judge: bool) -> None:
    """A quarter of the way in (minute 5), in the middle and at the end, MB; of those that lived so long."""
    total_s = outcome.plan.seconds
    for name, samples in outcome.memory.items():
        early, middle, end = (around(samples, share * total_s, 0.05 * total_s) for share in (0.25, 0.5, 0.95))
        report.add(what=f"memory of {name}, MB", n=len(samples), early=early, middle=middle, end=end)
        if judge and not math.isnan(early + end):
            report.bar(f"memory of {name.split()[0]}, end / minute 5", end / early, at_most=1.1)


def around(samples: Sequence[tuple[float, float]], since_s: float, span_s: float) -> float:
    """The median of that time; NaN where there is none."""
    there = [mb for at_s, mb in samples if since_s <= at_s < since_s + span_s]
    return median(there) if there else float("nan")


def add_counts(report: Report, outcome: Outcome) -> None:
    witness, downs = outcome.witness, outcome.editor.done
    versions = {each.version for lists in witness.replies.values() for each in lists}
    for what, findings in {
        "replies of mixed versions": witness.mixed,
        "lists that differ from what is on record": witness.recorded_otherwise(downs),
        "requests answered twice, not alike": witness.answered_otherwise(downs),
        "items in replies 2 s after their takedown": witness.shown_late(downs),
    }.items():
        report.bar(what, len(findings), at_most=0)
        for finding in findings[:3]:
            report.note(f"{what}: {finding}")
    report.bar("requests without a reply", outcome.unanswered, at_most=0)
    twice = len(witness.answered_twice())
    report.note(
        f"{len(outcome.asked)} requests, {outcome.sent_again} sent again, {twice} answered more than once; "
        f"{witness.compared} scores compared, {len(versions)} versions; {len(downs)} takedowns"
    )
    for what, seconds in outcome.operator.swaps_s.items():
        report.note(f"{what}: {', '.join(f'{each:.1f}' for each in seconds)} s until all servers answered from it")
