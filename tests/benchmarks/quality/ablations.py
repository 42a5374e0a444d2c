"""What each choice of the candidate generator is worth, beside what the paper says of it.

KuaiRand, frozen at the last tenth of the stamped positives: everyone's next unseen positive, whole catalogue. The base
is one tower without the linear part, so that nothing makes up for what is taken away; every variant differs from it in
one thing, trains as long, and is compared with it case by case. Searches exist only in the simulated world.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from infra.backtest.recommenders import Released
from infra.platform.settings import Model
from infra.simulation.world import World
from models.evaluation.backtest import walk_frozen
from models.retrieval.candidate_learning import Training
from tests.benchmarks.quality.ablated import (
    Cosine,
    FullSoftmax,
    LogQAdded,
    LogQOff,
    NoPopularity,
    RandomHoldOut,
    train,
)
from tests.benchmarks.quality.judged import Ground, differences, ground_of, kuairand_ground, recalls
from tests.benchmarks.report import Report, say
from tests.harness import kuairand

EPOCHS = 3
BASE = Model(members=1, linear_dim=0, tied=False, epochs=EPOCHS, half_life_events=8000)
DAY_MS = 24 * 3_600_000


@dataclass(frozen=True)
class Variant:
    """One thing changed: settings of the model, or what no setting offers."""

    name: str
    paper: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    training: type[Training] = Training


VARIANTS = (
    Variant("base: 256 ReLU", ""),
    Variant("depth 0 (linear)", "worse than any depth", {"hidden": ()}),
    Variant("depth 2: 512-256", "better than depth 1", {"hidden": (512, 256)}),
    Variant("depth 3: 1024-512-256", "better than depth 2", {"hidden": (1024, 512, 256)}),
    Variant("depth 4: 2048-1024-512-256", "best", {"hidden": (2048, 1024, 512, 256)}),
    Variant("no residual", "", {"residual": False}),
    Variant("no dropout (tower and history)", "", {"dropout": 0.0, "history_dropout": 0.0}),
    Variant("d 32", "", {"dim": 32}),
    Variant("d 128", "", {"dim": 128}),
    Variant("two towers", "", {"members": 2}),
    Variant("with the linear part", "", {"linear_dim": 64}),
    Variant("popularity coordinate off", "", training=NoPopularity),
    Variant("example age beside popularity", "", {"example_age": True}),
    Variant(
        "example age instead of popularity",
        "needed: else the average popularity of the window is predicted",
        {"example_age": True},
        NoPopularity,
    ),
    Variant("log q off", "needed (importance weighting)", training=LogQOff),
    Variant("log q with the wrong sign", "", training=LogQAdded),
    Variant("10 negatives", "", {"negatives": 10}),
    Variant("100 negatives", "", {"negatives": 100}),
    Variant("1,000 negatives", "", {"negatives": 1000}),
    Variant("5,000 negatives", "several thousand", {"negatives": 5000}),
    Variant("all items (full softmax)", "over 100 times slower", training=FullSoftmax),
    Variant("tied item tables", "own output table", {"tied": True}),
    Variant("L2-normalised (cosine)", "dot product, no norm", training=Cosine),
    Variant("every user weighs the same (1/n)", "", {"equal_users": True}),
    Variant(
        "at most 10 examples of a user", "a fixed number per user", {"examples_per_user": 10, "example_window_h": 1e6}
    ),
    Variant("side features off", "", {"sides": False}),
    Variant("random hold-out (history from both sides)", "next watch is much better", training=RandomHoldOut),
    Variant("the base for one epoch", "", {"epochs": 1}),
    Variant("self-attention for one epoch (15 times the time)", "", {"encoder": "attention", "epochs": 1}),
)
QUICK = ("base: 256 ReLU", "depth 0 (linear)", "log q off")


def measure(report: Report, quick: bool) -> None:
    """Recall of each variant and its paired difference to the base."""
    torch.set_num_threads(1)
    report.title = f"ablations: KuaiRand frozen at the last tenth, {EPOCHS} epochs, one tower, no linear part"
    if kuairand.is_there():
        ground = kuairand_ground(skips=0)
        cut = ground.row_at(0.9)
        variants = [variant for variant in VARIANTS if not quick or variant.name in QUICK]
        _compare(report, ground, cut, variants, BASE.model_copy(update={"epochs": 1}) if quick else BASE)
    else:
        report.note(f"left out: the KuaiRand data is not at {kuairand.DIRECTORY}")
    _searches(report, quick)


def _compare(report: Report, ground: Ground, cut: int, variants: list[Variant], base: Model) -> None:
    base_ranks = None
    for variant in variants:
        say(variant.name)
        ranks = ranks_of(ground, cut, base.model_copy(update=variant.settings), variant.training)
        base_ranks = ranks if base_ranks is None else base_ranks
        row = {"variant": variant.name, "paper": variant.paper, **recalls(ranks)}
        if ranks is not base_ranks:
            row |= differences(variant.name, ranks, "base", base_ranks)
        report.add(**row)
    report.note(f"{len(base_ranks):,} users, {ground.source.known_at(cut):,} items; * the 95 % interval leaves 0 out")


def ranks_of(ground: Ground, cut: int, settings: Model, training: type[Training] = Training) -> np.ndarray:
    """int64 [n]: the rank of what each user watched next, by a model of these settings."""
    catalogue = ground.source.known_at(cut)
    model = train(training, ground.source, settings, until=cut, items=catalogue)
    released = Released(model, ground.source, ground.history)
    return walk_frozen([released], ground.history, cut=cut, catalogue=catalogue, coverage=False).ranks["tower"]


def _searches(report: Report, quick: bool) -> None:
    """With and without the searches of the simulated world."""
    now_ms = 1_700_000_000_000
    world = World(seed=1, start_ms=now_ms)
    log = world.past_log(now_ms - 20 * DAY_MS, now_ms, 6_000 if quick else 60_000)
    ground = ground_of(log, world.items_frame(now_ms), world.past_searches(log, chance=0.3))
    cut = int(0.9 * len(ground.source.dataset))
    settings = Model(members=1, linear_dim=0, epochs=EPOCHS, half_life_events=8000, searches=True)
    with_searches = ranks_of(ground, cut, settings)
    without = ranks_of(without_searches(ground), cut, settings)
    report.add(variant="simulated world: watches alone", paper="", **recalls(without))
    report.add(
        variant="simulated world: and searches",
        paper="searches add",
        **recalls(with_searches),
        **differences("with", with_searches, "without", without),
    )


def without_searches(ground: Ground) -> Ground:
    dataset = replace(ground.source.dataset, searches=None)
    return replace(ground, source=replace(ground.source, dataset=dataset))
