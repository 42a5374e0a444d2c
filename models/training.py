"""From a stored log to a release: candidate generator, ranker and catalogue, written as a bundle.

Candidates are learnt twice: on what is before the validation days, which say how long and how much to personalise, and
whose model gives the ranker retrieval scores that do not know the answer; then anew on everything, because the newest
days are what a live system needs most. The figures in the manifest are those of the first.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from infra.settings import Model
from models.bundle import Manifest, write_bundle
from models.candidate_learning import Learned, learn_candidates
from models.candidates import CandidateModel
from models.catalogue import Catalogue
from models.checkpoint import Checkpoints
from models.dataset import Dataset
from models.features import FEATURES
from models.log import LogError
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
from models.source import Source, prepare
from models.stored_log import BUFFER_ROWS, StoredLog
from models.stored_searches import StoredSearches

Rows = npt.NDArray[np.int64]
Progress = Callable[[str, int, int], None]

HELD_OUT = 0.1  # share of the positives, newest last, that are the validation days
LEAST_POSITIVES = 20
LEAST_ITEMS = 2
GAP = FEATURES.index("retrieval_gap")


def train_bundle(
    log: StoredLog,
    items: pl.DataFrame | None,
    *,
    settings: Model,
    bundles_dir: Path,
    created_ms: int,
    offsets: dict[str, int],
    searches: StoredSearches | None = None,
    warm: CandidateModel | None = None,
    checkpoints: Checkpoints | None = None,
    progress: Progress = lambda stage, done, total: None,
    measure: bool = True,
) -> Manifest:
    """Train everything from a log (and a catalogue, where there is one) and write the bundle; its manifest.

    `progress(stage, done, total)` is called for the stages `validation`, `candidates`, `features` and `ranker`.
    `warm` is an earlier release's model to begin from. `measure=False` leaves out the first of the two trainings: half
    the time, no metrics, no retrieval score in the ranker. Raises LogError when the log has too few completed watches.
    """
    source, learned, cut = _learn(
        log,
        items,
        settings=settings,
        searches=searches,
        warm=warm,
        checkpoints=checkpoints,
        progress=progress,
        measure=measure,
    )
    ranker, ranker_metrics = _fit_ranker(
        exposures_of(log, source),
        source.catalogue,
        earlier=learned.earlier,
        since=int(source.completed[cut]),  # the log's row of the first positive that `earlier` has not seen
        settings=settings,
        progress=progress,
    )
    manifest = write_bundle(
        bundles_dir,
        model=learned.model,
        ranker=ranker,
        catalogue=source.catalogue,
        created_ms=created_ms,
        completed_s=log.completed_s,
        ranker_hidden=settings.ranker_hidden,
        seed=settings.seed,
        metrics=learned.choice.metrics | ranker_metrics,
        offsets=offsets,
    )
    if checkpoints is not None:
        checkpoints.clear()
    return manifest


def help_training(
    log: StoredLog,
    items: pl.DataFrame | None,
    *,
    settings: Model,
    searches: StoredSearches | None = None,
    warm: CandidateModel | None = None,
    checkpoints: Checkpoints | None = None,
) -> None:
    """What the other processes of a distributed training do: their share of the candidates' batches, from the same
    arguments. The first process calls train_bundle."""
    _learn(log, items, settings=settings, searches=searches, warm=warm, checkpoints=checkpoints)


def _learn(
    log: StoredLog,
    items: pl.DataFrame | None,
    *,
    settings: Model,
    searches: StoredSearches | None,
    warm: CandidateModel | None,
    checkpoints: Checkpoints | None,
    progress: Progress = lambda stage, done, total: None,
    measure: bool = True,
) -> tuple[Source, Learned, int]:
    """What was learnt from, what was learnt, and the row of the data set where the validation days begin."""
    source = prepare(log, items, searches=searches if settings.searches else None, context=settings.context)
    check_size(source.dataset)
    until = len(source.dataset)
    cut = int(until * (1 - HELD_OUT))
    learned = learn_candidates(
        source,
        settings,
        until=until,
        valid_from=cut if measure else None,
        items=len(source.catalogue),
        warm=warm,
        checkpoints=checkpoints,
        progress=progress,
    )
    return source, learned, cut


def check_size(dataset: Dataset) -> None:
    """Raises LogError when there is too little to learn from."""
    distinct = len(np.unique(dataset.items[:BUFFER_ROWS]))
    if len(dataset) < LEAST_POSITIVES or distinct < LEAST_ITEMS:
        has = f"{len(dataset)} completed watches of {distinct} items"
        needs = f"at least {LEAST_POSITIVES} of {LEAST_ITEMS} are needed"
        raise LogError(f"log: has {has}, {needs}; is completed_s right, and watch_s in seconds?")


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
