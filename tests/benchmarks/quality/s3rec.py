"""Amazon Beauty and Toys as S3-Rec published them, leave one out: figures that the literature has too.

The form of its papers: of each user the last item is the test and the one before it validates; models learn from the
rest and are asked with the validation item in the history; the whole catalogue is ranked, the history left out (as
S3-Rec's own evaluation does). Which settings and for how many epochs is asked of validation alone. The data is read in
place from ../shared and never copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infra.backtest.held_out_report import METRICS, figures_of
from infra.backtest.leave_one_out import OURS, REFIT, UNTIMED, ask_order, baselines, fit, released, select, walked
from infra.backtest.ordered_settings import fitting, in_order
from infra.platform.settings import Model
from models.arrays import Rows
from models.evaluation.backtest import Entrant, rows_at_once, score, target_ranks
from models.evaluation.comparison import recall
from models.evaluation.leave_one_out import HeldOut, hold_out
from models.logs.sequences import Sequences, read_sequences
from models.retrieval.checkpoint import ModelSelection
from models.threads import limit_threads
from tests.benchmarks.report import Report, say

DIRECTORY = Path(__file__).resolve().parents[4] / "shared" / "data" / "s3rec"
SEEDS, QUICK_USERS = 3, 500
WITH_HISTORY = f"{OURS}, history left in"


@dataclass(frozen=True)
class Data:
    """A file, the recall@10 that we want to reach, and what others reached: recall@10 and ndcg@10."""

    file: str
    bar: float
    published: Mapping[str, tuple[float, float]]


# Of the README of github.com/blondered/transformer_benchmark (RecSys 2025), its column "Calculated".
DATA = {
    "Beauty": Data(
        "Beauty.txt",
        0.097,
        {"SASRec, sampled softmax": (0.0921, 0.0531), "eSASRec": (0.0928, 0.0523), "HSTU": (0.0788, 0.0439)},
    ),
    "Toys": Data(
        "Toys_and_Games.txt",
        0.098,
        {"SASRec, sampled softmax": (0.0970, 0.0580), "eSASRec": (0.0939, 0.0538), "HSTU": (0.0778, 0.0450)},
    ),
}
AVERAGE = Model(members=1, tied=False, negatives=512)
JUDGED = in_order(Model())
TRIED = {  # on validation alone
    "one tower of averages, linear part of 64": AVERAGE,
    "and the linear part of 256, in order": AVERAGE.model_copy(update={"linear_order": True, "linear_dim": 256}),
    "weights by place, tied, linear part of 256": JUDGED.model_copy(update={"linear_dim": 256}),
    "and of 1,024 (judged)": JUDGED,
    "and d 128": JUDGED.model_copy(update={"dim": 128}),
    "and 2,048 negatives": JUDGED.model_copy(update={"negatives": 2048}),
    "and 24 epochs": JUDGED.model_copy(update={"epochs": 24}),
}
QUICK = {"epochs": 1, "linear_dim": 64, "dim": 32}


def measure_beauty(report: Report, quick: bool) -> None:
    measure(report, "Beauty", quick)


def measure_toys(report: Report, quick: bool) -> None:
    measure(report, "Toys", quick)


def measure_tried(report: Report, quick: bool) -> None:
    """What was tried, each judged on everybody's last item but one, which chooses; the test is not looked at."""
    limit_threads(1)
    report.title = "s3rec: settings by recall@10 of each user's last item but one (validation)"
    for name in DATA:
        held = read(report, name, quick)
        for settings, model in TRIED.items() if held is not None else ():
            say(f"{name}: {settings}")
            untimed = model.model_copy(update=UNTIMED | (QUICK if quick else {}))
            selection = select(held, untimed)
            report.add(
                log=name, settings=settings, **{"recall@10": selection.metrics["recall@10"]}, **chosen(selection)
            )


