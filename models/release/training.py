"""From a stored log to a release: candidate generator, ranker and catalogue, written as a bundle.

Candidates are learnt twice: on what is before the validation days, which say how long and how much to personalise, and
whose model gives the ranker retrieval scores that do not know the answer; then anew on everything, because the newest
days are what a live system needs most. The figures in the manifest are those of the first.

A release that is to be judged (models.release.trial) is learnt once more in between: the validation days lie before the
cut then, at which its twin stops.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

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
from models.ranking.ranker_release import CANDIDATES, Served, learn_from_served, learn_ranker
from models.release.bundle import Manifest, write_bundle
from models.release.trial import Cut, Rival, Trial, choose_cut
from models.retrieval.candidate_learning import Learned, check_start, learn_candidates
from models.retrieval.candidates import CandidateModel
from models.retrieval.checkpoint import Checkpoints
from models.retrieval.hyper_parameters import CandidateParameters, read_of_log

Progress = Callable[[str, int, int], None]

HELD_OUT = 0.1  # share of the positives, newest last, that are the validation days
LEAST_POSITIVES = 20
LEAST_ITEMS = 2
TWIN_STAGE = "trial"


class Trained(NamedTuple):
    """A bundle that was written, and its twin on trial: None where that was not wanted, or nobody could judge."""

    manifest: Manifest
    trial: Trial | None


class Lessons(NamedTuple):
    """What was learnt from, what was learnt, and the row from which `learned.earlier` has seen nothing; on trial also
    where that begins, and the twin, which has seen nothing from there on."""

    training_set: TrainingSet
    learned: Learned
    unseen_from: int
    cut: Cut | None = None
    twin: CandidateModel | None = None


def train_with_trial(
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
    candidates: int = CANDIDATES,
    searches: StoredSearches | None = None,
    warm: CandidateModel | None = None,
    warm_ms: int = 0,
    warm_ranker: Ranker | None = None,
    served: Served | None = None,
    checkpoints: Checkpoints | None = None,
    rival: Rival | None = None,
    progress: Progress = lambda stage, done, total: None,
    measure: bool = True,
) -> Trained:
    """Train everything from a log (and a catalogue, where there is one) and write the bundle.

    `progress(stage, done, total)` is called for the stages `validation`, `candidates`, `features` and `ranker`.
    `warm` and `warm_ranker` are an earlier release's, to begin from; all watches that `warm` has learnt are from before
    `warm_ms`, and it is not asked about these. `rival`: the release beside which it is to be
    judged. `served`: what the ranker learns from instead of the log's own rows. `learnt_ms`, where the log is a file:
    its end, at which the release begins to be served; its statistics decay from `created_ms` on. `candidates`: of a
    request, among which the ranker learns places.
    `measure=False` leaves out the first of the two trainings: half the time, no metrics, no retrieval score in the
    ranker. Raises LogError when the log has too few completed watches.
    """
    lessons = learn_from_log(
        log,
        items,
        settings=settings,
        searches=searches,
        warm=warm,
        warm_ms=warm_ms,
        checkpoints=checkpoints,
        rival=rival,
        progress=progress,
        measure=measure,
    )
    training_set, learned, cut = lessons.training_set, lessons.learned, lessons.cut
    if served is None:
        trained = learn_ranker(
            log,
            training_set,
            settings=ranker,
            delays=delays,
            earlier=learned.earlier,
            since=int(training_set.completed[lessons.unseen_from]),  # the log's row of the first that it has not seen
            measured_from=None if cut is None else int(training_set.completed[cut.row]),
            warm=warm_ranker,
            candidates=candidates,
            progress=progress,
        )
        if learnt_ms:
            trained.statistics.move(created_ms - learnt_ms)
    else:
        trained = learn_from_served(
            served,
            log.directory / "ranking",
            settings=ranker,
            warm=warm_ranker,
            since_ms=0 if rival is None else rival.ranked_ms,
            progress=progress,
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
    if cut is None or lessons.twin is None:
        return Trained(manifest, None)
    return Trained(manifest, Trial(training_set, cut, lessons.twin, trained.measured, trained.unseen, trained.is_new))


def learn_from_log(
    log: StoredLog,
    items: pl.DataFrame | None,
    *,
    settings: CandidateParameters,
    searches: StoredSearches | None = None,
    warm: CandidateModel | None = None,
    warm_ms: int = 0,
    checkpoints: Checkpoints | None = None,
    rival: Rival | None = None,
    progress: Progress = lambda stage, done, total: None,
    measure: bool = True,
) -> Lessons:
    """Learn candidates; twice, with the newest watches and without them, where there is a `rival` to be judged beside.

    The first process of a distributed training comes here by train_with_trial, the others help by calling this."""
    words = searches if settings.searches else None
    training_set = prepare(log, items, searches=words, **read_of_log(settings))
    check_size(training_set.dataset)
    if warm is not None:
        check_start(warm, settings)  # before a twin is trained that may do without it
    until, warm_rows = len(training_set.dataset), int(np.searchsorted(training_set.dataset.event_ms, warm_ms))
    items_known = len(training_set.catalogue)
    learn = partial(
        learn_candidates, training_set, settings, until=until, items=items_known, warm=warm, warm_rows=warm_rows
    )
    cut = choose_cut(training_set.dataset, rival.learnt_ms) if rival is not None else None
    if cut is None:
        valid_from = int(until * (1 - HELD_OUT))
        learned = learn(valid_from=valid_from if measure else None, checkpoints=checkpoints, progress=progress)
        return Lessons(training_set, learned, valid_from)
    valid_from = int(cut.row * (1 - HELD_OUT))
    twin = learn(
        until=cut.row,
        valid_from=valid_from,
        items=training_set.known_at(cut.row),
        warm=warm if warm_rows <= cut.row else None,  # it may have learnt what the twin is judged by
        progress=lambda stage, done, total: progress(f"{TWIN_STAGE}: {stage}", done, total),
    )
    learned = learn(valid_from=cut.row, selection=twin.selection, checkpoints=checkpoints, progress=progress)
    return Lessons(training_set, Learned(learned.model, twin.selection, twin.earlier), valid_from, cut, twin.model)


def check_size(dataset: Dataset) -> None:
    """Raises LogError when there is too little to learn from."""
    distinct = len(np.unique(dataset.items[:BUFFER_ROWS]))
    if len(dataset) < LEAST_POSITIVES or distinct < LEAST_ITEMS:
        has = f"{len(dataset)} completed watches of {distinct} items"
        needs = f"at least {LEAST_POSITIVES} of {LEAST_ITEMS} are needed"
        raise LogError(f"log: has {has}, {needs}; is completed_s right, and watch_s in seconds?")
