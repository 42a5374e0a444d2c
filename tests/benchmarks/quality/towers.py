"""What is served today against what was: one tower with tied tables that reads skips, and three towers.

KuaiRand, frozen at the last tenth of the stamped positives: everyone's next unseen positive, whole catalogue. Each
variant is trained as `nextwatch backtest` trains it, epochs and weights chosen on its own validation days, and compared
with the first case by case. What was shown and not watched long before 25 April is in the log of all of them, at
invented times (tests/harness/kuairand.py).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from infra.backtest.recommenders import Released
from infra.platform.settings import Model
from models.arrays import Rows
from models.evaluation.backtest import walk_frozen
from models.evaluation.split import split
from models.retrieval.candidate_learning import Learned, learn_candidates, tower_queries
from models.threads import limit_threads
from tests.benchmarks.quality.judged import Ground, differences, kuairand_ground, recalls
from tests.benchmarks.report import Report, say
from tests.harness import kuairand

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "three towers, tables apart": {"members": 3, "tied": False, "skips": 0, "epochs": 5},
    "one tower, tied, 20 skips": {"members": 1, "tied": True, "skips": 20, "epochs": 8},
}
QUICK = {"epochs": 1, "half_life_events": 8000.0}
TRAINING_S, NUMBERS, EMBED_MS = 300.0, 129, 2.0  # bars, of the last variant
ENCODED = 500  # users whose vectors are timed, one by one


def measure(report: Report, quick: bool) -> None:
    """Recall of each variant, its paired difference to the first, and its cost."""
    limit_threads(1)
    report.title = "towers: KuaiRand frozen at the last tenth, trained as a backtest trains"
    if not kuairand.is_there():
        report.note(f"left out: the KuaiRand data is not at {kuairand.DIRECTORY}")
        return
    first: tuple[str, Rows] | None = None
    for name, variant in VARIANTS.items():
        ranks, told = judged(Model(**{**variant, **(QUICK if quick else {})}))
        row = {"model": name, **told, **recalls(ranks)}
        if first is not None:
            row |= differences(name, ranks, *first)
        first = first or (name, ranks)
        report.add(**row)
        say(f"{row}")
    report.note(f"{len(ranks):,} users; * the 95 % interval leaves 0 out")
    report.bar("CPU of training, s", told["training, CPU s"], at_most=TRAINING_S)
    report.bar("numbers of an item", told["numbers"], at_most=NUMBERS)
    report.bar("CPU of a user vector, ms", told["user vector, us"] / 1000, at_most=EMBED_MS)


def judged(settings: Model) -> tuple[Rows, dict[str, Any]]:
    """Train a model of these settings; the rank of what each user watched next, and what it is and costs."""
    ground = kuairand_ground(skips=settings.skips)
    parts = split(ground.history, ground.row_at(0.9), live=False)
    catalogue = ground.source.known_at(parts.cut)
    began_s, began_wall_s = time.process_time(), time.monotonic()
    learned = learn_candidates(ground.source, settings, until=parts.cut, valid_from=parts.validation, items=catalogue)
    training_s, wall_s = time.process_time() - began_s, time.monotonic() - began_wall_s
    released = Released(learned.model, ground.source, ground.history)
    walk = walk_frozen([released], ground.history, cut=parts.cut, catalogue=catalogue, coverage=False)
    selection = learned.selection
    return walk.ranks[released.name], {
        "numbers": learned.model.dim,
        "training, CPU s": round(training_s),
        "training, wall s": round(wall_s),
        "user vector, us": round(1e6 * encoding_s(learned, ground, parts.cut)),
        "epochs": selection.epochs,
        "towers x": selection.weight,
        "linear x": selection.linear,
        "half-life": learned.model.popularity.half_life_events,
        "R@100, validation": round(selection.metrics["recall@100"], 4),
    }


def encoding_s(learned: Learned, ground: Ground, cut: int) -> float:
    """CPU time of the vector of one user, asked for alone."""
    asked = ground.history.next_unseen(cut)[:ENCODED]
    queries = tower_queries(ground.source.dataset, ground.history, ground.history.queries(asked))
    began_s = time.process_time()
    for at in range(len(queries)):
        learned.model.encode(queries.take(np.array([at])))
    return (time.process_time() - began_s) / len(queries)
