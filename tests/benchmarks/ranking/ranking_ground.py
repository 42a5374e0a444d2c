"""What the benchmarks of the ranker are judged on: exposures of KuaiRand and of the simulated world, cut in time.

Features of all exposures are built once, each frozen at the page of its exposure; a part of them is taken as it is for
training and for comparisons within a page, and once more frozen at each user's first exposure of the part, for
comparisons across a user's pages.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import numpy as np
import polars as pl

from infra.platform.settings import Settings
from infra.simulation.world import World
from models.arrays import Array, Rows
from models.logs.stored_log import store_frame
from models.logs.training_set import prepare
from models.ranking.impression_log import Delays, ImpressionLog
from models.ranking.ranking_examples import RankingExamples
from tests.benchmarks.report import say
from tests.harness import kuairand

Columns = dict[str, Array]

DAY_MS = 24 * 3_600_000
NOW_MS = 1_700_000_000_000
LISTS, QUICK_LISTS, LENGTH = 12_000, 1_500, 20
BEFORE_DAYS, SHOWN_DAYS = 10, 10  # of self-chosen watches, and of lists
KEY = ("user_id", "item_id", "event_ms")
_SCRATCH = TemporaryDirectory(prefix="nextwatch-")  # goes with the process


@dataclass(frozen=True)
class Part:
    """Exposures of some time: the state frozen at their pages, and at each user's first of them; `extra` by exposure
    what no feature knows."""

    page: RankingExamples
    user: RankingExamples
    extra: Columns

    def __len__(self) -> int:
        return len(self.page)


@dataclass(frozen=True)
class Ground:
    """All exposures with a watch time, oldest first. rows int64 [N]: the row of each in the log."""

    exposures: ImpressionLog
    examples: RankingExamples
    rows: Rows
    extra: Columns = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.examples)

    def at(self, share: float) -> int:
        """How many exposures have passed at this share of them."""
        return int(len(self) * share)

    def part(self, start: int, stop: int) -> Part:
        """Exposures `start` to `stop`. Users are numbered by their names, so that another log's are the same
        ones."""
        first, last = int(self.rows[start]), int(self.rows[stop - 1]) + 1
        frozen = self.exposures.first_of_user(first)[: last - first]
        user = self.exposures.examples(f"user-{start}-{stop}", start=first, stop=last, frozen=frozen)
        page = self.examples.take(np.arange(start, stop))
        by_name = np.argsort(np.argsort(np.array(self.exposures.log.user_ids)))
        page = replace(page, user=by_name[page.user])
        return Part(page, user, {name: column[start:stop] for name, column in self.extra.items()})


def kuairand_ground(*, history: bool = True, users: float = 1.0) -> Ground:
    """Without the exposures whose duration is not known; `clicked` is KuaiRand's own flag. `users`: a share of them.

    Raises FileNotFoundError where the data is absent."""
    log, items = kuairand.read_kuairand(history=history, surface=True)
    log = log.filter(pl.col("watch_s").is_null() | pl.col("duration_s").is_not_null())
    if users < 1:
        log = log.filter(pl.col("user_id").hash(seed=1) % 1000 < round(1000 * users))
    clicks = pl.read_parquet(kuairand.DIRECTORY / "exposures_0425_0505.parquet").select(
        user_id=pl.col("user_id").cast(pl.String),
        item_id=pl.col("video_id").cast(pl.String),
        event_ms=pl.col("time_ms"),
        clicked=pl.col("is_click") == 1,
    )
    return ground_of(log, items, clicks)


def world_ground(lists: int) -> Ground:
    """The simulated world: completed self-chosen watches as history, then lists; `true_s` and `list` of each exposure.
    Where it stood is in the examples, as in those that are served."""
    world = World(seed=1, start_ms=NOW_MS, catalogue_days=2.0 * (BEFORE_DAYS + SHOWN_DAYS))
    shown_ms = NOW_MS - SHOWN_DAYS * DAY_MS
    chosen = world.past_log(shown_ms - BEFORE_DAYS * DAY_MS, shown_ms, 60_000)
    done = chosen.filter(pl.col("watch_s") >= pl.min_horizontal("duration_s", pl.lit(18.0)))
    before = done.with_columns(watch_s=pl.lit(None, pl.Float64)).drop("event_id")
    shown = world.past_exposures(shown_ms, NOW_MS, lists, LENGTH)
    log = pl.concat([before, shown.drop("request_id", "position", "true_s")], how="diagonal")
    facts = shown.select(*KEY, "position", "true_s", list=pl.col("request_id").rank("dense").cast(pl.Int64))
    ground = ground_of(log, world.items_frame(NOW_MS), facts)
    position = ground.extra["position"].astype(np.int32)
    return replace(ground, examples=replace(ground.examples, position=position))


def ground_of(log: pl.DataFrame, items: pl.DataFrame, facts: pl.DataFrame | None = None) -> Ground:
    """`facts`: columns by user_id, item_id and event_ms that become `extra`."""
    settings = Settings.model_construct()
    delays = Delays(round(1000 * settings.join.window_s), 3_600_000 * settings.join.half_life_h)
    stored = store_frame(log, scratch(), completed_s=settings.history.completed_s)
    exposures = ImpressionLog(stored, prepare(stored, items), scratch(), delays)
    examples = exposures.examples("all", progress=_tell)
    rows = np.flatnonzero(exposures.timed(slice(0, len(exposures))))
    extra: Columns = {}
    if facts is not None:
        keys = stored.frame().select(KEY)[rows]
        known = keys.join(facts, on=list(KEY), how="left", maintain_order="left")
        extra = {name: known[name].to_numpy() for name in known.columns if name not in KEY}
    return Ground(exposures, examples, rows, extra)


def scratch() -> Path:
    """A new directory that goes with the process."""
    return Path(mkdtemp(dir=_SCRATCH.name))


def _tell(done: int, total: int) -> None:
    if done == total:
        say(f"features of {total:,} rows")
