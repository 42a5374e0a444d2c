"""A release, trained from a log or from the topics and announced: what `nextwatch train` does.

From the topics the ranker learns from what was served, so its examples are read beside the log. Several processes may
share one training; the first of them writes the bundle, the others only help. Beside a rival the release is judged
while what it was learnt from is still there (models.release.trial); who may announce it is said in
infra/operate/going_live.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl

from infra.operate.progress import Step
from infra.operate.ranker_stage import SCRATCH, Judged, delays_of, renew_ranker, served_examples
from infra.operate.releases import newest_of
from infra.platform.scratch import scratch_directory
from infra.platform.settings import Settings
from models.device import device_of
from models.evaluation.gate import LEAST_USERS, Verdict
from models.logs.log import read_items
from models.logs.stored_log import StoredLog, store_log
from models.logs.stored_searches import StoredSearches, store_searches
from models.ranking.item_statistics import ItemStatistics
from models.ranking.ranker_release import Served
from models.ranking.ranker_training import LEAST_ROWS
from models.release.bundle import Bundle, Manifest, newest_version, read_bundle
from models.release.distributed import agreed, process_group
from models.release.training import Trained, learn_from_log, train_with_trial
from models.release.trial import Rival, judge_release
from models.retrieval.checkpoint import Checkpoints, identity_of
from models.threads import limit_threads
from streams.bundles.sending import send_release
from streams.bundles.source import source_of
from streams.export.archive import store_archive
from streams.export.ranking_archive import ServedExamples
from streams.kafka.releases import announce
from streams.messages import BundlePublished

NEWEST = "newest"  # instead of a version
TOO_FEW = f"too few cases: {LEAST_USERS} users are needed who watch something new in the newest tenth"


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
    new_ranker: bool = False  # begin the candidates alone from `warm_start`: new videos get embeddings in the ranker
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
    """Train and write a bundle that nobody judges; its manifest, None in a process that only helped.

    Raises LogError, DeviceMissing, BundleError, CheckpointError, WarmStartError, TopicMissing.
    """
    trained = train_beside(settings, job, step, None, settings.bundles_dir)
    return None if trained is None else trained.manifest


def train_beside(
    settings: Settings, job: TrainingJob, step: Step, rival: Rival | None, bundles_dir: Path
) -> Judged | None:
    """Train, write a bundle to `bundles_dir`, and judge it beside the live release; None in a process that only helped.
    Raises what train_release does."""
    limit_threads(settings.model.threads)
    device_of(settings.model.device), device_of(settings.ranker.device)  # before anything is read
    if job.ranker_only:
        return _train_ranker(settings, job, step, rival, bundles_dir)
    with process_group() as rank, scratch_directory(settings.data_dir, SCRATCH) as scratch:
        material = _read_material(settings, job, scratch, step)
        base = _read_release(settings, job.warm_start) if job.warm_start else None
        warm, warm_ms = (None, 0) if base is None else (base.model, learnt_until(base.manifest))
        checkpoints = _checkpoints(
            settings, job, material.log, is_judged=bool(agreed(rival is not None)), writes=not rank
        )
        rival = _agreed_rival(rival, base, checkpoints)
        if rank:
            learn_from_log(
                material.log,
                material.items,
                settings=settings.model,
                searches=material.searches,
                warm=warm,
                warm_ms=warm_ms,
                checkpoints=checkpoints,
                rival=rival,
            )
            return None
        trained = train_with_trial(
            material.log,
            material.items,
            settings=settings.model,
            ranker=settings.ranker,
            delays=delays_of(settings),
            candidates=settings.serving.candidates,
            bundles_dir=bundles_dir,
            created_ms=time.time_ns() // 1_000_000,
            offsets=material.offsets,
            learnt_ms=int(material.log.event_ms[-1]) if job.log is not None else 0,
            served=material.served,
            warm_ranker=None if base is None or job.new_ranker else base.ranker,
            searches=material.searches,
            warm=warm,
            warm_ms=warm_ms,
            checkpoints=checkpoints,
            rival=rival,
            progress=step,
            measure=job.measure,
        )
        verdict = None if rival is None else _judge(settings, trained, rival, bundles_dir, step)
        return Judged(trained.manifest, verdict)


def retrain_ranker(settings: Settings, step: Step) -> Manifest:
    """The newest release with a ranker of what `ranking-examples` holds; its manifest. Raises LogError."""
    return _train_ranker(settings, TrainingJob(ranker_only=True), step, None, settings.bundles_dir).manifest


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


def _agreed_rival(rival: Rival | None, base: Bundle | None, checkpoints: Checkpoints | None) -> Rival | None:
    """The rival for a release that begins from `base`, whose lessons are no test either; of several processes they all
    hold out what the first does, which alone has to know the live release. A training that goes on from `checkpoints`
    holds out what it did before; a release that has learnt some of that, having gone live since, is no rival of it."""
    held_ms = -1 if rival is None else rival.learnt_ms
    if rival is not None and base is not None:
        held_ms = max(held_ms, learnt_until(base.manifest))
    if rival is not None and checkpoints is not None:
        held_ms = checkpoints.held_from(held_ms)
    held_ms = agreed(held_ms)
    if held_ms < 0:
        return None
    if rival is not None and rival.learnt_ms > held_ms:
        why = f"{rival.version} has gone live since this training began"
        rival = replace(rival, model=None, ranker=None, why=why)
    return replace(rival or Rival(), learnt_ms=held_ms)


def learnt_until(manifest: Manifest) -> int:
    """The time before which all lies that a release has learnt of watches."""
    return manifest.learnt_ms + 1 if manifest.learnt_ms else manifest.created_ms


def _judge(settings: Settings, trained: Trained, rival: Rival, bundles_dir: Path, step: Step) -> Verdict:
    """Judge what was written, as it is read back."""
    if trained.trial is None:
        return Verdict("not judged", notes=(TOO_FEW,))
    final = read_bundle(bundles_dir / trained.manifest.version)
    return judge_release(trained.trial, (final.model, final.ranker), rival, seed=settings.model.seed, progress=step)


def _train_ranker(settings: Settings, job: TrainingJob, step: Step, rival: Rival | None, bundles_dir: Path) -> Judged:
    """A release with another one's candidates and a ranker of its own."""
    base = _read_release(settings, job.warm_start or NEWEST)
    warm = base.ranker if job.warm_start else None
    return renew_ranker(settings, base, warm, step, rival, bundles_dir, log=job.log, mapping=job.mapping)


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


def _checkpoints(
    settings: Settings, job: TrainingJob, log: StoredLog, *, is_judged: bool, writes: bool
) -> Checkpoints | None:
    if job.checkpoints is None:
        return None
    begins = f"{job.warm_start}, judged" if is_judged else job.warm_start
    identity = identity_of(log, settings.model.model_dump(exclude={"device"}), begins)
    return Checkpoints(job.checkpoints, identity, writes=writes, clock=time.monotonic)
