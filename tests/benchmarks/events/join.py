"""How many messages a second a join worker handles: impressions as serving writes them, and the watches that follow.

Lists hold all that a served one does: 20 items with the ranker's features, ids and sources of each, the viewer's
watches. The work is looked at: a dead letter, or fewer examples than windows have ended, is an error and no figure.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from msgspec.structs import replace

from infra.local.broker import start_broker
from infra.platform.run_files import fill_in
from infra.platform.settings import Settings
from models.ranking.feature import Scope
from models.ranking.features import SCHEMA_HASH, numbers_of
from models.ranking.ranking_batch import HISTORY
from streams.messages import Context, Impression, Shown, WatchEvent, encode
from streams.topics import (
    DEAD_LETTERS,
    IMPRESSIONS,
    ITEM_STATISTICS,
    ITEM_VECTORS,
    ITEMS,
    RANKING_EXAMPLES,
    USER_HISTORIES,
    WATCH_EVENTS,
    create_topics,
)
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
LENGTH, WATCHES = 20, 2  # of an impression
CATALOGUE = 5000
READ = (USER_HISTORIES, ITEMS, ITEM_STATISTICS, ITEM_VECTORS)  # what serving says how far it has read

Messages = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Case:
    """Each user is shown `lists` lists, `spread_s` of event time apart; the window is half an hour."""

    name: str
    lists: int
    spread_s: float
    ranked: bool = True


CASES = (
    Case("20 items with features, a list every 10 min", 6, 600),
    Case("20 items with features, a list every 2 min", 24, 120),
    Case("20 items without features, a list every 10 min", 6, 600, ranked=False),
)


def measure(report: Report, quick: bool) -> None:
    """Messages/s of one join worker with a backlog, until the examples of all windows that have ended are written."""
    impressions = 1200 if quick else 6000
    report.title = f"join: {impressions:,} impressions, {WATCHES} watches each, {PARTITIONS} partitions"
    with temporary_settings(kafka={"partitions": PARTITIONS}) as settings, stopping(start_broker(settings)) as broker:
        report.note(f"broker: {broker_name(broker)}; the messages lie in the topics before the worker starts")
        for number, case in enumerate(CASES):
            own = with_section(fill_in(settings, broker.bootstrap, ""), "kafka", topic_prefix=f"j{number}-")
            own = own.model_copy(update={"data_dir": settings.data_dir / f"j{number}"})
            report.add(**measure_case(case, own, impressions))


def measure_case(case: Case, settings: Settings, impressions: int) -> dict[str, Any]:
    """One worker's way through a backlog. Raises RuntimeError when it has not done its work."""
    create_topics(settings.kafka)
    shown, watched = make_messages(case, impressions, round(time.time() * 1000))
    due = impressions - round(settings.join.window_s * impressions / (case.spread_s * case.lists))
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
        wait_until(lambda: cluster.total(RANKING_EXAMPLES) >= due, f"{due} examples", PATIENCE_S, 0.2)
        wall_s, used_s = time.time() - began_s, cpu_s(worker.pid) - cpu_before
        messages = len(shown) + len(watched) - handled
        examples, letters = cluster.total(RANKING_EXAMPLES), cluster.total(DEAD_LETTERS)
        rows = sum_of(settings, "nextwatch_item_statistics_rows")
        if letters or not examples or not rows:
            raise RuntimeError(f"{case.name}: {letters} dead letters, {examples} examples, {rows:.0f} rows")
        return {
            "what": case.name,
            "bytes/impression": sum(len(value) for _, value in shown) // len(shown),
            "messages/s": messages / wall_s,
            "CPU ms/message": 1000 * used_s / messages,
            "examples": examples,
            "rows of statistics": round(rows),
            "dead letters": letters,
        }


def handled_so_far(settings: Settings) -> float:
    return read_metrics(settings, "join").get('nextwatch_batch_messages_sum{stage="join"}', 0.0)


def sum_of(settings: Settings, name: str) -> float:
    """A metric of the worker, over its partitions."""
    return sum(value for sample, value in read_metrics(settings, "join").items() if sample.startswith(name + "{"))


def make_messages(case: Case, impressions: int, now_ms: int) -> tuple[Messages, Messages]:
    """Impressions, the users in turn, up to now, and the watches of their first items."""
    rng = np.random.default_rng(1)
    users = impressions // case.lists
    step_ms = 1000 * case.spread_s / users
    shown, watched = [], []
    for n in range(impressions):
        user, at_ms = f"u{n % users}", now_ms - round(step_ms * (impressions - n))
        item_ids = [f"i{item}" for item in rng.integers(0, CATALOGUE, LENGTH)]
        impression = Impression(f"r{n}", user, at_ms, "server", "v1", items_of(item_ids, case.ranked, rng))
        if case.ranked:
            impression = with_query(impression, rng)
        shown.append((user.encode(), encode(impression)))
        for k in range(WATCHES):
            watch = WatchEvent(f"e{n}-{k}", user, item_ids[k], at_ms + 1000 * k, 30.0, 60.0, f"r{n}")
            watched.append((user.encode(), encode(watch)))
    return shown, watched


def items_of(item_ids: list[str], ranked: bool, rng: np.random.Generator) -> tuple[Shown, ...]:
    """A list as serving records it (serving.request.recording)."""
    if not ranked:
        return tuple(Shown(item_id, place, "mobile app") for place, item_id in enumerate(item_ids, 1))
    scores, expected_s = rng.standard_normal(LENGTH), rng.uniform(1, 60, LENGTH)
    return tuple(
        Shown(
            item_id,
            position=place,
            source="two_tower",
            score=float(scores[place - 1]),
            expected_watch_s=float(expected_s[place - 1]),
            retrieval_rank=5 * place,
            sources={"two_tower": float(scores[place - 1]), "fresh": None},
            ids={
                "candidate": (item_id,),
                "channel": (f"c{place}",),
                "topics": ("t1", "t2"),
                "length": ("5",),
                "sources": ("two_tower", "fresh"),
            },
            values=values_of("impression", rng),
        )
        for place, item_id in enumerate(item_ids, 1)
    )


def with_query(impression: Impression, rng: np.random.Generator) -> Impression:
    """The impression with what the ranker was fed of its request."""
    last_watched = tuple(f"i{item}" for item in rng.integers(0, CATALOGUE, HISTORY))
    return replace(
        impression,
        context=Context(region="de", language="de-DE", device="tv", surface="home"),
        schema_hash=SCHEMA_HASH,
        ids={"last_watched": last_watched, "language": ("de-DE",), "region": ("de",), "device": ("tv",)},
        values=values_of("query", rng),
        factor=1.05,
        best_score=3.5,
        marks=dict.fromkeys(READ, (1_000_000,) * PARTITIONS),
    )


def values_of(scope: Scope, rng: np.random.Generator) -> bytes:
    return rng.standard_normal(len(numbers_of(scope))).astype("<f4").tobytes()
