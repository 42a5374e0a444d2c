"""A ranker alone, from what was really served or from an exposure log, in a new release with the candidates of another.

Impressions become examples within the hour, a candidate model takes a training of its own: so the ranker may be learnt
more often, and a release that differs in the ranker alone can be judged on it alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import structlog

from infra.operate.progress import Step
from infra.platform.settings import Settings
from models.catalogue.item_frame import catalogue_frame
from models.logs.log import LogError
from models.logs.stored_log import store_log
from models.logs.training_set import prepare
from models.ranking.impression_log import Delays
from models.ranking.ranker import Ranker
from models.ranking.ranker_release import RankerRelease, Served, learn_from_served, learn_ranker
from models.ranking.ranker_training import LEAST_ROWS
from models.release.bundle import Bundle, Manifest, write_bundle
from streams.export.ranking_archive import ServedExamples, store_served

_log = structlog.get_logger(__name__)


def delays_of(settings: Settings) -> Delays:
    """The delays after which a log's features may know of something, as the join has them."""
    return Delays(round(settings.join.window_s * 1000), settings.join.half_life_h * 3_600_000)


def served_examples(settings: Settings, directory: Path, items: pl.DataFrame | None, step: Step) -> ServedExamples:
    """Store what `ranking-examples` holds in `directory`."""
    served = store_served(settings, directory / "served", items, step)
    counts = {name: getattr(served, name) for name in ("impressions", "passed_over", "repeated")}
    _log.info("served impressions read", **counts)
    return served


def retrain(
    settings: Settings,
    base: Bundle,
    warm: Ranker | None,
    step: Step,
    log: Path | None = None,
    mapping: Mapping[str, str] | None = None,
) -> Manifest:
    """Write a release with the candidates of `base` and a ranker learnt from `log`, whose items the release's catalogue
    describes, or from `ranking-examples`.

    Raises LogError when there is too little to learn from, TopicMissing when the topic is not there.
    """
    created_ms = time.time_ns() // 1_000_000
    with TemporaryDirectory(dir=settings.data_dir, prefix="training-") as scratch:
        if log is None:
            trained = _learn_from_topic(settings, base, warm, Path(scratch), step)
        else:
            completed_s = settings.history.completed_s
            stored = store_log(log, Path(scratch), mapping=mapping, completed_s=completed_s, progress=step)
            if not stored.watch_times:
                raise LogError(f"{log}: the ranker learns from watch_s, which no row has")
            trained = learn_ranker(
                stored,
                prepare(stored, catalogue_frame(base.catalogue), context=settings.model.context),
                settings=settings.ranker,
                delays=delays_of(settings),
                earlier=None,
                since=len(stored),
                warm=warm,
                progress=step,
            )
            trained.statistics.move(created_ms - int(stored.event_ms[-1]))
    return write_bundle(
        settings.bundles_dir,
        model=base.model,
        ranker=trained.ranker,
        catalogue=base.catalogue,
        statistics=trained.statistics,
        created_ms=created_ms,
        completed_s=base.manifest.completed_s,
        seed=settings.ranker.seed,
        metrics=trained.metrics,
        offsets=base.manifest.offsets,
        learnt_ms=base.manifest.learnt_ms,
    )


def _learn_from_topic(
    settings: Settings, base: Bundle, warm: Ranker | None, scratch: Path, step: Step
) -> RankerRelease:
    served = served_examples(settings, scratch, catalogue_frame(base.catalogue), step)
    if len(served.examples) < LEAST_ROWS:
        raise LogError(
            f"ranking-examples: holds {len(served.examples)} shown items with features of this version, "
            f"{LEAST_ROWS} are needed; {served.passed_over} impressions had none. "
            "Examples come when join.window_s has passed after an impression"
        )
    examples = Served(served.examples, base.statistics)
    return learn_from_served(examples, scratch / "ranking", settings=settings.ranker, warm=warm, progress=step)
