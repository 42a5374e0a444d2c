"""From a stored log to a release: candidate generator, ranker and catalogue, written as a bundle.

Candidates are learnt twice: on what is before the validation days, which say how long and how much to personalise, and
whose model gives the ranker retrieval scores that do not know the answer; then anew on everything, because the newest
days are what a live system needs most. The figures in the manifest are those of the first.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from models.logs.dataset import Dataset
from models.logs.log import LogError
from models.logs.stored_log import BUFFER_ROWS, StoredLog
from models.logs.stored_searches import StoredSearches
from models.logs.training_set import TrainingSet, prepare
from models.ranking.hyper_parameters import RankerParameters
from models.ranking.impression_log import Delays
from models.ranking.ranker import Ranker
from models.ranking.ranker_release import Served, learn_from_served, learn_ranker
from models.release.bundle import Manifest, write_bundle
from models.retrieval.candidate_learning import Learned, learn_candidates
from models.retrieval.candidates import CandidateModel
from models.retrieval.checkpoint import Checkpoints
from models.retrieval.hyper_parameters import CandidateParameters

Progress = Callable[[str, int, int], None]

HELD_OUT = 0.1  # share of the positives, newest last, that are the validation days
LEAST_POSITIVES = 20
LEAST_ITEMS = 2


def train_bundle(
    log: StoredLog,
    items: pl.DataFrame | None,
    *,
    settings: CandidateParameters,
    ranker: RankerParameters,
    bundles_dir: Path,
    created_ms: int,
    offsets: dict[str, int],
    learnt_ms: int = 0,
    delays: Delays = Delays(),
    searches: StoredSearches | None = None,
    warm: CandidateModel | None = None,
    warm_ranker: Ranker | None = None,
    served: Served | None = None,
    checkpoints: Checkpoints | None = None,
    progress: Progress = lambda stage, done, total: None,
    measure: bool = True,
) -> Manifest:
    """Train everything from a log (and a catalogue, where there is one) and write the bundle; its manifest.

    `progress(stage, done, total)` is called for the stages `validation`, `candidates`, `features` and `ranker`.
    `warm` and `warm_ranker` are an earlier release's, to begin from. `served`: what the ranker learns from instead of
    the log's own rows. `learnt_ms`, where the log is a file: its end, at which the release begins to be served; its
    statistics decay from `created_ms` on.
    `measure=False` leaves out the first of the two trainings: half the time, no metrics, no retrieval score in the
    ranker. Raises LogError when the log has too few completed watches.
    """
    training_set, learned, cut = learn_from_log(
        log,
        items,
        settings=settings,
        searches=searches,
        warm=warm,
        checkpoints=checkpoints,
        progress=progress,
        measure=measure,
    )
    if served is None:
        trained = learn_ranker(
            log,
            training_set,
            settings=ranker,
            delays=delays,
            earlier=learned.earlier,
            since=int(training_set.completed[cut]),  # the log's row of the first positive that `earlier` has not seen
            warm=warm_ranker,
            progress=progress,
        )
        if learnt_ms:
            trained.statistics.move(created_ms - learnt_ms)
    else:
        trained = learn_from_served(
            served, log.directory / "ranking", settings=ranker, warm=warm_ranker, progress=progress
        )
    manifest = write_bundle(
        bundles_dir,
        model=learned.model,
        ranker=trained.ranker,
        catalogue=training_set.catalogue,
        statistics=trained.statistics,
        created_ms=created_ms,
        completed_s=log.completed_s,
        seed=settings.seed,
        metrics=learned.selection.metrics | trained.metrics,
        offsets=offsets,
        learnt_ms=learnt_ms,
    )
    if checkpoints is not None:
        checkpoints.clear()
    return manifest


def learn_from_log(
    log: StoredLog,
    items: pl.DataFrame | None,
    *,
    settings: CandidateParameters,
    searches: StoredSearches | None = None,
    warm: CandidateModel | None = None,
    checkpoints: Checkpoints | None = None,
    progress: Progress = lambda stage, done, total: None,
    measure: bool = True,
) -> tuple[TrainingSet, Learned, int]:
    """Learn candidates; return what was learnt from, what was learnt, and the row where the validation days begin.

    The first process of a distributed training comes here by train_bundle, the others help by calling this."""
    training_set = prepare(log, items, searches=searches if settings.searches else None, context=settings.context)
    check_size(training_set.dataset)
    until = len(training_set.dataset)
    cut = int(until * (1 - HELD_OUT))
    learned = learn_candidates(
        training_set,
        settings,
        until=until,
        valid_from=cut if measure else None,
        items=len(training_set.catalogue),
        warm=warm,
        checkpoints=checkpoints,
        progress=progress,
    )
    return training_set, learned, cut


def check_size(dataset: Dataset) -> None:
    """Raises LogError when there is too little to learn from."""
    distinct = len(np.unique(dataset.items[:BUFFER_ROWS]))
    if len(dataset) < LEAST_POSITIVES or distinct < LEAST_ITEMS:
        has = f"{len(dataset)} completed watches of {distinct} items"
        needs = f"at least {LEAST_POSITIVES} of {LEAST_ITEMS} are needed"
        raise LogError(f"log: has {has}, {needs}; is completed_s right, and watch_s in seconds?")
