"""How many messages a second a join worker handles: impressions as serving writes them, and the watches that follow."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from infra.local.broker import start_broker
from infra.platform.run_files import fill_in
from infra.platform.settings import Settings
from streams.messages import Impression, Shown, WatchEvent, encode
from streams.topics import IMPRESSIONS, RANKING_EXAMPLES, WATCH_EVENTS, create_topics
from tests.benchmarks.events.history import PATIENCE_S, broker_name, wait_for_group
from tests.benchmarks.events.history import Lane as Workers
from tests.benchmarks.load import send_all
from tests.benchmarks.report import Report
from tests.harness.system import (
    Cluster,
    cli,
    cpu_s,
    process,
    read_metrics,
    stopping,
    temporary_settings,
    wait_until,
    with_section,
)

PARTITIONS = 4
ITEMS, WATCHES = 20, 2  # of an impression
VALUES = 60  # continuous features of a shown item


@dataclass(frozen=True)
class Case:
    """`spread_s`: event time between two impressions of one user; the window is half an hour."""

    name: str
    values: int
    spread_s: float


CASES = (
    Case("20 items with features, a list every 10 min", VALUES, 600),
    Case("20 items with features, a list every 2 min", VALUES, 120),
    Case("20 items without features, a list every 10 min", 0, 600),
)


def measure(report: Report, quick: bool) -> None:
    """Messages/s of one join worker with a backlog, until its examples are written and its offsets committed."""
    impressions, users = (1000, 200) if quick else (6000, 1000)
    report.title = (
        f"join: {impressions:,} impressions of {users:,} users, {WATCHES} watches each, {PARTITIONS} partitions"
    )
    with temporary_settings(kafka={"partitions": PARTITIONS}) as settings, stopping(start_broker(settings)) as broker:
        report.note(f"broker: {broker_name(broker)}; the messages lie in the topics before the worker starts")
        for number, case in enumerate(CASES):
            own = with_section(fill_in(settings, broker.bootstrap, ""), "kafka", topic_prefix=f"j{number}-")
            own = own.model_copy(update={"data_dir": settings.data_dir / f"j{number}"})
            report.add(**measure_case(case, own, impressions, users))


def measure_case(case: Case, settings: Settings, impressions: int, users: int) -> dict[str, Any]:
    create_topics(settings.kafka)
    shown, watched = make_messages(case, impressions, users, round(time.time() * 1000))
    send_all(settings.kafka, IMPRESSIONS, shown)
    send_all(settings.kafka, WATCH_EVENTS, watched)
    workers = Workers("join worker", cli("worker", "join"), "join")
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(Cluster(settings.kafka))
        worker = stack.enter_context(process(settings, "join", workers.command))
        wait_for_group(settings, workers, [worker], cluster)
        began_s, cpu_before = time.time(), cpu_s(worker.pid)
        handled = handled_so_far(settings)
        wait_until(lambda: handled_so_far(settings) >= len(shown) + len(watched), "all handled", PATIENCE_S, 0.2)
        wall_s, used_s = time.time() - began_s, cpu_s(worker.pid) - cpu_before
        messages = len(shown) + len(watched) - handled
        return {
            "what": case.name,
            "bytes/impression": sum(len(value) for _, value in shown) // len(shown),
            "messages/s": messages / wall_s,
            "messages/CPU-s": messages / used_s,
            "examples": cluster.total(RANKING_EXAMPLES),
        }


def handled_so_far(settings: Settings) -> float:
    return read_metrics(settings, "join").get('nextwatch_batch_messages_sum{stage="join"}', 0.0)


def make_messages(case: Case, impressions: int, users: int, now_ms: int) -> tuple[list[Any], list[Any]]:
    """Impressions, the users in turn, up to now, and the watches of their first items."""
    rng = np.random.default_rng(1)
    step_ms = 1000 * case.spread_s / users
    shown, watched = [], []
    for n in range(impressions):
        user, at_ms = f"u{n % users}", now_ms - round(step_ms * (impressions - n))
        items = rng.integers(0, 5000, ITEMS)
        values = rng.standard_normal((ITEMS, case.values)).astype("<f4")
        ids = {"channel": ("c7",), "topics": ("t1", "t2")} if case.values else {}
        listed = tuple(
            Shown(f"i{item}", place, "two-tower", 1.5, 20.25, place, ids, values[place - 1].tobytes())
            for place, item in enumerate(items, 1)
        )
        impression = Impression(f"r{n}", user, at_ms, "server", "v1", listed, schema_hash="h")
        shown.append((user.encode(), encode(impression)))
        for k in range(WATCHES):
            watch = WatchEvent(f"e{n}-{k}", user, f"i{items[k]}", at_ms + 1000 * k, 30.0, 60.0, f"r{n}")
            watched.append((user.encode(), encode(watch)))
    return shown, watched
