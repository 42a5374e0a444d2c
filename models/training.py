"""From a log to a release: candidate generator, ranker and catalogue, measured on the log's end, written as a bundle.

The model is trained twice. Once on the first nine tenths, to be measured on what came after and to give the ranker
retrieval scores that do not know the answer; then anew on everything, because the newest tenth is what a live system
needs most. The figures in the manifest are those of the first.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from infra.settings import Model
from models.bundle import Manifest, write_bundle
from models.candidate_training import train_candidates
from models.candidates import CandidateModel
from models.catalogue import Catalogue
from models.evaluation import Positives, measure_recall, next_watch_cases
from models.features import FEATURES
from models.log import Log, LogError, items_from_frame
from models.ranker import Ranker
from models.ranker_training import (
    Exposures,
    exposure_features,
    exposures_of,
    item_statistics,
    measure_ranker,
    train_ranker,
    unseen_gaps,
)

Rows = npt.NDArray[np.int64]
Progress = Callable[[str, int, int], None]

HELD_OUT = 0.1  # share of the positives, newest last, that the measured model does not see
LEAST_POSITIVES = 20
LEAST_ITEMS = 2
GAP = FEATURES.index("retrieval_gap")


def train_bundle(
    log: Log,
    items: pl.DataFrame | None,
    *,
    settings: Model,
    bundles_dir: Path,
    created_ms: int,
    offsets: dict[str, int],
    progress: Progress = lambda stage, done, total: None,
    measure: bool = True,
) -> Manifest:
    """Train everything from a log (and a catalogue, where there is one) and write the bundle; its manifest.

    `progress(stage, done, total)` is called for the stages `measuring`, `candidates`, `features` and `ranker`.
    `measure=False` leaves out the first of the two trainings: half the time, no metrics, no retrieval score in the
    ranker. Raises LogError when the log has too few completed watches.
    """
    catalogue = build_catalogue(log, items)
    users = (log.frame["user_id"].rank("dense").to_numpy() - 1).astype(np.int64)
    rows = catalogue.rows(log.frame["item_id"])
    completed = log.frame["completed"].to_numpy()
    positives = Positives(users[completed], rows[completed])
    _check_size(positives, catalogue)

    cut = int(len(positives) * (1 - HELD_OUT))
    metrics: dict[str, float] = {}
    earlier: CandidateModel | None = None
    if measure:
        earlier = train_candidates(positives.before(cut), catalogue, settings, _staged(progress, "measuring"))
        metrics = measure_recall(earlier, next_watch_cases(positives, cut))
    model = train_candidates(positives, catalogue, settings, _staged(progress, "candidates"))

    exposures = exposures_of(log, users, rows, catalogue)
    since = int(np.flatnonzero(completed)[cut])  # the log's row of the first positive that `earlier` has not seen
    ranker, ranker_metrics = _fit_ranker(
        exposures, catalogue, earlier=earlier, since=since, settings=settings, progress=progress
    )
    return write_bundle(
        bundles_dir,
        model=model,
        ranker=ranker,
        catalogue=catalogue,
        created_ms=created_ms,
        completed_s=log.completed_s,
        hidden=settings.hidden,
        ranker_hidden=settings.ranker_hidden,
        seed=settings.seed,
        metrics=metrics | ranker_metrics,
        offsets=offsets,
    )


def build_catalogue(log: Log, items: pl.DataFrame | None) -> Catalogue:
    """All items of the catalogue frame, then those that only the log knows; durations from the log where needed."""
    catalogue = Catalogue()
    durations = log.frame.group_by("item_id", maintain_order=True).agg(pl.col("duration_s").drop_nulls().last())
    duration_of = dict(durations.iter_rows())
    if items is not None:
        for facts in items_from_frame(items).iter_rows(named=True):
            known = facts["duration_s"] or duration_of.get(facts["item_id"])
            catalogue.upsert(**{**facts, "duration_s": known})
    for item_id, duration_s in duration_of.items():
        if catalogue.row(item_id) < 0:
            catalogue.upsert(item_id, duration_s=duration_s)
    return catalogue


def _fit_ranker(
    exposures: Exposures,
    catalogue: Catalogue,
    *,
    earlier: CandidateModel | None,
    since: int,
    settings: Model,
    progress: Progress,
) -> tuple[Ranker, dict[str, float]]:
    """The ranker of all timed rows, and the figures of one that saw only those before the log's row `since`."""
    chosen = np.flatnonzero(exposures.timed)
    if not len(chosen):
        return Ranker(None, None, item_statistics(exposures, chosen, len(catalogue)), catalogue), {}
    features = exposure_features(exposures, chosen, catalogue, progress=_staged(progress, "features"))
    metrics: dict[str, float] = {}
    if earlier is not None:
        old = chosen < since
        measured = train_ranker(features[old], exposures, chosen[old], catalogue=catalogue, settings=settings)
        metrics = measure_ranker(measured, features[~old], exposures.target_s[chosen[~old]])
        features[:, GAP] = unseen_gaps(earlier, exposures, chosen, since)
    step = _staged(progress, "ranker")
    ranker = train_ranker(features, exposures, chosen, catalogue=catalogue, settings=settings, progress=step)
    return ranker, metrics


def _staged(progress: Progress, stage: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(stage, done, total)


def _check_size(positives: Positives, catalogue: Catalogue) -> None:
    if len(positives) < LEAST_POSITIVES or len(np.unique(positives.items)) < LEAST_ITEMS:
        has = f"{len(positives)} completed watches of {len(np.unique(positives.items))} items"
        needs = f"at least {LEAST_POSITIVES} of {LEAST_ITEMS} are needed"
        raise LogError(f"log: has {has}, {needs}; is completed_s right, and watch_s in seconds?")
