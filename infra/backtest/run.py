"""A backtest from log to directory: read, cut, fit, walk, report. Everything that decides is in `models`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from infra.backtest.files import CandidateLists, new_directory, write_live, write_report
from infra.backtest.recommenders import Live, Released, Without, parts_of, what_validation_said
from infra.backtest.report import Grounds, build_report
from infra.backtest.request import Request
from infra.operate.progress import Step, no_progress
from infra.platform.settings import Settings
from models.evaluation.backtest import Entrant, Recommender, Walk, list_candidates, walk_frozen, walk_live
from models.evaluation.backtest_log import BacktestLog, read_stream
from models.evaluation.baseline_choice import Baselines
from models.evaluation.eval_queries import History
from models.evaluation.frozen import Frozen
from models.evaluation.order_test import order_test
from models.evaluation.split import Split, cut_at, cut_fraction, iso, split
from models.logs.log import read_items
from models.logs.stored_log import store_log
from models.logs.stored_searches import store_searches
from models.retrieval.candidate_learning import learn_candidates
from models.retrieval.hyper_parameters import read_of_log

ASIDE = {"threads", "device"}  # of the settings: they change nothing of what is learnt


@dataclass(frozen=True)
class Recommenders:
    """The recommenders that are judged. `frozen` are walked frozen (the first is ours: its candidates are written),
    `live` are walked live where that is asked for, the first of them ours too; `parts` are ours whole and without each
    of its parts; `left_out` says who could not be built, and why. `ours` are compared with all others."""

    frozen: Sequence[Entrant]
    live: Sequence[Entrant]
    parts: Sequence[Recommender]
    left_out: Mapping[str, str]
    ours: Sequence[str]

    def all(self) -> list[Entrant]:
        """Each name once: who is walked frozen and live is described once."""
        return list({each.name: each for each in (*self.frozen, *self.live)}.values())


def run_backtest(request: Request, settings: Settings, step: Step = no_progress) -> dict[str, Any]:
    """Make the directory `request.out`; its report. Nothing is left behind when it fails.

    Judges our model, trained with these settings on what is before the cut, and the baselines. Raises LogError and
    BacktestError.
    """
    with new_directory(request.out) as directory, TemporaryDirectory(prefix="nextwatch-") as scratch:
        log = _read(request, settings, Path(scratch), step)
        history = History(log.stream)
        parts = _split(history, request)
        recommenders = _recommenders(log, parts, request, settings, step)
        grounds = Grounds(history, log.training_set.born_ms, parts.cut, log.training_set.known_at(parts.cut))
        frozen, cold = _walk_frozen(directory, log, grounds, recommenders.frozen, step)
        report = build_report(
            _protocol(log, parts, request, settings),
            entrants=recommenders.all(),
            left_out=recommenders.left_out,
            grounds=grounds,
            frozen=frozen,
            cold=cold,
            live=_walk_live(directory, log, grounds, recommenders.live, request, step) if request.live else None,
            parts=walk_frozen(
                recommenders.parts,
                history,
                cut=grounds.cut,
                catalogue=grounds.catalogue,
                coverage=False,
                progress=partial(step, "parts"),
            ),
            ours=recommenders.ours,
            order=order_test(
                history.stream,
                history.next_unseen(parts.cut),
                cut=parts.cut,
                catalogue=grounds.catalogue,
                seed=settings.model.seed,
                progress=partial(step, "order"),
            ),
        )
        write_report(directory, report)
    return report


def _recommenders(log: BacktestLog, parts: Split, request: Request, settings: Settings, step: Step) -> Recommenders:
    ours, live, reduced = _train(log, parts, request, settings, step)
    baselines = Baselines(
        log.stream,
        parts,
        catalogue=log.training_set.known_at(parts.cut),
        validation_catalogue=log.training_set.known_at(parts.validation),
        live=request.live,
        block=request.block,
        seed=settings.model.seed,
    )
    others = baselines.fit(step)
    names = [entrant.name for entrant in (*ours, *live)]
    walked_live = [*live, *others] if request.live else []
    return Recommenders([*ours, *others], walked_live, reduced, baselines.left_out, names)


def _train(
    log: BacktestLog, parts: Split, request: Request, settings: Settings, step: Step
) -> tuple[list[Entrant], list[Entrant], list[Recommender]]:
    """Ours of the frozen and of the live walk, and of the walk of its parts, from one training."""
    training_set = log.training_set
    learned = learn_candidates(
        training_set,
        settings.model,
        until=parts.cut,
        valid_from=parts.validation,
        items=training_set.known_at(parts.cut),
        progress=step,
    )
    selection, history = learned.selection, History(log.stream)
    chosen = {"epochs": selection.epochs, "weight": selection.weight, "linear_weight": selection.linear}
    released = Released(learned.model, training_set, history)
    told = settings.model.model_dump(exclude=ASIDE) | chosen
    as_trained = Entrant(released, settings=told, note=what_validation_said(selection))
    reduced: list[Recommender] = [
        released,
        *(Without(part, learned.model, training_set, history) for part in parts_of(learned.model)),
    ]
    if not request.live:
        return [as_trained], [], reduced
    live = Live(learned.model, training_set, history, settings=settings.trainer, seed=settings.model.seed)
    follows = Released(learned.model, training_set, history, name="tower, live histories only")
    at_cut = Frozen(released, history, parts.cut, name="tower, frozen at the cut")
    trainer = settings.trainer.model_dump(include={"learns", "learning_rate", "negatives", "in_batch"})
    return [as_trained], [Entrant(live, settings=trainer), Entrant(follows), Entrant(at_cut)], reduced


def _walk_frozen(
    directory: Path, log: BacktestLog, grounds: Grounds, entrants: Sequence[Entrant], step: Step
) -> tuple[Walk, Walk]:
    """The walks of the users with a watch before the cut and of those without; lists of everybody in the test."""
    lists = CandidateLists(directory, log.user_ids, log.item_ids)
    recommenders, history = [entrant.recommender for entrant in entrants], grounds.history
    walk = partial(walk_frozen, recommenders, history, cut=grounds.cut, catalogue=grounds.catalogue, lists=lists.add)
    frozen = walk(progress=partial(step, "frozen"))
    cold = walk(asked=history.first_ever(grounds.cut), coverage=False)
    others = np.setdiff1d(
        log.users_since(int(log.stream.event_ms[grounds.cut])), np.append(frozen.asked.users, cold.asked.users)
    )
    list_candidates(recommenders[0], history, others, lists.add, cut=grounds.cut, catalogue=grounds.catalogue)
    lists.close()
    return frozen, cold


def _walk_live(
    directory: Path, log: BacktestLog, grounds: Grounds, entrants: Sequence[Entrant], request: Request, step: Step
) -> Walk:
    walk = walk_live(
        [entrant.recommender for entrant in entrants],
        grounds.history,
        cut=grounds.cut,
        catalogue=grounds.catalogue,
        block=request.block,
        progress=partial(step, "live"),
    )
    write_live(directory / "live.parquet", walk, entrants[0].name, log.stream, (log.user_ids, log.item_ids))
    return walk


def _read(request: Request, settings: Settings, scratch: Path, step: Step) -> BacktestLog:
    completed_s, model = settings.history.completed_s, settings.model
    stored = store_log(request.log, scratch, mapping=request.mapping, completed_s=completed_s, progress=step)
    items = read_items(request.items) if request.items is not None else None
    searches = None
    if request.searches is not None and model.searches:
        searches = store_searches(request.searches, stored, buckets=model.search_tokens)
    return read_stream(stored, items, searches=searches, **read_of_log(model))


def _split(history: History, request: Request) -> Split:
    stream = history.stream
    if request.test_from_ms is not None:
        cut = cut_at(stream, request.test_from_ms, f"--test-from {iso(request.test_from_ms)}")
    else:
        cut = cut_fraction(stream, request.test_fraction, f"--test-fraction {request.test_fraction:g}")
    return split(history, cut, live=request.live, validation_share=request.validation_fraction)


def _protocol(log: BacktestLog, parts: Split, request: Request, settings: Settings) -> dict[str, Any]:
    """The facts that a reader must know before any number."""
    stream = log.stream
    return {
        "log": request.log.name,
        "items_file": request.items.name if request.items is not None else None,
        "seed": settings.model.seed,
        "completed_s": settings.history.completed_s,
        "first_ms": int(stream.event_ms[0]),
        "cut_ms": int(stream.event_ms[parts.cut]),
        "last_ms": int(stream.event_ms[-1]),
        "validation_ms": int(stream.event_ms[parts.validation]),
        "positives": len(stream),
        "positives_before": parts.cut,
        "validation_positives": parts.cut - parts.validation,
        "test_positives": parts.end - parts.cut,
        "users": len(log.user_ids),
        "users_before": len(np.unique(stream.users[: parts.cut])),
        "items": len(log.item_ids),
        "items_known": log.training_set.known_at(parts.cut),
        "live": request.live,
        "block": request.block,
    }
