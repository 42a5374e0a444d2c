"""What learning live is worth: KuaiRand, trained on the first half of its stamped positives, walked through the rest.

Each watch is ranked over the whole catalogue before it is learnt, by models that differ in what they keep up: nothing,
the history, popularity, item rows. Differences are paired, with intervals of 95 % that take all watches of a user
together.
"""

from __future__ import annotations

import numpy as np
import torch

from infra.backtest.recommenders import Live, Released
from infra.platform.settings import Model, Trainer
from models.evaluation.backtest import Recommender, walk_live
from models.evaluation.frozen import Frozen
from models.retrieval.candidate_learning import learn_candidates
from models.retrieval.hyper_parameters import Learns
from models.retrieval.incremental import StepResult
from streams.trainer.learner import LEAST_REFRESHES
from tests.benchmarks.quality.judged import differences, kuairand_ground, recalls
from tests.benchmarks.report import Report
from tests.harness import kuairand

HOUR_MS = 3_600_000
REFRESHES = {"each batch": 0, "10 min": HOUR_MS // 6, "1 h": HOUR_MS, "never": 1 << 60}
BARS = {"R@10": 0.116, "R@50": 0.343, "R@100": 0.487, "R@500": 0.83}
BLOCK = 250
OFTEN = 25  # positives per block where intervals of minutes are compared: about 6 minutes of this log


class AsPublished(Live):
    """Serves the rows that the running trainer would have published: those that have moved far, and none for having
    waited."""

    rows = 0

    def _take_over(self, step: StepResult, now_ms: int) -> None:
        if self._vectors is None:
            self._vectors = self._trainer.vectors(slice(0, self._catalogue))
        due = np.union1d(step.due, self._trainer.due_refreshes(OFTEN // 8 + LEAST_REFRESHES))
        self.rows += sum(1 for _ in self._trainer.rows(due))
        known = due[due < self._catalogue]
        self._vectors[known] = self._trainer.vectors(known)


def measure(report: Report, quick: bool) -> None:
    """Recall by what is learnt live, and by how often what was learnt is taken over."""
    torch.set_num_threads(1)
    report.title = "live: KuaiRand, second half of the stamped positives, whole catalogue, blocks of 250"
    if not kuairand.is_there():
        report.note(f"left out: the KuaiRand data is not at {kuairand.DIRECTORY}")
        return
    ground = kuairand_ground()
    cut = ground.row_at(0.95 if quick else 0.5)
    catalogue = ground.source.known_at(cut)
    settings = Model(epochs=1, members=1) if quick else Model()
    learned = learn_candidates(ground.source, settings, until=cut, valid_from=max(0, cut - 10_000), items=catalogue)
    report.note(
        f"chosen on validation: {learned.selection.epochs} epochs, towers x {learned.selection.weight:g}, "
        f"linear part x {learned.selection.linear:g}, half-life {learned.model.popularity.half_life_events:g} watches"
    )

    def live(learns: Learns, name: str, refresh_ms: int = 0) -> Live:
        return Live(
            learned.model,
            ground.source,
            ground.history,
            settings=Trainer(learns=learns),
            seed=1,
            refresh_ms=refresh_ms,
            name=name,
        )

    def released(name: str) -> Released:
        return Released(learned.model, ground.source, ground.history, name=name)

    levels: list[Recommender] = [
        Frozen(released("frozen"), ground.history, cut, name="frozen"),
        released("+ history"),
        live("popularity", "+ popularity"),
        live("output_rows", "+ output rows"),
    ]
    refreshed: list[Recommender] = [
        live("output_rows", f"output rows, refreshed {name}", refresh_ms) for name, refresh_ms in REFRESHES.items()
    ]
    as_published = AsPublished(
        learned.model, ground.source, ground.history, settings=Trainer(), seed=1, name="output rows, as published"
    )
    refreshed.append(as_published)
    walk = walk_live(levels, ground.history, cut=cut, catalogue=catalogue, block=BLOCK)
    users = walk.asked.users
    report.note(f"{len(walk):,} cases of {len(set(users.tolist())):,} users; * the interval leaves 0 out")
    before = None
    for recommender in levels:
        ranks = walk.ranks[recommender.name]
        row = {"model": recommender.name, **recalls(ranks, users)}
        if before is not None:
            row |= {"against": before, **differences(recommender.name, ranks, before, walk.ranks[before], users)}
        report.add(**row)
        before = recommender.name
    default = walk.ranks["+ output rows"]
    base = refreshed[0].name
    often = walk_live(refreshed, ground.history, cut=cut, catalogue=catalogue, block=OFTEN)
    for recommender in refreshed:
        ranks = often.ranks[recommender.name]
        row = {"model": recommender.name, **recalls(ranks, users)}
        if recommender.name != base:
            row |= {"against": "each batch", **differences(recommender.name, ranks, base, often.ranks[base], users)}
        report.add(**row)
    learnt = len(ground.source.dataset.items) - cut
    report.note(f"as published: {as_published.rows / learnt:.2f} rows for each of {learnt:,} watches learnt")
    for name, bar in BARS.items():
        report.bar(f"default (output rows), {name}", recalls(default)[name], at_least=bar)
    against = differences("live", default, "frozen", walk.ranks["frozen"], users)
    report.note(f"default against frozen: {against}")
