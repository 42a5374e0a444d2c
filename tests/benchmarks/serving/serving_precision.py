"""What ranking costs by the networks' size and by how their numbers are held, and what that does to the order.

The same trained networks on the same 500 candidates of a request: weights and activations in float32; in bfloat16;
float32 weights under autocast to bfloat16; weights in int8, activations quantised as they come (torch.ao). The features
are ready tensors and their embeddings and powers stay float32; what is told is the pass of all layers. The order of the
top 50 by float32 is compared by Kendall's tau-b; how far one member alone is from all of them says what is much.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau
from torch import Tensor, nn

from infra.platform.settings import Settings
from infra.simulation.world import NOTICE
from models.ranking.item_statistics import ItemStatistics
from models.ranking.ranker import Ranker
from models.ranking.ranker_net import RankerNet
from models.ranking.ranker_training import train_ranker
from models.ranking.ranking_request import RankingQuery, ranking_batch_of
from models.threads import limit_threads
from tests.benchmarks.ranking.ranking_ground import LISTS, NOW_MS, QUICK_LISTS, Ground, scratch, world_ground
from tests.benchmarks.ranking.ranking_serving import CANDIDATES, one_request, tensors_of
from tests.benchmarks.report import Report, percentiles, quantile, say

SIZES = ((256, 128), (512, 256), (1024, 512, 256))
TURNS, QUICK_TURNS = {1: 200, 8: 40}, {1: 20, 8: 4}  # by requests together
QUICK_ROWS = 5_000
TOP = 50
FLOAT32 = "float32"

Ready = tuple[Any, Any, Tensor]
Pass = Callable[[Ready], Tensor]


class Layers(nn.Module):
    """The layers of a RankerNet as torch's own modules, so that torch can hold them in other numbers."""

    def __init__(self, net: RankerNet) -> None:
        super().__init__()
        assert net.last is not None
        self.of_query, self.of_impression = _linear(net.of_query, net.bias), _linear(net.of_impression)
        self.layers = nn.ModuleList([*copy.deepcopy(net.layers), copy.deepcopy(net.last)])

    def forward(self, query: Tensor, impression: Tensor, request: Tensor) -> Tensor:
        """query [B, Q] and impression [N, I] inputs, request int64 [N] -> logits [N]"""
        hidden = self.of_impression(impression) + self.of_query(query)[request]
        for layer in self.layers:
            hidden = layer(hidden.relu_())
        logits: Tensor = hidden[:, 0]
        return logits


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    return layer


def measure(report: Report, quick: bool) -> None:
    """The pass of a ranker on 500 candidates of 1 and of 8 requests in each number format, one thread, in turns."""
    limit_threads(1)
    report.title = f"serving ranking: the networks' pass on {CANDIDATES} candidates, one thread, in turns"
    report.note(
        f"{NOTICE}; tau-b of the top {TOP} by float32, mean and least over requests; same: share of that top kept"
    )
    report.note("features, statistics and quantiles are left out (`ranking --part serving` has them)")
    ground = world_ground(QUICK_LISTS if quick else LISTS)
    for hidden in SIZES:
        for members in (1, Settings.model_construct().ranker.members):
            name = "-".join(map(str, hidden)) + f" x {members}"
            say(name)
            add_rows(report, name, trained(ground, hidden, members, quick), ground, QUICK_TURNS if quick else TURNS)


def trained(ground: Ground, hidden: Sequence[int], members: int, quick: bool) -> Ranker:
    update = {"hidden": tuple(hidden), "members": members} | ({"epochs": 1} if quick else {})
    settings = Settings.model_construct().ranker.model_copy(update=update)
    rows = np.arange(QUICK_ROWS if quick else len(ground.examples))
    return train_ranker(ground.examples, scratch(), settings=settings, rows=rows)