def measure(report: Report, name: str, quick: bool) -> None:
    """Our model beside the baselines and the published lines."""
    limit_threads(1)
    report.title = f"s3rec: {name}, each user's last item, leave one out, whole catalogue"
    held = read(report, name, quick)
    if held is not None:
        model, _ = fitting(held, Model().model_copy(update=UNTIMED | (QUICK if quick else {})))
        add_log(report, name, held, model, seeds=1 if quick else SEEDS)


def read(report: Report, name: str, quick: bool) -> HeldOut | None:
    if not DIRECTORY.is_dir():
        report.note(f"left out: the data is not at {DIRECTORY}")
        return None
    sequences = read_sequences(DIRECTORY / DATA[name].file)
    return hold_out(first_users(sequences, QUICK_USERS) if quick else sequences)


def first_users(sequences: Sequences, most: int) -> Sequences:
    """The log of the first users alone, its items numbered anew."""
    mine = sequences.users < most
    items, numbered = np.unique(sequences.items[mine], return_inverse=True)
    names = [sequences.item_ids[item] for item in items.tolist()]
    return Sequences(sequences.user_ids[:most], names, sequences.users[mine], numbered)


def add_log(report: Report, name: str, held: HeldOut, model: Model, *, seeds: int) -> None:
    """Choose epochs and weights on validation, then judge once."""
    selection = select(held, model)
    report.note(f"chosen on validation (recall@10 {selection.metrics['recall@10']:.4f}): {chosen(selection)}")
    ranks: dict[str, list[Rows]] = {OURS: [], WITH_HISTORY: []}
    for number in range(seeds):
        seeded = model.model_copy(update={"seed": model.seed + number})
        learnt = Entrant(released(held, fit(held, seeded, selection), OURS))
        ranks[OURS].append(walked(held, learnt))
        ranks[WITH_HISTORY].append(with_history(held, learnt))
        say(f"{name}: seed {seeded.seed}: recall@10 {recall(ranks[OURS][-1], 10)}")
    refit = Entrant(released(held, fit(held, model, selection, until=held.parts.cut), REFIT))
    for each in (refit, *baselines(held, model.seed)[0]):
        ranks[each.name] = [walked(held, each)]
        say(f"{name}: {each.name}: recall@10 {recall(ranks[each.name][-1], 10)}")
    figures = {recommender: figures_of(by_seed) for recommender, by_seed in ranks.items()}
    for recommender, by_metric in figures.items():
        report.add(recommender=recommender, **cells(by_metric))
    for line, (at_10, gain) in DATA[name].published.items():
        report.add(recommender=f"published: {line}", **{"recall@10": at_10, "ndcg@10": gain})
    order = ask_order(held, model.seed)
    report.note(
        f"{len(held.asked()):,} users, {held.catalogue:,} items. A sequence model's recall@10 is {order.ordered} in "
        f"order and {order.shuffled} shuffled ({order.lost:.0%} lost). {order.advice()}"
    )
    report.bar(f"{name}: recall@10", round(figures[OURS]["recall@10"]["value"], 4), at_least=DATA[name].bar)


def chosen(selection: ModelSelection) -> dict[str, Any]:
    return {"epochs": selection.epochs, "towers x": selection.weight, "linear x": selection.linear}


def with_history(held: HeldOut, entrant: Entrant) -> Rows:
    """int64 [n]: ranks among all items, those of the history too."""
    asked, size, found = held.asked(), rows_at_once(held.catalogue), []
    nothing = np.zeros(0, np.int64)
    for start in range(0, len(asked), size):
        queries = held.history.queries(asked[start : start + size])
        scores = score(entrant.recommender, queries, held.catalogue)
        found.append(target_ranks(scores, queries.targets, nothing, nothing))
    return np.concatenate(found)


def cells(by_metric: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The columns of a row: each metric, then the errors of recall@10."""
    at_10 = by_metric["recall@10"]
    values = {metric: round(by_metric[metric]["value"], 4) for metric in METRICS}
    errors = {"error over users": at_10["se"], "sd between seeds": at_10["between_seeds"]}
    return values | {what: None if error is None else f"{error:.4f}" for what, error in errors.items()}
