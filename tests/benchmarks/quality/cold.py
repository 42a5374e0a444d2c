"""Newcomers: what those who have watched nothing are shown, and how often their first watch is among it.

A release learns from KuaiRand up to a day, with popularity's half-life and all else chosen on the validation days
before it. The log says nothing of a newcomer (no context, no searches), so each way to answer is one list for all of
them, as of the cut; their first watch after it is looked for in it. How the towers and popularity are to be mixed is
asked of the newcomers of the validation days.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import numpy as np
import polars as pl

from infra.platform.settings import Model, Ranker, Selection, Serving, Settings
from models.arrays import Floats, Rows
from models.evaluation.backtest import target_ranks
from models.evaluation.baseline_choice import HALF_LIVES
from models.evaluation.baselines import DecayedPopular, Popular, choose
from models.evaluation.eval_queries import History, Stream
from models.logs.stored_log import StoredLog, store_frame
from models.logs.training_set import TrainingSet
from models.ranking.impression_log import Delays
from models.ranking.ranker_release import learn_ranker
from models.release.training import learn_from_log
from models.retrieval.candidate_learning import Learned
from models.retrieval.candidates import CandidateModel
from models.threads import limit_threads
from serving.request.pipeline import Pipeline
from serving.request.response_draft import RequestContext
from serving.request.retrieval import Retrieval
from serving.state.release import LiveRelease, mirror_of, popular_of
from serving.state.trending_view import TrendingView
from serving.state.views import CatalogueView, HistoryView, StatisticsView, Views
from streams.messages import RecommendRequest, Trending, UserHistory, encode
from streams.trending.rules import GLOBAL, DecayedCounts
from tests.benchmarks.quality.judged import COMPLETED_S, differences, recalls
from tests.benchmarks.ranking.ranking_ground import scratch
from tests.benchmarks.report import Report, say
from tests.benchmarks.serving.serving_ground import QUICK_HIDDEN
from tests.benchmarks.serving.serving_memory import FromMirror
from tests.harness.kuairand import DIRECTORY, is_there, read_kuairand

DAYS = {"30 April": datetime(2022, 4, 29, 16, tzinfo=UTC), "3 May": datetime(2022, 5, 2, 16, tzinfo=UTC)}
WEIGHTS = (0.0, 0.5, 0.75, 1.0, 1.25, 1.5)  # of the towers beside popularity
NOBODY = UserHistory("nobody")
TUNED = "popular, decayed"


@dataclass(frozen=True)
class Past:
    """What is known at a cut: the log up to it, and what was learnt from it."""

    log: StoredLog
    training_set: TrainingSet
    learned: Learned
    validation: int  # the stream's row where the validation days begin

    @property
    def stream(self) -> Stream:
        dataset = self.training_set.dataset
        return Stream(*(np.asarray(each, np.int64) for each in (dataset.users, dataset.items, dataset.event_ms)))

    @property
    def items(self) -> int:
        return len(self.training_set.catalogue)


def measure(report: Report, quick: bool) -> None:
    """Recall of the first watch of newcomers, by how they are answered."""
    limit_threads(1)
    report.title = "cold: KuaiRand, the first watch of people without one before the cut, whole catalogue"
    if not is_there():
        report.note(f"left out: the KuaiRand data is not at {DIRECTORY}")
        return
    settings = Settings.model_construct(
        model=Model(members=1, epochs=3) if quick else Model(),
        ranker=Ranker(epochs=1, hidden=QUICK_HIDDEN) if quick else Ranker(),
    )
    log, items = read_kuairand()
    for day, cut in DAYS.items():
        say(f"training what is known on {day}")
        cut_ms = int(cut.timestamp() * 1000)
        past = learn(log.filter(pl.col("event_ms") < cut_ms), items, settings.model)
        add_mixes(report, f"validation before {day}", past)
        add_lists(report, f"from {day} on", past, first_watches(log, cut_ms, past), settings, cut_ms)


def learn(log: pl.DataFrame, items: pl.DataFrame, settings: Model) -> Past:
    stored = store_frame(log, scratch(), completed_s=COMPLETED_S)
    return Past(stored, *learn_from_log(stored, items, settings=settings)[:3])


def first_watches(log: pl.DataFrame, cut_ms: int, past: Past) -> Rows:
    """The catalogue's row of what each newcomer completes first after the cut; -1: it was not known."""
    long_enough = pl.col("watch_s") >= pl.min_horizontal("duration_s", pl.lit(COMPLETED_S))
    completed = log.filter(long_enough.fill_null(True)).sort("event_ms", maintain_order=True)
    before, after = (completed.filter(part) for part in (pl.col("event_ms") < cut_ms, pl.col("event_ms") >= cut_ms))
    first = after.unique("user_id", keep="first", maintain_order=True).join(before, on="user_id", how="anti")
    return past.training_set.catalogue.rows(first["item_id"].to_list())


def add_mixes(report: Report, where: str, past: Past) -> None:
    """Towers and popularity at several weights, of a model that has not seen the validation days."""
    stream, model = past.stream, past.learned.earlier
    assert model is not None
    targets = stream.items[History(stream).first_ever(past.validation).watched]
    towers, popular = parts_of(model)
    for weight in WEIGHTS:
        report.add(
            where=where,
            list=f"towers x {weight:g} + popularity",
            n=len(targets),
            **recalls(ranks_of(weight * towers + popular, targets)),
        )


