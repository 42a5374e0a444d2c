"""A release, trained from a log or from the topics and announced: what `nextwatch train` does.

From the topics the ranker learns from what was served, so its examples are read beside the log. Several processes may
share one training; the first of them writes the bundle, the others only help.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from infra.operate.progress import Step
from infra.operate.releases import newest_of
from infra.operate.retraining import delays_of, retrain, served_examples
from infra.platform.settings import Settings
from models.device import device_of
from models.logs.log import read_items
from models.logs.stored_log import StoredLog, store_log
from models.logs.stored_searches import StoredSearches, store_searches
from models.ranking.item_statistics import ItemStatistics
from models.ranking.ranker_release import Served
from models.ranking.ranker_training import LEAST_ROWS
from models.release.bundle import Bundle, Manifest, newest_version
from models.release.distributed import process_group
from models.release.training import learn_from_log, train_bundle
from models.retrieval.checkpoint import Checkpoints, identity_of
from models.threads import limit_threads
from streams.bundles.sending import send_release
from streams.bundles.source import source_of
from streams.export.archive import store_archive
from streams.export.ranking_archive import ServedExamples
from streams.kafka.releases import announce
from streams.messages import BundlePublished

NEWEST = "newest"  # instead of a version


@dataclass(frozen=True)
class TrainingJob:
    """The source of a training: files, or the topics where `log` is None."""

    log: Path | None = None
    items: Path | None = None
    searches: Path | None = None
    mapping: Mapping[str, str] = field(default_factory=dict)
    warm_start: str | None = None  # a version, or NEWEST
    checkpoints: Path | None = None
    ranker_only: bool = False  # the release to begin from keeps its towers and items
    measure: bool = True  # without, no validation days: half the time, no figures
    directory: Path | None = None  # where the log is stored and stays; None: it goes


@dataclass(frozen=True)
class _Material:
    """Data that was read for a training. `offsets`: where the topics ended."""

    log: StoredLog
    items: pl.DataFrame | None
    searches: StoredSearches | None
    offsets: dict[str, int] = field(default_factory=dict)
    served: Served | None = None


def train_release(settings: Settings, job: TrainingJob, step: Step) -> Manifest | None:
    """Train and write a bundle; its manifest, None in a process that only helped.

    Raises LogError, DeviceMissing, BundleError, CheckpointError, WarmStartError, TopicMissing.
    """
    limit_threads(settings.model.threads)
    device_of(settings.model.device), device_of(settings.ranker.device)  # before anything is read
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    if job.ranker_only:
        return _train_ranker(settings, job, step)
    with process_group() as rank, TemporaryDirectory(dir=settings.data_dir, prefix="training-") as scratch:
        material = _read_material(settings, job, Path(scratch), step)
        base = _read_release(settings, job.warm_start) if job.warm_start else None
        warm = None if base is None else base.model
        checkpoints = _checkpoints(settings, job, material.log, writes=not rank)
        if rank:
            learn_from_log(
                material.log,
                material.items,
                settings=settings.model,
                searches=material.searches,
                warm=warm,
                checkpoints=checkpoints,
            )
            return None
        return train_bundle(
            material.log,
            material.items,
            settings=settings.model,
            ranker=settings.ranker,
            delays=delays_of(settings),
            bundles_dir=settings.bundles_dir,
            created_ms=time.time_ns() // 1_000_000,
            offsets=material.offsets,
            learnt_ms=int(material.log.event_ms[-1]) if job.log is not None else 0,
            served=material.served,
            warm_ranker=None if base is None else base.ranker,
            searches=material.searches,
            warm=warm,
            checkpoints=checkpoints,
            progress=step,
            measure=job.measure,
        )


def retrain_ranker(settings: Settings, step: Step) -> Manifest:
    """The newest release with a ranker of what `ranking-examples` holds; its manifest. Raises LogError."""
    return _train_ranker(settings, TrainingJob(ranker_only=True), step)


def published(manifest: Manifest) -> BundlePublished:
    """The announcement of a bundle."""
    return BundlePublished(manifest.version, manifest.created_ms, manifest.dim, manifest.items, manifest.schema_hash)


def announce_bundle(settings: Settings, manifest: Manifest) -> None:
    """Send the bundle to the store where one is set, then say on `releases` that it is there: the indexer builds its
    index, then it goes live. Raises StoreError: then nothing is announced."""
    send_release(settings, manifest.version)
    announce(settings.kafka, published(manifest))


def _read_material(settings: Settings, job: TrainingJob, scratch: Path, step: Step) -> _Material:
    items = read_items(job.items) if job.items is not None else None
    if job.log is None:
        return _from_topics(settings, items, scratch, step)
    completed_s, directory = settings.history.completed_s, job.directory or scratch
    log = store_log(job.log, directory, mapping=job.mapping, completed_s=completed_s, progress=step)
    if job.searches is None:
        return _Material(log, items, None)
    return _Material(log, items, store_searches(job.searches, log, buckets=settings.model.search_tokens))


def _from_topics(settings: Settings, items: pl.DataFrame | None, scratch: Path, step: Step) -> _Material:
    archive = store_archive(settings, scratch, step)
    items = archive.items if items is None else items
    served = _served(settings, served_examples(settings, scratch, items, step))
    return _Material(archive.log, items, archive.searches, archive.offsets, served)


def _train_ranker(settings: Settings, job: TrainingJob, step: Step) -> Manifest:
    """A release with another one's candidates and a ranker of its own."""
    base = _read_release(settings, job.warm_start or NEWEST)
    return retrain(settings, base, base.ranker if job.warm_start else None, step, job.log, job.mapping)


def _served(settings: Settings, found: ServedExamples) -> Served | None:
    """Served examples, beside the item statistics of the newest release, which served it; None where it is too little
    for a ranker. Where no bundle is left, what it knew from a log is lost."""
    if len(found.examples) < LEAST_ROWS:
        return None
    if newest_of(settings):
        return Served(found.examples, _read_release(settings, NEWEST).statistics)
    return Served(found.examples, ItemStatistics(delays_of(settings).half_life_ms))


def _read_release(settings: Settings, version: str) -> Bundle:
    """The release to begin from, fetched where it is not here. Raises BundleError, StoreError."""
    if version == NEWEST:
        version = newest_of(settings) or newest_version(settings.bundles_dir)
    return source_of(settings).read(version)


def _checkpoints(settings: Settings, job: TrainingJob, log: StoredLog, *, writes: bool) -> Checkpoints | None:
    if job.checkpoints is None:
        return None
    identity = identity_of(log, settings.model.model_dump(exclude={"device"}), job.warm_start)
    return Checkpoints(job.checkpoints, identity, writes=writes, clock=time.monotonic)
