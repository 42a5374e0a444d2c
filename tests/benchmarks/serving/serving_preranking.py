"""What is lost when the ranker is asked about a part of the candidates only (serving/request/preranking.py).

A release learns from a log up to its last day; people of the log, as they were then, get candidates from its towers.
All candidates are ranked, and the share of each list's best 20 is counted that is among the candidates worth most to a
viewer of whom nothing is known; beside it those with the best retrieval scores, as many.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from infra.platform.settings import Model, Ranker, Settings
from infra.simulation.world import NOTICE
from models.ranking.ranking_request import RankingQuery
from models.release.bundle import read_manifest
from models.threads import limit_threads
from serving.request.preranking import best_of, learn_worth
from serving.request.ranking import score_candidates
from serving.request.response_draft import Floats
from serving.state.item_worth import MOST_DUE
from serving.state.release import LiveRelease, load_release
from serving.state.views import StatisticsView
from streams.bundles.source import BundleSource
from streams.messages import UserHistory
from tests.benchmarks.ranking.ranking_ground import DAY_MS, scratch
from tests.benchmarks.report import Report, say
from tests.benchmarks.serving.large import enlarged
from tests.benchmarks.serving.serving_ground import HISTORY, QUICK_HIDDEN, small_release, viewers_of
from tests.benchmarks.serving.serving_memory import MIRROR_ITEMS, FromMirror
from tests.harness.kuairand import is_there, read_kuairand
from tests.harness.service import histories_of, train_release

KEPT, CANDIDATES, LIST = (50, 100, 150, 250), 500, 20
VIEWERS, QUICK_VIEWERS = 400, 60
COPIES = 100_000  # items of the larger simulated catalogue
WORTH, SCORE = "worth", "retrieval score"


def measure(report: Report, quick: bool) -> None:
    """The share of the best 20 that the pre-ranker keeps, on KuaiRand and in the simulated world."""
    limit_threads(1)
    report.title = f"serving preranking: of {CANDIDATES} candidates the best by their own worth, then ranked"
    report.note(f"share of the best {LIST} of a whole ranking that is kept; {NOTICE}")
    viewers = QUICK_VIEWERS if quick else VIEWERS
    if is_there():
        add_rows(report, "KuaiRand", *of_kuairand(quick, viewers))
    else:
        report.note("KuaiRand's data is not there: its rows are left out")
    for items in (10_000,) if quick else (10_000, COPIES):
        add_rows(report, f"simulated, {items:,} items", *of_world(quick, viewers, items))


def of_kuairand(quick: bool, viewers: int) -> tuple[LiveRelease, list[UserHistory], int]:
    """A release of all but the last day, and people as they were at its end."""
    say("training a release of KuaiRand")
    log, items = read_kuairand()
    now_ms = int(log["event_ms"].max()) - DAY_MS  # type: ignore[arg-type]
    past = log.filter(pl.col("event_ms") < now_ms).sort("event_ms")
    towers = Model(epochs=1) if quick else Model()
    ranker = Ranker(epochs=1, hidden=QUICK_HIDDEN) if quick else Ranker()
    directory = scratch()
    version = train_release(past, items, towers, ranker, directory, now_ms).manifest.version
    named = past.with_columns(
        event_id=pl.int_range(pl.len()).cast(pl.String), watch_s=pl.col("watch_s").fill_null(30.0)
    )
    everybody = list(histories_of(named, HISTORY).values())
    chosen = np.random.default_rng(1).permutation(len(everybody))[:viewers].tolist()
    return loaded(directory, version), [everybody[at] for at in chosen], now_ms


def of_world(quick: bool, viewers: int, items: int) -> tuple[LiveRelease, list[UserHistory], int]:
    directory = scratch()
    version = enlarged(small_release(quick), directory, items).version
    live = loaded(directory, version)
    return live, viewers_of(live.model.item_ids, viewers, live.created_ms), live.created_ms


def loaded(directory: Path, version: str) -> LiveRelease:
    index = FromMirror(read_manifest(directory / version).dim)
    return load_release(BundleSource(directory), version, index, mirror_items=MIRROR_ITEMS)


def add_rows(report: Report, where: str, live: LiveRelease, viewers: Sequence[UserHistory], now_ms: int) -> None:
    """Rank all that the towers find for each viewer, and look where its best were by worth."""
    statistics = StatisticsView(1, 168.0)
    statistics.due(now_ms)
    kept: dict[str, dict[int, list[float]]] = {by: {most: [] for most in KEPT} for by in (WORTH, SCORE)}
    for viewer in viewers:
        query = candidates_of(live, viewer, now_ms)
        [(expected_s, _)] = score_candidates([query], live, statistics, now_ms=now_ms)
        best = np.argsort(-expected_s, kind="stable")[:LIST]
        for by, values in ((WORTH, worth_of(live, query, statistics, now_ms)), (SCORE, query.scores)):
            for most in KEPT:
                rows = best_of(values, most)
                kept[by][most].append(1.0 if rows is None else float(np.isin(best, rows).mean()))
    for by, shares in kept.items():
        for most, mine in shares.items():
            whole = float(np.mean(np.array(mine) == 1))
            row = {"kept": most, "by": by, "lists": len(mine), "share of the best": float(np.mean(mine))}
            report.add(where=where, **row, **{"lists that keep all": whole})
    default = Settings.model_construct().serving.ranked
    share = float(np.mean(kept[WORTH][default])) if viewers else 0.0
    report.bar(f"{where}: share of the best {LIST} among the {default} of serving.ranked", share, at_least=0.99)


def candidates_of(live: LiveRelease, viewer: UserHistory, now_ms: int) -> RankingQuery:
    """What the towers find and the viewer has not watched."""
    assert live.mirror is not None
    watched = {watch.item_id for watch in viewer.watches}
    [(item_ids, scores)] = live.mirror.search(live.model.user_vectors([viewer], now_ms), CANDIDATES + len(watched))
    rows = [row for row, item_id in enumerate(item_ids) if item_id not in watched][:CANDIDATES]
    return RankingQuery(viewer, now_ms, [item_ids[row] for row in rows], scores[rows])


def worth_of(live: LiveRelease, query: RankingQuery, statistics: StatisticsView, now_ms: int) -> Floats:
    """Of every candidate, asked for as often as it takes."""
    rows = live.catalogue.rows(query.item_ids)
    for _ in range(0, len(rows), MOST_DUE):
        learn_worth(live, rows, statistics, now_ms)
    return live.worth.of(rows)
