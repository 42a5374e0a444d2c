"""What ranking 500 candidates costs a server, beside the bare pass of the same networks on ready tensors.

The whole is what serving does with a batch (serving.request.ranking.score_candidates): arrays of histories, statistics
of candidates, features, codes, quantiles, networks, calibration. Whole, bare pass and stages are measured in turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from infra.platform.settings import Settings
from infra.simulation.world import NOTICE
from models.arrays import Floats
from models.ranking.features import compute_ids, compute_numbers
from models.ranking.item_statistics import ItemStatistics
from models.ranking.ranker import Ranker
from models.ranking.ranker_training import train_ranker
from models.ranking.ranking_batch import RankingBatch
from models.ranking.ranking_examples import SCOPES
from models.ranking.ranking_request import RankingQuery, ranking_batch_of, read_requests
from models.threads import limit_threads
from serving.request.ranking import score_candidates
from serving.state.release import LiveRelease
from serving.state.views import StatisticsView
from streams.messages import Context, ShownList, UserHistory, Watch
from tests.benchmarks.ranking.ranking_ground import NOW_MS, QUICK_LISTS, Ground, scratch, world_ground
from tests.benchmarks.report import Report, percentiles, quantile, say

SIZES = ((64, 32), (256, 128), (512, 256), (1024, 512, 256))
CANDIDATES, HISTORY, LISTS, LENGTH = 500, 50, 5, 20
TURNS, QUICK_TURNS = {1: 300, 8: 60}, {1: 40, 8: 10}  # by requests together
TRAINED_ON = 5_000  # enough for a network of its shape, tables of full length and ids
PARTS = 4

Asked = list[tuple[UserHistory, list[str], Floats]]
Measured = dict[str, list[float]]


def measure(report: Report, quick: bool) -> None:
    """Milliseconds of a whole ranking and of its parts, one request and a batch of 8, one thread."""
    limit_threads(1)
    turns = QUICK_TURNS if quick else TURNS
    settings = Settings.model_construct().ranker
    report.title = f"ranking serving: {CANDIDATES} candidates, one thread, in turns"
    report.note(
        f"histories of {HISTORY} watches, {LISTS} lists shown before; {turns[1]} turns, {turns[8]} of 8 requests"
    )
    report.note(f"{NOTICE}; the catalogue has 2,000 videos")
    ground = world_ground(QUICK_LISTS)
    statistics = ground.exposures.statistics()
    live_statistics = repeated(statistics)
    for hidden, members in ((hidden, members) for members in (1, settings.members) for hidden in SIZES):
        name = "-".join(map(str, hidden)) + (f" x {members}" if members > 1 else "")
        say(name)
        wanted = settings.model_copy(update={"hidden": hidden, "members": members, "epochs": 1})
        ranker = train_ranker(ground.examples, scratch(), settings=wanted, rows=np.arange(TRAINED_ON))
        release = live_release(ground, ranker, statistics)
        for requests in (1, 8):
            found = in_turns(release, live_statistics, requests, ground, turns[requests])
            add_rows(report, name, requests, found)


def add_rows(report: Report, name: str, requests: int, found: Measured) -> None:
    bare = quantile(found["bare pass"], 0.5)
    for part, times in found.items():
        row = {"networks": name, "requests": requests, "part": part, **percentiles(times)}
        report.add(**row, **{"of bare": quantile(times, 0.5) / bare})
    ratio = quantile(found["whole"], 0.5) / bare
    report.bar(f"{name}, {requests} at once: whole over the bare pass, p50", ratio, at_most=2.5)
    late = quantile(found["whole"], 0.99) / quantile(found["bare pass"], 0.99)
    report.bar(f"{name}, {requests} at once: whole over the bare pass, p99", late, at_most=2.5)


def in_turns(release: LiveRelease, live: ItemStatistics, requests: int, ground: Ground, turns: int) -> Measured:
    """Milliseconds of everything, turn by turn; new requests each time, so that nothing is remembered from the last."""
    rng = np.random.default_rng(1)
    ranker, known = release.ranker, [release.statistics, live]
    view = StatisticsView(PARTS, live.half_life_ms / 3_600_000)
    view.statistics = live
    found: Measured = {}

    def timed(part: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = work()
        found.setdefault(part, []).append(1000 * (time.perf_counter() - began))
        return result

    for turn in range(1, turns + 6):
        asked = [one_request(ground, rng) for _ in range(requests)]
        queries = [RankingQuery(history, NOW_MS, ids, scores) for history, ids, scores in asked]
        view.due(NOW_MS + turn)  # what is known of items is another's each time
        ready = tensors_of(ranker, ranking_batch_of(queries, release.catalogue, known))
        both: dict[str, Callable[[], Any]] = {
            "whole": partial(score_candidates, queries, release, view, now_ms=NOW_MS),
            "bare pass": partial(forward, ranker, *ready),
        }
        for part in both if turn % 2 else reversed(both):  # whoever comes second finds the caches warm
            timed(part, both[part])
        _stages(timed, ranker, queries, release, known)
    return {part: times[5:] for part, times in found.items()}


def _stages(
    timed: Callable[[str, Callable[[], Any]], Any],
    ranker: Ranker,
    queries: list[RankingQuery],
    release: LiveRelease,
    known: list[ItemStatistics],
) -> None:
    now_ms = np.full(len(queries), NOW_MS)
    timed("arrays of requests", lambda: read_requests([q.user for q in queries], now_ms, release.catalogue))
    moment = timed("those, candidates, statistics", lambda: ranking_batch_of(queries, release.catalogue, known))
    numbers = timed("features: numbers", lambda: {scope: compute_numbers(moment, scope) for scope in SCOPES})
    ids = timed("features: ids", lambda: {k: v for scope in SCOPES for k, v in compute_ids(moment, scope).items()})
    timed("quantiles and codes", lambda: [ranker.encode(scope, numbers[scope], ids) for scope in SCOPES])


def tensors_of(ranker: Ranker, moment: RankingBatch) -> tuple[Any, Any, torch.Tensor]:
    ids = {name: named for scope in SCOPES for name, named in compute_ids(moment, scope).items()}
    query, impression = (ranker.encode(scope, compute_numbers(moment, scope), ids) for scope in SCOPES)
    return query, impression, torch.from_numpy(moment.request)


def forward(ranker: Ranker, query: Any, impression: Any, request: torch.Tensor) -> torch.Tensor:
    """The members' mean logit."""
    with torch.inference_mode():
        total = torch.zeros(())
        for net in ranker.nets:
            part = net.query_part(*query)
            part = part if len(part) == 1 else part[request]
            total = total + net(part, *impression)
        return total / len(ranker.nets)


