"""Networks beside the ranker's own, of the same features, ids and quantiles, by the same training.

AttendingNet: the candidate asks what its user watched last (Deep Interest Network, KDD 2018). CrossingNet: low-rank
crosses of all inputs before the first layer (DCN-V2, WWW 2021). And P(start) x E[seconds | start]: two heads of the
ranker's network. None of them is served: a candidate's own part of the first layer could no longer be kept for other
requests in the first two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infra.platform.settings import Ranker as RankerSettings
from models.arrays import Doubles, Floats, Rows
from models.ranking.hyper_parameters import RankerParameters
from models.ranking.ranker import Ranker, serve_seconds
from models.ranking.ranker_net import RankerNet, RankerShape
from models.ranking.ranker_training import Loss, Prepared, fit, prepare
from models.ranking.ranking_evaluation import Predictions
from models.ranking.ranking_examples import RankingExamples
from models.retrieval.losses import watch_time_logistic
from tests.benchmarks.ranking.ranking_ground import Ground, Part, scratch

LAST = 20  # watches that a candidate asks
RANK, CROSSES = 16, 2
# What a start is: in this log a video plays by itself where it is shown (in its largest tab 99 % of the exposures
# played), and two fifths are left within three seconds.
START_S = 3.0
BLOCK = 16_384

Net = Callable[[RankerShape], RankerNet]


class AttendingNet(RankerNet):
    """Beside the ranker's inputs: the mean of the last watched items' embeddings, weighed by how well the candidate's
    agrees with each, and that mean times the candidate's, number by number."""

    def __init__(self, shape: RankerShape) -> None:
        super().__init__(shape)
        self.width = shape.widths["item"]
        self.asks = nn.Linear(self.width, self.width)
        self.of_attended = nn.Linear(2 * self.width, shape.hidden[0], bias=False)

    def query_part(self, x: Tensor, ids: Mapping[str, Tensor]) -> Tensor:
        """The first layer's part, and beside it the embeddings of the last watched: [B, hidden + LAST * width]"""
        watched = F.embedding(ids["last_watched"][:, -LAST:], self.tables["item"].weight, padding_idx=0)  # type: ignore[arg-type]
        return torch.cat([super().query_part(x, ids), watched.flatten(1)], dim=1)

    def forward(self, query: Tensor, x: Tensor, ids: Mapping[str, Tensor]) -> Tensor:
        first = len(self.bias)
        candidate = F.embedding(ids["candidate"][:, 0], self.tables["item"].weight, padding_idx=0)  # type: ignore[arg-type]
        attended = self.attended(candidate, query[:, first:].unflatten(1, (LAST, self.width)))
        both = torch.cat([attended, attended * candidate], dim=1)
        return self.rest(
            F.linear(self.impression(x, ids), self.of_impression) + query[:, :first] + self.of_attended(both)
        )

    def attended(self, candidate: Tensor, watched: Tensor) -> Tensor:
        """candidate [N, W], watched [N, L, W] -> [N, W]; an unknown watch, whose embedding is zero, is not asked."""
        agree = torch.einsum("nlw,nw->nl", watched, self.asks(candidate)) / self.width**0.5
        weights = agree.masked_fill((watched == 0).all(dim=2), -1e9).softmax(dim=1)
        return torch.einsum("nl,nlw->nw", weights, watched)


class CrossingNet(RankerNet):
    """The ranker's layers on crossed inputs: x <- x0 * (U V x + b) + x, CROSSES times, U V of rank RANK."""

    def __init__(self, shape: RankerShape) -> None:
        super().__init__(shape)
        width = self.query.width + self.impression.width
        self.down = nn.ModuleList(nn.Linear(width, RANK, bias=False) for _ in range(CROSSES))
        self.up = nn.ModuleList(nn.Linear(RANK, width) for _ in range(CROSSES))
        for up in self.up:  # begins as the ranker's own network
            nn.init.zeros_(up.weight)  # type: ignore[arg-type]
            nn.init.zeros_(up.bias)  # type: ignore[arg-type]

    def query_part(self, x: Tensor, ids: Mapping[str, Tensor]) -> Tensor:
        """The inputs as they are: a cross needs both sides. [B, width]"""
        return self.query(x, ids)  # type: ignore[no-any-return]

    def forward(self, query: Tensor, x: Tensor, ids: Mapping[str, Tensor]) -> Tensor:
        of_all = torch.cat([query, self.impression(x, ids)], dim=1)
        crossed = of_all
        for down, up in zip(self.down, self.up, strict=True):
            crossed = of_all * up(down(crossed)) + crossed
        return self.rest(F.linear(crossed, torch.cat([self.of_query, self.of_impression], dim=1), self.bias))


