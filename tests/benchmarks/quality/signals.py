"""What users have said of items, as weights of their watches as examples: is anything won by it?

KuaiRand tells of likes and dislikes from 25 April on. Each variant learns from what is before the validation days, and
everybody's next unseen positive on them is looked for in the whole catalogue; the test days are not in the log at all.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl

from infra.backtest.recommenders import Released
from infra.platform.settings import Model
from models.arrays import Rows
from models.evaluation.backtest import walk_frozen
from models.evaluation.split import Split, split
from models.retrieval.candidate_learning import Training, train
from models.retrieval.checkpoint import ModelSelection
from models.threads import limit_threads
from tests.benchmarks.quality.judged import Ground, differences, ground_of, recalls
from tests.benchmarks.report import Report, say
from tests.harness import kuairand

VARIANTS: Mapping[str, Mapping[str, float]] = {
    "all watches alike": {},
    "disliked ones are none": {"unwanted_weight": 0.0},
    "liked ones x 4, disliked none": {"unwanted_weight": 0.0, "like_weight": 4.0},
    "liked ones x 16, disliked none": {"unwanted_weight": 0.0, "like_weight": 16.0},
}
EPOCHS, HALF_LIFE, TOWERS, LINEAR = 3, 8000.0, 0.9, 27.0


def measure(report: Report, quick: bool) -> None:
    """Recall on the validation days by the weights of signals, and the paired difference to none."""
    limit_threads(1)
    report.title = "signals: KuaiRand, validation days, watches weighed by likes and dislikes"
    if not kuairand.is_there():
        report.note(f"left out: the KuaiRand data is not at {kuairand.DIRECTORY}")
        return
    log, items = kuairand.read_kuairand(skips=True, signals=True)
    whole = ground_of(log, items)
    parts = split(whole.history, whole.row_at(0.9), live=False)
    log = log.filter(pl.col("event_ms") < int(whole.source.dataset.event_ms[parts.cut]))
    first: tuple[str, Rows] | None = None
    for name, weights in VARIANTS.items():
        say(f"training: {name}")
        settings = Model(epochs=1 if quick else EPOCHS, half_life_events=HALF_LIFE, **weights)
        ground = ground_of(log, items, skips=settings.skips, signals=settings.signal_weights)
        ranks = judged(ground, settings, parts)
        first = first or (name, ranks)
        report.add(watches=name, **recalls(ranks), **differences(name, ranks, *first))
        if weights:
            of_rows = ground.source.dataset.weights
            assert of_rows is not None
            changed = int(np.count_nonzero(of_rows[: parts.validation] != 1))
    report.bar("watches that weigh other than 1", changed, at_least=1)
    report.bar("users asked", len(ranks), at_least=1)
    report.note(
        f"{len(ranks):,} users; of {parts.validation:,} positives {changed:,} weigh other than 1 in the last row"
    )


def judged(ground: Ground, settings: Model, parts: Split) -> Rows:
    """The rank of each user's next unseen positive."""
    items = ground.source.known_at(parts.validation)
    training = Training(ground.source, settings, half_life_events=HALF_LIFE, until=parts.validation, items=items)
    model = train(training, ModelSelection(settings.epochs, TOWERS, LINEAR))
    released = Released(model, ground.source, ground.history)
    walk = walk_frozen([released], ground.history, cut=parts.validation, catalogue=items, coverage=False)
    return walk.ranks[released.name]
