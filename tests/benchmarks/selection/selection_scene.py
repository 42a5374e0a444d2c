"""Where the services of the simulated world begin: a world, a release learnt from self-chosen watches, histories."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from infra.platform.settings import Model
from infra.platform.settings import Ranker as RankerSettings
from infra.simulation.world import World
from models.arrays import Floats
from models.logs.stored_log import store_frame
from models.release.bundle import Bundle, read_bundle
from models.release.training import train_bundle
from streams.history.rules import is_completed
from streams.messages import UserHistory, Watch

NOW_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
USERS, ITEMS, WATCHES, DAYS = 800, 2000, 30_000, 10
COMPLETED_S = 18.0
TOWERS = Model(dim=32, members=1, linear_dim=32, negatives=512, batch=512, epochs=3, context=False, searches=False)
RANKER = RankerSettings(hidden=(64, 32), members=3, epochs=1)


@dataclass(frozen=True)
class Scene:
    """Where all services of a seed begin: the world, a release learnt from self-chosen watches, what people watched."""

    world: World
    bundle: Bundle
    vectors: Floats  # [N, D + 1]
    histories: dict[str, UserHistory]


def make_scene(seed: int, directory: Path) -> Scene:
    world = World(seed=seed, start_ms=NOW_MS, users=USERS, items=ITEMS, catalogue_days=2.0 * DAYS)
    log = world.past_log(NOW_MS - DAYS * 24 * HOUR_MS, NOW_MS, WATCHES)
    manifest = train_bundle(
        store_frame(log.drop("event_id", "device", "surface"), directory / "log", completed_s=COMPLETED_S),
        world.items_frame(NOW_MS),
        settings=TOWERS.model_copy(update={"seed": seed}),
        ranker=RANKER.model_copy(update={"seed": seed}),
        bundles_dir=directory / "bundles",
        created_ms=NOW_MS,
        offsets={},
        measure=False,
    )
    bundle = read_bundle(directory / "bundles" / manifest.version)
    return Scene(world, bundle, bundle.model.item_vectors(), histories_of(world, log))


def histories_of(world: World, log: pl.DataFrame) -> dict[str, UserHistory]:
    watches: dict[str, list[Watch]] = {user: [] for user in world.user_ids}
    for user, *event in log.select("user_id", "item_id", "event_ms", "watch_s", "duration_s", "event_id").iter_rows():
        watches[user].append(watch_of(*event))
    return {user: UserHistory(user, tuple(mine)) for user, mine in watches.items()}


def watch_of(item_id: str, event_ms: int, watch_s: float, duration_s: float, event_id: str) -> Watch:
    completed = is_completed(watch_s, duration_s, COMPLETED_S)
    return Watch(item_id, event_ms, watch_s, duration_s, completed, event_id, 0)