def add_rows(report: Report, name: str, ranker: Ranker, ground: Ground, turns: dict[int, int]) -> None:
    passes = passes_of(ranker)
    for requests, count in turns.items():
        spent_ms, logits = in_turns(ranker, passes, ground, requests, count)
        base = quantile(spent_ms[FLOAT32], 0.5)
        for kind, times in spent_ms.items():
            row = {"networks": name, "requests": requests, "numbers": kind, **percentiles(times)}
            taus, same = zip(*map(compared, logits[FLOAT32], logits[kind]), strict=True)
            report.add(
                **row,
                **{"of float32": quantile(times, 0.5) / base, "tau": float(np.mean(taus)), "least tau": min(taus)},
                same=float(np.mean(same)),
            )


def passes_of(ranker: Ranker) -> dict[str, Pass]:
    """By number format: from ready tensors to the members' mean logit [N]."""
    nets = ranker.nets
    layers = [Layers(net).eval().requires_grad_(False) for net in nets]
    halves = [copy.deepcopy(each).bfloat16() for each in layers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is on its way to a package of its own
        quantise: Any = torch.ao.quantization.quantize_dynamic
        bytes_ = [quantise(each, {nn.Linear}, dtype=torch.qint8) for each in layers]

    def autocast(ready: Ready) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return run(nets, layers, ready)

    passes: dict[str, Pass] = {
        FLOAT32: lambda ready: run(nets, layers, ready),
        "bfloat16": lambda ready: run(nets, halves, ready, torch.bfloat16),
        "bfloat16 by autocast": autocast,
        "int8, dynamic": lambda ready: run(nets, bytes_, ready),
    }
    if len(nets) > 1:
        passes["one member alone, float32"] = lambda ready: run(nets[:1], layers[:1], ready)
    return passes


def run(
    nets: Sequence[RankerNet], layers: Sequence[nn.Module], ready: Ready, dtype: torch.dtype = torch.float32
) -> Tensor:
    (query_x, query_ids), (x, ids), request = ready
    with torch.inference_mode():
        total = torch.zeros(len(request))
        for net, each in zip(nets, layers, strict=True):
            query, impression = net.query(query_x, query_ids), net.impression(x, ids)
            total += each(query.to(dtype), impression.to(dtype), request).float()
        return total / len(layers)


def in_turns(
    ranker: Ranker, passes: dict[str, Pass], ground: Ground, requests: int, turns: int
) -> tuple[dict[str, list[float]], dict[str, list[np.ndarray]]]:
    """By format: milliseconds of each turn, and logits [C] of each request. Others go first in each turn."""
    rng, statistics = np.random.default_rng(1), ground.exposures.statistics()
    spent_ms: dict[str, list[float]] = {kind: [] for kind in passes}
    logits: dict[str, list[np.ndarray]] = {kind: [] for kind in passes}
    for turn in range(turns + 2):
        ready = ready_requests(ranker, ground, statistics, requests, rng)
        for kind in sorted(passes, key=lambda kind: (list(passes).index(kind) + turn) % len(passes)):
            began_s = time.perf_counter()
            found = passes[kind](ready)
            if turn >= 2:  # before that it warms up
                spent_ms[kind].append(1000 * (time.perf_counter() - began_s))
                logits[kind] += np.split(found.numpy(), requests)
    return spent_ms, logits


def ready_requests(
    ranker: Ranker, ground: Ground, statistics: ItemStatistics, requests: int, rng: np.random.Generator
) -> Ready:
    asked = [one_request(ground, rng) for _ in range(requests)]
    queries = [RankingQuery(history, NOW_MS, ids, scores) for history, ids, scores in asked]
    return tensors_of(ranker, ranking_batch_of(queries, ground.exposures.catalogue, [statistics]))


def compared(exact: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Kendall's tau-b of the exact top, and the share of it that is the other's top too."""
    top = np.argsort(-exact, kind="stable")[:TOP]
    tau = float(kendalltau(exact[top], other[top]).statistic)
    mine = np.argsort(-other, kind="stable")[:TOP]
    return tau, len(np.intersect1d(top, mine)) / TOP