def one_request(ground: Ground, rng: np.random.Generator) -> tuple[UserHistory, list[str], Floats]:
    """A viewer with a full history, and candidates with scores."""
    catalogue = ground.exposures.catalogue
    drawn = rng.choice(len(catalogue), CANDIDATES + HISTORY, replace=False).tolist()
    ids = [catalogue.item_ids[row] for row in drawn]
    ago_ms = np.sort(rng.integers(1, 5 * 24 * 3_600_000, HISTORY))[::-1].tolist()
    seconds = rng.gamma(2.0, 15.0, HISTORY).tolist()
    watches = tuple(
        Watch(item, NOW_MS - ago, spent, None, spent > 18, str(at), at)
        for at, (item, ago, spent) in enumerate(zip(ids[CANDIDATES:], ago_ms, seconds, strict=True))
    )
    shown = tuple(
        ShownList(str(number), NOW_MS - 3_600_000 * (LISTS - number), tuple(rng.choice(ids, LENGTH).tolist()))
        for number in range(LISTS)
    )
    context = Context(region="de", language="de", device="phone", surface="home")
    history = UserHistory("somebody", watches, context=context, impressions=shown)
    return history, ids[:CANDIDATES], rng.normal(0, 1, CANDIDATES).astype(np.float32)


def live_release(ground: Ground, ranker: Ranker, statistics: ItemStatistics) -> LiveRelease:
    nothing: Any = None  # neither towers nor index are asked
    return LiveRelease("v1", NOW_MS, nothing, ranker, nothing, ground.exposures.catalogue, statistics)


def repeated(statistics: ItemStatistics) -> ItemStatistics:
    """As much again, as the stream's partitions tell it."""
    found = ItemStatistics(statistics.half_life_ms, parts=PARTS)
    for scope, name, _, as_of_ms, sums in statistics.rows():
        for part in range(PARTS):
            found.set(scope, name, part, as_of_ms, sums)
    return found
