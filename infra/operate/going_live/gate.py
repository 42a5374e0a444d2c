"""Train, judge, and only then put the bundle where others find it.

The order: the bundle is written to a hidden directory beside the others, judged there, and given its place only when it
may go live; `up` and `releases --announce` take the newest bundle that they find, so one that is refused must never lie
among them. It is kept in `.refused`, the newest one alone, for whoever wants to look. What a crash leaves in
`.judged-*` is no bundle for anybody, and goes with the next training.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from infra.operate.progress import Step
from infra.operate.releases import read_topic
from infra.operate.training import TrainingJob, announce_bundle, learnt_until, train_beside
from infra.platform.scratch import scratch_directory
from infra.platform.settings import Settings
from models.evaluation.gate import Verdict
from models.release.bundle import BundleError, Manifest
from models.release.manifest_file import sync_path
from models.release.trial import Rival
from streams.bundles.objects import StoreError
from streams.bundles.source import source_of

REFUSED, JUDGED = ".refused", ".judged-"


class Judgement(NamedTuple):
    """A new release, what was said of it, and where it lies. `live`: the version that it was to replace, empty for
    none."""

    manifest: Manifest
    verdict: Verdict
    live: str
    is_announced: bool
    place: Path


def go_live(
    settings: Settings,
    job: TrainingJob,
    step: Step,
    *,
    force: bool = False,
    helping: bool = False,
    placed: Callable[[Judgement], None] = lambda judgement: None,
) -> Judgement | None:
    """Train a release and announce it unless it is certainly worse, or all the same with `force`; None in a process
    that only helps. `placed` is called with what is about to be announced.

    Raises what a training raises, KafkaError, and StoreError: then nothing is announced."""
    rival = Rival() if helping else read_rival(settings)
    with scratch_directory(settings.bundles_dir, JUDGED) as written:
        judged = train_beside(settings, job, step, rival, written)
        if judged is None or helping:
            return None
        verdict = judged.verdict or Verdict("not judged")
        passes = force or verdict.outcome != "refused"
        place = put(written / judged.manifest.version, settings.bundles_dir if passes else aside(settings))
    judgement = Judgement(judged.manifest, verdict, rival.version, passes, place)
    if passes:
        placed(judgement)
        announce_bundle(settings, judged.manifest)
    return judgement


def read_rival(settings: Settings) -> Rival:
    """The release that servers were told to serve, with its bundle where it can be read. Raises KafkaError,
    TopicMissing."""
    version = read_topic(settings.kafka).live
    if not version:
        return Rival()
    try:
        bundle = source_of(settings).read(version)
    except (BundleError, StoreError) as error:
        return Rival(version, why=f"the bundle of {version} cannot be read: {error}")
    manifest = bundle.manifest
    return Rival(version, learnt_until(manifest), manifest.created_ms, bundle.model, bundle.ranker, why="")


def aside(settings: Settings) -> Path:
    """The directory of refused bundles, emptied."""
    directory = settings.bundles_dir / REFUSED
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    return directory


def put(bundle: Path, directory: Path) -> Path:
    """Move a bundle, whole, into a directory of the same disk; its place."""
    place = directory / bundle.name
    bundle.rename(place)
    sync_path(directory)
    return place
