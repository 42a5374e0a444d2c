"""Where the services of the simulated world begin: a world, a release learnt from self-chosen watches, histories."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from infra.platform.settings import Model
from infra.platform.settings import Ranker as RankerSettings
from infra.simulation.world import World
from models.arrays import Floats
from models.release.bundle import Bundle
from streams.messages import UserHistory
from tests.harness.service import histories_of, train_release

NOW_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
USERS, ITEMS, WATCHES, DAYS = 800, 2000, 30_000, 10
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
    bundle = train_release(
        log.drop("event_id", "device", "surface"),
        world.items_frame(NOW_MS),
        TOWERS.model_copy(update={"seed": seed}),
        RANKER.model_copy(update={"seed": seed}),
        directory / "bundles",
        NOW_MS,
    )
    nobody = {user: UserHistory(user) for user in world.user_ids}
    return Scene(world, bundle, bundle.model.item_vectors(), nobody | histories_of(log, most=len(log)))
