"""A backtest of a log that has an order only: hold out, choose on validation, train by seed, judge, report.

Published figures of this protocol are of models that learn from all but each user's last two watches; the one before
the last chooses when to stop, and is in the history that is asked with. That is the first line of ours. The second
learns from it as well, as a live system would, and stands beside no published figure.
"""

from __future__ import annotations

from functools import partial
from operator import itemgetter
from typing import Any

from infra.backtest.files import CandidateLists, new_directory, write_report
from infra.backtest.held_out_page import render_held_out
from infra.backtest.held_out_report import build_held_out
from infra.backtest.ordered_settings import fitting
from infra.backtest.recommenders import Released, what_validation_said
from infra.backtest.request import Request
from infra.operate.progress import Step, no_progress
from infra.platform.settings import Model, Settings
from models.arrays import Rows
from models.evaluation.backtest import Entrant, walk_frozen
from models.evaluation.baseline_choice import Baselines
from models.evaluation.leave_one_out import HeldOut, hold_out
from models.evaluation.order_test import K, NextItems, OrderTest, order_test
from models.logs.log import read_log
from models.logs.sequences import SUFFIX, Sequences, read_sequences, sequences_of
from models.retrieval.candidate_learning import Training, choose, train
from models.retrieval.candidates import CandidateModel
from models.retrieval.checkpoint import ModelSelection
from models.retrieval.popularity import NEVER

MOST_ASKED = 10_000  # users who choose epochs and weights
OURS = "tower"
REFIT = "tower, learnt from validation too"
ASIDE = {"threads", "device", "seed"}  # of the settings: not of what is learnt, or said elsewhere
UNTIMED = {"example_age": False, "examples_per_user": 0, "half_life_events": 0.0}
STANDS_ASIDE = {
    "model.example_age": "an age needs times",
    "model.half_life_events, decayed popularity": "popularity is that of all that is learnt from",
    "model.examples_per_user": "its window needs times",
    "model.searches, model.context, model.content, model.*_weight": "the log has none",
    "a live walk, figures by time and by item age": "the log has no times",
}


def run_leave_one_out(request: Request, settings: Settings, step: Step = no_progress) -> dict[str, Any]:
    """Make the directory `request.out`; its report. Nothing is left behind when it fails. Raises LogError and
    BacktestError."""
    with new_directory(request.out) as directory:
        held = hold_out(_read(request, settings, step))
        lists = CandidateLists(directory, held.user_ids, held.item_ids)
        report = judge(held, settings.model, seeds=request.seeds, name=request.log.name, step=step, lists=lists)
        lists.close()
        write_report(directory, report, render_held_out)
    return report


def judge(
    held: HeldOut, model: Model, *, seeds: int, name: str, step: Step = no_progress, lists: CandidateLists | None = None
) -> dict[str, Any]:
    """The report of our model with these settings, trained once with each seed, and of the baselines. `lists` receives
    the candidates of the first seed. Settings that nobody has set are those that fit a log of this kind."""
    model, validated = fitting(held, model.model_copy(update=UNTIMED), step)
    selection = select(held, model, step)
    ours = Entrant(
        released(held, fit(held, model, selection, step), OURS),
        chosen(model, selection),
        note=what_validation_said(selection),
    )
    ranks = {OURS: [walked(held, ours, step, lists)]}
    for seed in range(1, seeds):
        again = model.model_copy(update={"seed": model.seed + seed})
        ranks[OURS].append(walked(held, Entrant(released(held, fit(held, again, selection, step), OURS)), step))
    refit = Entrant(
        released(held, fit(held, model, selection, step, until=held.parts.cut), REFIT),
        note="not the published protocol: a live system would learn from these watches",
    )
    others, left_out = baselines(held, model.seed, step)
    for each in (refit, *others):
        ranks[each.name] = [walked(held, each, step)]
    return build_held_out(
        held,
        name=name,
        seeds=[model.seed + number for number in range(seeds)],
        entrants=[ours, refit, *others],
        left_out=left_out,
        ranks=ranks,
        order=ask_order(held, model.seed, step),
        validated=validated,
        stands_aside=STANDS_ASIDE,
    )


def select(held: HeldOut, model: Model, step: Step = no_progress) -> ModelSelection:
    """Epochs and weights, chosen by the recall of each user's last watch but one at what is judged. All epochs are
    looked at, by many users: they differ by as little as chance does among few."""
    return choose(
        _training(held, model, held.parts.validation),
        until=held.parts.cut,
        checkpoints=None,
        progress=step,
        quality=itemgetter(f"recall@{K}"),
        patience=model.epochs,
        most=MOST_ASKED,
    )


def fit(
    held: HeldOut, model: Model, selection: ModelSelection, step: Step = no_progress, *, until: int | None = None
) -> CandidateModel:
    """A model of what is before row `until`, and by default of what is learnt from alone."""
    return train(_training(held, model, until or held.parts.validation), selection, progress=step)


def released(held: HeldOut, model: CandidateModel, name: str) -> Released:
    return Released(model, held.training_set, held.history, name=name)


def baselines(held: HeldOut, seed: int, step: Step = no_progress) -> tuple[list[Entrant], dict[str, str]]:
    """Those that need no times, learnt from what our model learns from; and who was left out, and why."""
    stream, learnt = held.history.stream, held.parts.validation
    each = Baselines(
        stream,
        held.parts,
        catalogue=held.catalogue,
        validation_catalogue=held.catalogue,
        live=False,
        seed=seed,
        learn_until=learnt,
        timed=False,
    )
    in_order = Entrant(
        NextItems(stream, learnt, held.catalogue),
        note="items watched soon after each other, the newest watch of a history most; nothing was tuned",
    )
    return [*each.fit(step), in_order], each.left_out


def walked(held: HeldOut, entrant: Entrant, step: Step = no_progress, lists: CandidateLists | None = None) -> Rows:
    """int64 [n]: the rank of each user's last watch among the whole catalogue, what they have watched left out."""
    walk = walk_frozen(
        [entrant.recommender],
        held.history,
        cut=held.parts.cut,
        catalogue=held.catalogue,
        lists=lists.add if lists is not None else None,
        coverage=False,
        progress=partial(step, f"judging: {entrant.name}"),
    )
    return walk.ranks[entrant.name]


def ask_order(held: HeldOut, seed: int, step: Step = no_progress) -> OrderTest:
    return order_test(
        held.history.stream,
        held.asked(),
        cut=held.parts.cut,
        catalogue=held.catalogue,
        seed=seed,
        progress=partial(step, "order"),
    )


def chosen(model: Model, selection: ModelSelection) -> dict[str, Any]:
    """The settings and what validation said."""
    found = {"epochs": selection.epochs, "weight": selection.weight, "linear_weight": selection.linear}
    return model.model_dump(exclude=ASIDE) | found


def _training(held: HeldOut, model: Model, until: int) -> Training:
    return Training(held.training_set, model, half_life_events=NEVER, until=until, items=held.catalogue)


def _read(request: Request, settings: Settings, step: Step) -> Sequences:
    if request.log.suffix == SUFFIX:
        return read_sequences(request.log, step)
    return sequences_of(read_log(request.log, mapping=request.mapping, completed_s=settings.history.completed_s))
