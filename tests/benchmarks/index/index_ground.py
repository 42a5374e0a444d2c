"""What the benchmarks of the index are filled with: a release of the simulated world, and users of it as queries."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import polars as pl

from indexer.item_attributes import AttributeTable, attributes_of
from infra.platform.settings import Model, Ranker
from infra.simulation.world import World
from models.arrays import Floats
from models.release.bundle import Bundle
from models.retrieval.candidates import CandidateModel
from models.retrieval.popularity import Popularity
from streams.messages import Item, UserHistory, Watch
from tests.benchmarks.ranking.ranking_ground import scratch
from tests.harness.service import COMPLETED_S, train_release

NOW_MS, DAY_MS = 1_700_000_000_000, 86_400_000
USERS = 2000
NOTE = "vectors and users of a release of the simulated world, {events:,} watches, one epoch, {dim} numbers a vector"


@dataclass(frozen=True)
class Ground:
    """A bundle, the catalogue's attributes, and the world's last watches."""

    bundle: Bundle
    items: list[Item]
    log: pl.DataFrame

    @property
    def note(self) -> str:
        return NOTE.format(events=len(self.log), dim=self.bundle.manifest.dim)

    def attributes(self) -> AttributeTable:
        attributes = AttributeTable()
        for item in self.items:
            attributes.set(item.item_id, attributes_of(item))
        return attributes

    def user_vectors(self, count: int) -> Floats:
        """float32 [B, dim]: what serving would search with for the first users of the log."""
        return self.bundle.model.user_vectors([self._history(each) for each in self._users(count)], NOW_MS)

    def _users(self, count: int) -> list[str]:
        return self.log["user_id"].unique(maintain_order=True)[:count].to_list()

    def _history(self, user_id: str) -> UserHistory:
        newest = self.log.filter(pl.col("user_id") == user_id).tail(50)
        columns = newest.select("item_id", "event_ms", "watch_s", "duration_s").iter_rows()
        watches = tuple(Watch(*each, completed=each[2] >= COMPLETED_S, event_id="e", offset=0) for each in columns)
        return UserHistory(user_id, watches)


def many(ground: Ground, times: int) -> Ground:
    """Each item `times` times, its copies half of the vectors' spread apart. What users have watched are the first."""
    model, rng = ground.bundle.model, np.random.default_rng(1)
    spread = 0.5 * model.vectors.std(axis=0)
    copies = [model.vectors + rng.normal(size=model.vectors.shape) * spread for _ in range(times - 1)]
    columns = [np.tile(column, times) for column in model.popularity.arrays().values()]
    larger = CandidateModel(
        model.item_ids + [f"{item_id}-{copy}" for copy in range(1, times) for item_id in model.item_ids],
        model.encoder,
        vectors=np.concatenate([model.vectors, *copies]).astype(np.float32),
        bias=np.tile(model.bias, times),
        query_rows=np.tile(model.query_rows, (times, 1)),
        popularity=Popularity(model.popularity.half_life_events, *columns, clock=model.popularity.clock),
    )
    manifest = msgspec.structs.replace(ground.bundle.manifest, items=len(larger.item_ids))
    return replace(ground, bundle=replace(ground.bundle, model=larger, manifest=manifest))


def world_ground(items: int, bundles_dir: Path | None = None) -> Ground:
    """A release for `items` videos, twice as many watches or more."""
    world = World(seed=5, start_ms=NOW_MS, items=items, users=USERS)
    log = world.past_log(NOW_MS - 7 * DAY_MS, NOW_MS, max(40_000, 2 * items))
    ranker = Ranker(hidden=(8,), members=1, epochs=1)
    frame = world.items_frame(NOW_MS)
    bundle = train_release(log, frame, Model(epochs=1), ranker, bundles_dir or scratch(), NOW_MS)
    return Ground(bundle, world.catalogue(NOW_MS), log)
