"""The ranker: expected watch seconds of each candidate, by weighted logistic regression (paper section 4.2).

The odds of a logistic regression in which each impression weighs its watch time as a positive and one as a negative are
E[T]; so exp(logit) is served as seconds. Item statistics and the quantile table are frozen into the bundle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.catalogue import Catalogue
from models.features import Rows, Statistics, compute_features, read_histories, retrieval_gap
from models.quantiles import Quantiles
from models.viewer import Viewer

Floats = npt.NDArray[np.float32]

CAP_S = 600.0  # watch time beyond this neither trains nor is promised
LEAST_LOGIT = -10.0


@dataclass(frozen=True)
class RankingQuery:
    """One request to be ranked. `scores` float32 [C] are the retrieval scores, NaN where a source gives none."""

    viewer: Viewer
    now_ms: int
    item_ids: Sequence[str]
    scores: Floats


@dataclass(frozen=True)
class ItemStatistics:
    """Impressions, watched seconds and completions of each item at training time: float64 [N], catalogue rows."""

    impressions: npt.NDArray[np.float64]
    seconds: npt.NDArray[np.float64]
    completions: npt.NDArray[np.float64]

    @property
    def mean_s(self) -> float:
        return float(self.seconds.sum() / max(self.impressions.sum(), 1))

    def at(self, rows: Rows) -> Statistics:
        """Of catalogue rows [N]; rows that came after training have no impressions yet."""
        known = (rows >= 0) & (rows < len(self.impressions))
        columns = (self.impressions, self.seconds, self.completions)
        own = [np.where(known, column[np.where(known, rows, 0)], 0.0) for column in columns]
        return Statistics(*own, *(np.full(len(rows), column.sum()) for column in columns))


class RankerNet(nn.Module):
    """ReLU layers to one logit; without hidden layers it is the plain logistic regression."""

    def __init__(self, inputs: int, hidden: Sequence[int]) -> None:
        super().__init__()
        widths = [inputs, *hidden]
        layers: list[nn.Module] = []
        for width, following in pairwise(widths):
            layers += [nn.Linear(width, following), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.last = nn.Linear(widths[-1], 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """[N, 4 F] -> [N]"""
        logit: Tensor = self.last(self.layers(inputs)).squeeze(1)
        return logit


class Ranker:
    """Ranks by a trained network. A log without watch times trains none: then `trained` is False, every expectation is
    0, and a stable sort keeps the retrieval order."""

    def __init__(
        self, net: RankerNet | None, quantiles: Quantiles | None, statistics: ItemStatistics, catalogue: Catalogue
    ) -> None:
        """`statistics` are by row of `catalogue`, which may grow and change afterwards."""
        self.net = None if net is None else net.eval().requires_grad_(False)
        self.quantiles = quantiles
        self.statistics = statistics
        self.catalogue = catalogue

    @property
    def trained(self) -> bool:
        return self.net is not None

    def expected_watch_s(self, batch: Sequence[RankingQuery]) -> list[Floats]:
        """Expected watch seconds of each query's candidates, float32 [C_i] each, finite, within [0, CAP_S].

        One pass of features and network for all queries together."""
        sizes = [len(query.item_ids) for query in batch]
        if self.net is None or self.quantiles is None or not sum(sizes):
            return [np.zeros(size, np.float32) for size in sizes]
        inputs = self.quantiles.encode(self.features(batch))
        with torch.inference_mode():
            logit = self.net(torch.from_numpy(inputs)).numpy()  # [sum C]
        return np.split(serve_seconds(logit), np.cumsum(sizes)[:-1])

    def features(self, batch: Sequence[RankingQuery]) -> Floats:
        """float32 [sum C, F], as `models.features.FEATURES` names them."""
        sizes = [len(query.item_ids) for query in batch]
        rows = self.catalogue.rows(item_id for query in batch for item_id in query.item_ids)
        return compute_features(
            self.catalogue,
            read_histories([query.viewer for query in batch], self.catalogue),
            now_ms=np.array([query.now_ms for query in batch], np.int64),
            request=np.repeat(np.arange(len(batch)), sizes),
            rows=rows,
            statistics=self.statistics.at(rows),
            gap=np.concatenate([retrieval_gap(query.scores) for query in batch]),
        )

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Everything that was learnt, by name; the catalogue is not part of it."""
        arrays: dict[str, npt.NDArray[Any]] = {
            "impressions": self.statistics.impressions,
            "seconds": self.statistics.seconds,
            "completions": self.statistics.completions,
        }
        if self.net is not None and self.quantiles is not None:
            arrays |= {"points": self.quantiles.points, "ranks": self.quantiles.ranks}
            arrays |= {f"net.{name}": tensor.numpy() for name, tensor in self.net.state_dict().items()}
        return arrays

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, npt.NDArray[Any]], catalogue: Catalogue, *, hidden: Sequence[int]
    ) -> Ranker:
        """The reverse of `to_arrays`. Raises KeyError or RuntimeError (torch) when a name or shape does not fit."""
        statistics = ItemStatistics(*(arrays[name] for name in ("impressions", "seconds", "completions")))
        if "points" not in arrays:
            return cls(None, None, statistics, catalogue)
        quantiles = Quantiles(arrays["points"], arrays["ranks"])
        net = RankerNet(quantiles.width, hidden)
        weights = {n.removeprefix("net."): torch.from_numpy(a) for n, a in arrays.items() if n.startswith("net.")}
        net.load_state_dict(weights)
        return cls(net, quantiles, statistics, catalogue)


def serve_seconds(logit: Floats) -> Floats:
    """exp(logit), finite and capped; a logit that is no number sinks."""
    bounded = np.nan_to_num(logit, nan=LEAST_LOGIT, posinf=np.log(CAP_S), neginf=LEAST_LOGIT)
    return np.exp(np.clip(bounded, LEAST_LOGIT, np.log(CAP_S))).astype(np.float32)
