"""What the benchmarks of serving are fed with: a release of the simulated world, and people with full histories."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from infra.platform.settings import Model, Ranker
from infra.simulation.world import World
from models.catalogue.catalogue import Catalogue
from models.release.bundle import Bundle
from models.threads import limit_threads
from streams.messages import Context, Item, ShownList, Trending, UserHistory, Watch
from tests.benchmarks.ranking.ranking_ground import DAY_MS, scratch
from tests.benchmarks.report import say
from tests.harness.service import train_release

WATCHES, QUICK_WATCHES = 60_000, 10_000  # of the world, that the release learns from
QUICK_HIDDEN = (256, 128)  # what `nextwatch train` makes of the full log
HISTORY, LISTS, LENGTH = 50, 5, 20
MINUTE_MS = 60_000
TRENDING = 500

NOTE = (
    "release of the simulated world (2,000 videos, the further ones are noisy copies), {dim} numbers a vector, "
    "ranker {hidden} x {members}; viewers with {history} watches and {lists} lists shown; "
    "all four sources; one thread of torch"
)


def small_release(quick: bool) -> Bundle:
    """What towers and ranker learn of the world, as `nextwatch train` would learn it; less well where `quick`."""
    limit_threads(1)
    say("training a release")
    now_ms = time.time_ns() // MINUTE_MS * MINUTE_MS // 1_000_000
    world = World(seed=5, start_ms=now_ms)
    log = world.past_log(now_ms - 7 * DAY_MS, now_ms, QUICK_WATCHES if quick else WATCHES)
    towers = Model(epochs=1) if quick else Model()
    ranker = Ranker(epochs=1, hidden=QUICK_HIDDEN) if quick else Ranker()
    return train_release(log, world.items_frame(now_ms), towers, ranker, scratch(), now_ms)


def note_of(bundle: Bundle) -> str:
    shape = bundle.ranker.shape
    assert shape is not None
    hidden = "-".join(map(str, shape.hidden))
    return NOTE.format(dim=bundle.manifest.dim, hidden=hidden, members=shape.members, history=HISTORY, lists=LISTS)


def viewers_of(item_ids: Sequence[str], count: int, now_ms: int, seed: int = 1) -> list[UserHistory]:
    """People with full histories of these items, the last watch a minute ago."""
    rng = np.random.default_rng(seed)
    return [_viewer(f"viewer-{at}", item_ids, now_ms, rng) for at in range(count)]


def _viewer(user_id: str, item_ids: Sequence[str], now_ms: int, rng: np.random.Generator) -> UserHistory:
    drawn = [item_ids[row] for row in rng.integers(0, len(item_ids), HISTORY + LISTS * LENGTH).tolist()]
    watches = tuple(
        Watch(item_id, now_ms - (HISTORY - at) * MINUTE_MS, 30.0, 60.0, True, f"{user_id}-{at}", at)
        for at, item_id in enumerate(drawn[:HISTORY])
    )
    shown = drawn[HISTORY:]
    lists = tuple(
        ShownList(f"r{at}", now_ms - (LISTS - at) * 60 * MINUTE_MS, tuple(shown[at * LENGTH : (at + 1) * LENGTH]))
        for at in range(LISTS)
    )
    return UserHistory(user_id, watches, context=Context(region="de", device="tv"), impressions=lists)


def items_of(catalogue: Catalogue, rows: np.ndarray | None = None, item_ids: list[str] | None = None) -> Iterator[Item]:
    """The catalogue as its owner announces it; or the facts of these rows, under other ids."""
    rows, item_ids = np.arange(len(catalogue)) if rows is None else rows, item_ids or catalogue.item_ids
    facts = zip(item_ids, rows.tolist(), catalogue.duration_s(rows), catalogue.published_ms(rows), strict=True)
    for item_id, row, duration_s, published_ms in facts:
        yield Item(
            item_id,
            channel=catalogue.channel_of(row),
            topics=catalogue.topics_of(row),
            duration_s=None if np.isnan(duration_s) else float(duration_s),
            published_ms=None if np.isnan(published_ms) else int(published_ms),
        )


def trending_of(item_ids: Sequence[str], now_ms: int) -> Trending:
    top = tuple((item_id, float(TRENDING - at)) for at, item_id in enumerate(item_ids[:TRENDING]))
    return Trending("global", 0, now_ms, 3600.0, top)
