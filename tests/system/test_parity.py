"""What the ranker is fed live is what is computed from the topics: whole system, real broker, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from infra.operate.replay import replay
from infra.platform.kafka_clients import client_options
from infra.platform.settings import Settings
from infra.simulation.simulated_traffic import SimulatedTraffic
from infra.simulation.world import World
from nextwatch_client import RecommendClient
from streams.topics import IMPRESSIONS, ITEM_STATISTICS, WATCH_EVENTS, create_topics
from tests.harness.parity import check_parity
from tests.harness.system import Cluster, release, running, wait_for_health, wait_until
from tests.harness.traffic import now_ms

DAY_MS = 24 * 3_600_000
SECTIONS: dict[str, dict[str, Any]] = {
    "model": {"members": 1, "epochs": 1, "linear_dim": 0, "hidden": (16,), "dim": 16, "negatives": 256},
    "ranker": {"members": 1, "epochs": 1, "hidden": (8,)},
    "join": {"window_s": 1.0, "grace_s": 1.0, "publish_s": 0.2},
}
LISTS = 60


@pytest.fixture
def served(kafka: str, milvus_uri: str, make_settings: Callable[..., Settings]) -> Settings:
    """A system that has shown people lists while they watched and what is known of items moved."""
    settings: Settings = make_settings(kafka, milvus_uri, **SECTIONS)
    create_topics(settings.kafka)
    world = World(seed=3, start_ms=now_ms(), users=60, channels=12, items=150, events_per_s=5.0, item_every_s=2.0)
    log, items = world.past_log(now_ms() - 3 * DAY_MS, now_ms(), 1500), world.items_frame(now_ms())
    with running(settings) as processes, Cluster(settings.kafka) as cluster:
        replay(log, settings, items=items)
        wait_until(lambda: cluster.behind("history", WATCH_EVENTS) == 0, "histories", 120)
        release(settings, log, items)
        wait_for_health(settings, *processes.values())
        with (
            RecommendClient(client_options(settings.kafka)) as client,
            SimulatedTraffic(world, settings.kafka, client, 10.0),
        ):
            wait_until(lambda: cluster.total(ITEM_STATISTICS) > 100, "statistics of what was shown", 120)
            before = cluster.total(IMPRESSIONS)
            wait_until(lambda: cluster.total(IMPRESSIONS) >= before + LISTS, "lists", 120)
    return settings


def test_served_features_are_computed_again_from_the_topics_to_the_bit(served):
    found = check_parity(served.kafka, served.bundles_dir, served.join.half_life_h)
    assert found.lists > LISTS // 2 and found.items > 10 * found.lists, "what the ranker was fed is on record"
    assert found.differences == 0, found.examples
