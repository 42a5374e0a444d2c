"""Whether what the ranker was fed live is what is computed from the topics: the count of differences, to the bit.

The whole system with the simulated world's people, who ask, are shown lists and watch; lists close within seconds,
so that statistics of items move while lists are served. Then every list is computed again (tests.harness.parity).
"""

from __future__ import annotations

import time
from typing import Any

from infra.platform.kafka_clients import client_options
from infra.platform.settings import Settings
from infra.simulation.simulated_traffic import SimulatedTraffic
from infra.simulation.world import NOTICE, World
from nextwatch_client import RecommendClient
from streams.topics import IMPRESSIONS, ITEM_STATISTICS, USER_HISTORIES
from tests.benchmarks.report import Report, say
from tests.harness.parity import check_parity
from tests.harness.system import Cluster, running_release

DAY_MS = 24 * 3_600_000
LISTS, QUICK_LISTS = 10_000, 500
REQUESTS_PER_S, WATCHES_PER_S = 40.0, 10.0
MOST_WAITING = 16  # requests
WITHIN_S = 1200.0
SECTIONS: dict[str, dict[str, Any]] = {
    "model": {"members": 1, "epochs": 1, "linear_dim": 0, "hidden": (64,), "dim": 32},
    "ranker": {"members": 1, "epochs": 1, "hidden": (64, 32)},
    "join": {"window_s": 5.0, "grace_s": 5.0},
}


def measure(report: Report, quick: bool) -> None:
    """Lists served by the whole system, their features computed again from the topics."""
    wanted = QUICK_LISTS if quick else LISTS
    report.title = f"ranking parity: {wanted:,} lists of 20 served, features computed again from the topics"
    report.note(f"{NOTICE}; watches out of a list close it after {SECTIONS['join']['window_s']:g} s")
    now_ms = round(time.time() * 1000)
    world = World(seed=3, start_ms=now_ms, events_per_s=WATCHES_PER_S, item_every_s=10.0)
    log, items = world.past_log(now_ms - 7 * DAY_MS, now_ms, 10_000), world.items_frame(now_ms)
    with running_release(log, items, **SECTIONS) as (settings, _), Cluster(settings.kafka) as cluster:
        serve(settings, world, cluster, wanted)
        for topic in (USER_HISTORIES, ITEM_STATISTICS):
            report.add(what=f"records of {topic}", value=cluster.total(topic))
        add_parity(report, settings)


def serve(settings: Settings, world: World, cluster: Cluster, wanted: int) -> None:
    """Let people ask until so many lists are recorded; no faster than they are answered, so that all are ranked."""
    with (
        RecommendClient(client_options(settings.kafka)) as client,
        SimulatedTraffic(world, settings.kafka, client, REQUESTS_PER_S) as traffic,
    ):
        before, began_s = cluster.total(IMPRESSIONS), time.monotonic()
        while (lists := cluster.total(IMPRESSIONS) - before) < wanted and time.monotonic() - began_s < WITHIN_S:
            waiting = traffic.asked - traffic.answered - traffic.failed
            traffic.requests_per_s = REQUESTS_PER_S if waiting < MOST_WAITING else 0.0
            time.sleep(0.1)
        say(f"{lists:,} lists, {traffic.watched:,} watches, {traffic.failed} requests failed")


def add_parity(report: Report, settings: Settings) -> None:
    began_s = time.monotonic()
    found = check_parity(settings.kafka, settings.bundles_dir, settings.join.half_life_h)
    report.add(what="lists, their features of scope query", value=found.lists)
    report.add(what="items, their features of scope impression", value=found.items)
    report.add(what="single values", value=found.values)
    report.add(what="lists that no ranker was fed for", value=found.unranked)
    report.add(what="lists that differ", value=found.differing_lists)
    report.add(what="items that differ", value=found.differing_items)
    report.add(what="computing them again, s", value=time.monotonic() - began_s)
    for name, count in found.differing.most_common():
        report.add(what=f"values of {name} that differ", value=count)
    for example in found.examples:
        report.note(example)
    report.bar("lists and items that differ", found.differences, at_most=0)