def add_lists(report: Report, where: str, past: Past, targets: Rows, settings: Settings, cut_ms: int) -> None:
    """Every way to answer a newcomer, beside decayed popularity."""
    scores = popular_scores(past)
    towers, popular = parts_of(past.learned.model)
    message = trending_at(past, settings)
    scores["before a release: trending"] = placed(trending_list(message), past)
    scores["towers without popularity"] = towers
    scores["served, as retrieved"] = towers + popular
    scores["served, as ranked"] = placed(served(past, settings, message, cut_ms), past)
    ranks = {name: ranks_of(each, targets) for name, each in scores.items()}
    tuned = next(name for name in ranks if name.startswith(TUNED))
    for name, mine in ranks.items():
        row = {"where": where, "list": name, "n": len(targets), **recalls(mine)}
        report.add(**row, **({} if name == tuned else differences(name, mine, TUNED, ranks[tuned])))
    reached, least = recalls(ranks["served, as retrieved"]), recalls(ranks[tuned])
    for cutoff in reached:
        report.bar(f"{where}: {cutoff} as retrieved", reached[cutoff], at_least=least[cutoff])


def popular_scores(past: Past) -> dict[str, Floats]:
    """Decayed popularity with the half-life that foresees the validation days best, and popularity of all time."""
    stream, items = past.stream, past.items
    build = partial(DecayedPopular, stream, past.validation, items)
    choice = choose(
        build,
        [{"half_life": half_life} for half_life in HALF_LIVES],
        lambda recommender: ranks_of(one_list(recommender), stream.items[past.validation :]),
    )
    tuned = DecayedPopular(stream, len(stream), items, **choice.setting)
    of_all_time = Popular(stream, len(stream), items, window=None, name="popular, all time")
    return {
        f"{TUNED} ({choice.setting['half_life']:,} watches)": one_list(tuned),
        "popular, all time": one_list(of_all_time),
    }


def one_list(recommender: DecayedPopular | Popular) -> Floats:
    """float32 [N]: scores that are everybody's."""
    return recommender.scores([None])[0]  # type: ignore[arg-type]


def parts_of(model: CandidateModel) -> tuple[Floats, Floats]:
    """What the towers say for a viewer of whom nothing is known, bias included, and log popularity, float32 [N]."""
    vector = model.user_vectors([NOBODY], 0)[0]
    popular = model.popularity.log_share()
    return model.item_vectors() @ vector - popular, popular


def trending_at(past: Past, settings: Settings) -> Trending:
    """What the trending worker would have published at the cut."""
    trending, stream = settings.trending, past.stream
    counts = DecayedCounts((trending.half_life_s, *trending.slower_s), room=10 * trending.items)
    names = past.training_set.catalogue.item_ids
    for row, (item, event_ms) in enumerate(zip(stream.items.tolist(), stream.event_ms.tolist(), strict=True)):
        counts.add(names[item], event_ms, row)
    return counts.message(GLOBAL, 0, trending.items)


def trending_list(message: Trending) -> list[str]:
    view = TrendingView()
    view.apply(b"global/0", encode(message))
    return list(view.best().item_ids)


def served(past: Past, settings: Settings, message: Trending, cut_ms: int) -> list[str]:
    """The longest list that a server gives a newcomer, with the release and with what is trending."""
    model, catalogue = past.learned.model, past.training_set.catalogue
    ranker = learn_ranker(
        past.log,
        past.training_set,
        settings=settings.ranker,
        delays=Delays(),
        earlier=past.learned.earlier,
        since=int(past.training_set.completed[past.validation]),
        warm=None,
        progress=lambda stage, done, total: None,
    )
    mirror, index = mirror_of(model), FromMirror(model.dim)
    live = LiveRelease(
        "v", cut_ms, model, ranker.ranker, index, catalogue, ranker.statistics, mirror, popular=popular_of(model)
    )
    mirror.catalogue_rows[:] = catalogue.rows(mirror.item_ids)
    views = Views(HistoryView(), CatalogueView(), TrendingView(), StatisticsView(1, half_life_h=168.0))
    views.trending.apply(b"global/0", encode(message))
    serving = Serving(first="mirror", deadline_s=60.0)
    pipeline = Pipeline(views, Retrieval(serving, seed=1), serving, Selection(), "benchmark")
    request = RequestContext(RecommendRequest("r", "nobody", k=serving.max_k), 0)
    [answered] = pipeline.finish(pipeline.begin([request], live, cut_ms))
    return [item.item_id for item in answered.reply.items]


def placed(names: list[str], past: Past) -> Floats:
    """A list as scores, float32 [N]; what is not on it has 0."""
    scores = np.zeros(past.items, np.float32)
    scores[past.training_set.catalogue.rows(names)] = np.arange(len(names), 0, -1)
    return scores


def ranks_of(scores: Floats, targets: Rows) -> Rows:
    """int64 [n] of targets in the one list; MISS for unknown ones."""
    nothing, unique = np.zeros(0, np.int64), np.unique(targets)
    ranks: Mapping[int, int] = dict(
        zip(
            unique.tolist(),
            target_ranks(np.tile(scores, (len(unique), 1)), unique, nothing, nothing).tolist(),
            strict=True,
        )
    )
    return np.array([ranks[target] for target in targets.tolist()], np.int64)