def start_and_seconds(
    net: RankerNet, logits: Tensor, prepared: Prepared, rows: Rows, settings: RankerParameters
) -> Tensor:
    """Loss of two heads: the second one's of whether it was started, of all; the first one's of the seconds, of what
    was. An average watch weighs as much in both."""
    target = torch.from_numpy(prepared.targets[rows])
    started = (target >= START_S).float()
    seconds = (started * watch_time_logistic(logits[:, 0], target)).mean()
    start = F.binary_cross_entropy_with_logits(logits[:, 1], started)
    return seconds + (1 + target.mean()) * start


def predicted(
    ground: Ground, stop: int, ranker: Ranker, settings: RankerSettings, part: Part, net_of: Net
) -> Predictions:
    """Of such networks on the first `stop` exposures, with the ids and quantiles of a ranker of the same ones."""
    nets = _nets(ground, stop, ranker, settings, net_of, None)
    logits = (_logits(nets, ranker, each)[:, 0] for each in (part.page, part.user))
    page, user = (serve_seconds(logit, part.page.cap_s).astype(np.float64) for logit in logits)
    return Predictions(page, user)


def predicted_by_start(ground: Ground, stop: int, ranker: Ranker, settings: RankerSettings, part: Part) -> Predictions:
    """P(start) x E[seconds | start], and the mean seconds of what is not started where it is not."""
    nets = _nets(ground, stop, ranker, settings, RankerNet, start_and_seconds)
    target_s = np.asarray(ground.examples.target_s[:stop], np.float64)
    left_s = float(target_s[target_s < START_S].mean())
    page, user = (
        started_seconds(_logits(nets, ranker, each), left_s, part.page.cap_s) for each in (part.page, part.user)
    )
    return Predictions(page, user)


def started_seconds(logits: Floats, left_s: float, cap_s: float) -> Doubles:
    """float64 [N]. logits [N, 2]: of the seconds of what is started, and of a start; `left_s`: seconds of the rest."""
    start = 1 / (1 + np.exp(-logits[:, 1].astype(np.float64)))
    return np.asarray(start * serve_seconds(logits[:, 0], cap_s) + (1 - start) * left_s, np.float64)


def _nets(
    ground: Ground, stop: int, ranker: Ranker, settings: RankerSettings, net_of: Net, loss_of: Loss | None
) -> list[RankerNet]:
    prepared = _prepared(ranker, ground.examples, np.arange(stop))
    nets = []
    for seed in range(settings.seed, settings.seed + settings.members):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = net_of(prepared.shape)
        assert net.last is not None
        with torch.no_grad():
            net.last.bias[0] = float(np.log(np.mean(prepared.targets[:stop])))
        for _ in fit(net, prepared, settings, seed=seed, loss_of=loss_of):
            pass
        nets.append(net.eval())
    return nets


def _logits(nets: Sequence[RankerNet], ranker: Ranker, examples: RankingExamples) -> Floats:
    """float32 [N, 1 + completion]: the members' mean, in blocks."""
    prepared = _prepared(ranker, examples, np.arange(len(examples)))
    found = []
    with torch.inference_mode():
        for start in range(0, len(examples), BLOCK):
            x, codes = prepared.batch(np.arange(start, min(start + BLOCK, len(examples))), torch.device("cpu"))
            of_each = [n(n.query_part(x["query"], codes["query"]), x["impression"], codes["impression"]) for n in nets]
            found.append(torch.stack(of_each).mean(dim=0).numpy())
    return np.concatenate(found)


def _prepared(ranker: Ranker, examples: RankingExamples, rows: Rows) -> Prepared:
    assert ranker.shape is not None
    return prepare(examples, rows, scratch(), ranker.spaces, ranker.shape, ranker.quantiles, None)
