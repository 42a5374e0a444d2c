"""New items: how high those stand that nobody has watched, or two people at most, when they are placed by means of
their ids as ever, and by a map of their content.

KuaiRand has few such items that are watched soon after: so of some items, drawn, all rows before the validation days
are taken out of the log but their first watches, 0 to 2 of them. Their watches on the validation days are looked for by
a model that has learnt from the rest; the test days are not in the log at all. A viewer's history goes up to each
watch. Items are ranked among the whole catalogue, and among those that nobody has watched alone, where popularity tells
nothing. KuaiRand has no titles: what content there is are author, tags, music, and sort and way of upload.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from infra.backtest.recommenders import Released
from infra.platform.settings import Model
from models.arrays import Flags, Rows
from models.evaluation.backtest import judge, rows_at_once
from models.evaluation.eval_queries import EvalQuery
from models.evaluation.split import split
from models.retrieval.candidate_learning import Training, content_gain, drawn, train
from models.retrieval.checkpoint import ModelSelection
from models.threads import limit_threads
from tests.benchmarks.quality.judged import COMPLETED_S, Ground, differences, ground_of, recalls
from tests.benchmarks.report import Report, say
from tests.harness import kuairand

SHARE = 0.15  # of the items that are made new
MOST_LEFT = 2  # watches that are left to them
EPOCHS, HALF_LIFE, TOWERS, LINEAR = 4, 8000.0, 0.9, 27.0  # as the validation days choose for the whole log
MEANS, CONTENT = "means of ids", "map of content"


@dataclass(frozen=True)
class NewItems:
    """The log in which items were made new: `until` ends what is learnt from, `new` are their rows."""

    ground: Ground
    until: int
    new: Rows


def measure(report: Report, quick: bool) -> None:
    """Recall of watches of new items by either way of placing, and the paired difference."""
    limit_threads(1)
    report.title = "cold items: KuaiRand, validation days, watches of items with 0 to 2 watches before"
    if not kuairand.is_there():
        report.note(f"left out: the KuaiRand data is not at {kuairand.DIRECTORY}")
        return
    made = made_new(seed=1)
    source, until = made.ground.source, made.until
    items = len(source.catalogue)
    epochs = 1 if quick else EPOCHS
    settings = Model(epochs=epochs, half_life_events=HALF_LIFE, content=True)
    training = Training(source, settings, half_life_events=HALF_LIFE, until=until, items=items)
    say(f"training {epochs} epochs")
    selection = ModelSelection(epochs, TOWERS, LINEAR)
    models = {MEANS: train(training, selection)}
    models[CONTENT] = training.freeze(ModelSelection(epochs, TOWERS, LINEAR, metrics={"content_gain": 1.0}))
    recommenders = {name: Released(model, source, made.ground.history) for name, model in models.items()}
    asked = watches_of(made)
    watches = training.popularity.totals()
    unwatched, before = watches == 0, watches[made.ground.history.targets(asked)]
    for where, among in (("whole catalogue", np.ones(items, np.bool_)), ("items without a watch", unwatched)):
        parts = {"0": before == 0, "1 or 2": before > 0} if among.all() else {"0": before == 0}
        for watched, mine in parts.items():
            part = asked[np.flatnonzero(mine)]
            ranks = {name: ranks_of(each, made, part, among) for name, each in recommenders.items()}
            for name, own in ranks.items():
                row = {"among": where, "watches before": watched, "placed by": name, "n": len(part), **recalls(own)}
                compared = differences(name, own, MEANS, ranks[MEANS], part.users) if name != MEANS else {}
                report.add(**row, median=float(np.median(own)) + 1, **compared)
    report.bar("watches of new items", len(asked), at_least=1)
    asked = drawn(made.ground.history.next_unseen(until), items, 1)
    gain = content_gain(training, made.ground.history, asked, selection)
    told = ", ".join(f"{name} {value:.3f}" for name, value in gain.items())
    report.note(f"watched items as if new, each placed by what the other half teaches: {told}")
    known = f"{(~unwatched).sum():,} items watched, {unwatched.sum():,} not"
    report.note(f"{known}; * the 95 % interval, which takes a viewer's cases together, leaves 0 out")


def made_new(seed: int) -> NewItems:
    """KuaiRand up to the test days, without most of what was watched of some items before the validation days."""
    log, items = kuairand.read_kuairand(skips=True, kinds=True)
    whole = ground_of(log, items)
    parts, event_ms = split(whole.history, whole.row_at(0.9), live=False), whole.source.dataset.event_ms
    since_ms, test_ms = int(event_ms[parts.validation]), int(event_ms[parts.cut])
    rng, item_ids = np.random.default_rng(seed), items["item_id"].sort()
    drawn_ids = item_ids.filter(pl.Series(rng.random(len(item_ids)) < SHARE))
    left = pl.DataFrame({"item_id": drawn_ids, "left": rng.integers(0, MOST_LEFT + 1, len(drawn_ids))})
    long_enough = pl.col("watch_s") >= pl.min_horizontal("duration_s", pl.lit(COMPLETED_S))
    known = log.filter(pl.col("event_ms") < test_ms).sort("event_ms", maintain_order=True)
    numbered = known.join(left, on="item_id", how="left", maintain_order="left").with_columns(
        completed=long_enough.fill_null(True)
    )
    numbered = numbered.with_columns(number=pl.col("completed").cast(pl.Int64).cum_sum().over("item_id"))
    stays = pl.col("left").is_null() | (pl.col("event_ms") >= since_ms)
    first = pl.col("completed") & (pl.col("number") <= pl.col("left"))
    ground = ground_of(numbered.filter(stays | first).select(log.columns), items, skips=Model().skips)
    until = int(np.searchsorted(ground.source.dataset.event_ms, since_ms))
    return NewItems(ground, until, ground.source.catalogue.rows(drawn_ids.to_list()))


def watches_of(made: NewItems) -> EvalQuery:
    """The validation days' watches of the items that were made new, each asked for just before it."""
    asked = made.ground.history.unseen_since(made.until)
    return asked[np.flatnonzero(np.isin(made.ground.history.targets(asked), made.new))]


def ranks_of(recommender: Released, made: NewItems, asked: EvalQuery, among: Flags) -> Rows:
    """int64 [n]: the rank of what was watched among some of the items."""
    ranks = [np.empty(0, np.int64)]
    for start in range(0, len(asked), rows_at_once(len(among))):
        queries = made.ground.history.queries(asked[start : start + rows_at_once(len(among))])
        scores = recommender.scores(queries)
        scores[:, ~among] = -np.inf
        ranks.append(judge(scores, queries))
    return np.concatenate(ranks)
