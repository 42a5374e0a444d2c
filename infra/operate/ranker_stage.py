"""A ranker alone, from what was really served or from an exposure log, in a new release with the candidates of another.

Impressions become examples within the hour, a candidate model takes a training of its own: so the ranker may be learnt
more often, and a release that differs in the ranker alone can be judged on it alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import polars as pl
import structlog

from infra.operate.progress import Step
from infra.platform.scratch import scratch_directory
from infra.platform.settings import Settings
from models.catalogue.item_frame import catalogue_frame
from models.evaluation.gate import Verdict
from models.logs.log import LogError
from models.logs.stored_log import store_log
from models.logs.training_set import prepare
from models.ranking.impression_log import Delays
from models.ranking.ranker import Ranker
from models.ranking.ranker_release import RankerRelease, Served, learn_from_served, learn_ranker
from models.ranking.ranker_training import LEAST_ROWS
from models.release.bundle import Bundle, Manifest, write_bundle
from models.release.trial import Rival, judge_ranker
from streams.export.ranking_archive import ServedExamples, store_served

_log = structlog.get_logger(__name__)

SCRATCH = "training-"  # in data_dir, while a training runs


class Judged(NamedTuple):
    """A bundle that was written, and what was said of it; None where nobody was to judge."""

    manifest: Manifest
    verdict: Verdict | None


def delays_of(settings: Settings) -> Delays:
    """The delays after which a log's features may know of something, as the join has them."""
    return Delays(round(settings.join.window_s * 1000), settings.join.half_life_h * 3_600_000)


def served_examples(settings: Settings, directory: Path, items: pl.DataFrame | None, step: Step) -> ServedExamples:
    """Store what `ranking-examples` holds in `directory`."""
    served = store_served(settings, directory / "served", items, step)
    counts = {name: getattr(served, name) for name in ("impressions", "passed_over", "repeated")}
    _log.info("served impressions read", **counts)
    return served


def renew_ranker(
    settings: Settings,
    base: Bundle,
    warm: Ranker | None,
    step: Step,
    rival: Rival | None,
    bundles_dir: Path,
    *,
    log: Path | None = None,
    mapping: Mapping[str, str] | None = None,
) -> Judged:
    """Write a release with the candidates of `base` and a ranker learnt from `log`, whose items the release's catalogue
    describes, or from `ranking-examples`; its ranker is judged beside the live release's, of the topic alone.

    Raises LogError when there is too little to learn from, TopicMissing when the topic is not there.
    """
    created_ms = time.time_ns() // 1_000_000
    with scratch_directory(settings.data_dir, SCRATCH) as scratch:
        if log is None:
            since_ms = 0 if rival is None else rival.ranked_ms
            trained = _learn_from_topic(settings, base, warm, since_ms, scratch, step)
        else:
            completed_s = settings.history.completed_s
            stored = store_log(log, scratch, mapping=mapping, completed_s=completed_s, progress=step)
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
        verdict = None if rival is None else _judge(trained, rival, settings.ranker.seed)
    manifest = write_bundle(
        bundles_dir,
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
    return Judged(manifest, verdict)


def _judge(trained: RankerRelease, rival: Rival, seed: int) -> Verdict:
    return judge_ranker(trained.measured, trained.ranker, trained.unseen, rival, seed=seed, is_new=trained.is_new)


def _learn_from_topic(
    settings: Settings, base: Bundle, warm: Ranker | None, since_ms: int, scratch: Path, step: Step
) -> RankerRelease:
    served = served_examples(settings, scratch, catalogue_frame(base.catalogue), step)
    if len(served.examples) < LEAST_ROWS:
        raise LogError(
            f"ranking-examples: holds {len(served.examples)} shown items with features of this version, "
            f"{LEAST_ROWS} are needed; {served.passed_over} impressions had none. "
            "Examples come when join.window_s has passed after an impression"
        )
    examples = Served(served.examples, base.statistics)
    return learn_from_served(
        examples, scratch / "ranking", settings=settings.ranker, warm=warm, since_ms=since_ms, progress=step
    )
