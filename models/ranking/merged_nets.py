"""The members of a ranker as one network: what each would compute alone is computed together, for serving.

A request has a few hundred candidates, and a network of this size takes longer for its calls than for its products. So
the members' embeddings lie side by side in one table, and each layer is one product of a batch of M matrices.

The first layer is a sum of three: of the query's features, computed once per request; of those that an item has whoever
asks, which can be kept for other requests; and of all others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from models.arrays import Floats, Rows
from models.ranking.feature import Feature, Scope
from models.ranking.ranker_net import Inputs, RankerNet

FEW_REQUESTS = 64

Scoped = tuple[Tensor, Mapping[str, Tensor]]  # quantiles [N, F] of a scope and codes int64 [N, T] by feature


class MergedNets:
    """M members of one shape, trained. They are copied: what happens to them afterwards is not seen."""

    def __init__(self, members: Sequence[RankerNet]) -> None:
        first = members[0]
        tables = {space: torch.cat([net.tables[space].weight for net in members], dim=1) for space in first.tables}  # type: ignore[misc]
        self._query = _FirstLayer(members, "query", None, tables)
        self._items = _FirstLayer(members, "impression", True, tables)
        self._others = _FirstLayer(members, "impression", False, tables)
        self._bias = torch.stack([net.bias for net in members])[:, None]  # [M, 1, H]
        layers = zip(*([*net.layers, *([] if net.last is None else [net.last])] for net in members), strict=True)
        self._layers = [_stacked(layer) for layer in layers]

    def of_items(self, x: Tensor, ids: Mapping[str, Tensor]) -> Tensor:
        """The first layer's part of N items: [M, N, H]"""
        with torch.inference_mode():
            return self._items(x, ids)

    def logits(self, query: Scoped, items: Tensor, others: Scoped, request: Rows) -> Floats:
        """float32 [M, N, 1 + completion]. items [M, N, H]: `of_items`, `others` the other features of scope impression;
        request int64 [N]: which of the queries each candidate belongs to."""
        with torch.inference_mode():
            of_query = self._query(*query).add_(self._bias)  # [M, B, H]
            hidden = self._others(*others, items)  # [M, N, H]
            _add_queries(hidden, of_query, request)
            for weight, bias in self._layers:
                hidden = torch.baddbmm(bias, hidden.relu_(), weight)
            return np.asarray(hidden.float().numpy())


class _FirstLayer:
    """The first layer's part of some features of a scope: of those of the item alone, or of all others; None: of
    all."""

    def __init__(
        self, members: Sequence[RankerNet], scope: Scope, of_item: bool | None, tables: Mapping[str, Tensor]
    ) -> None:
        self._inputs = members[0].query if scope == "query" else members[0].impression
        self._ids = [feature for feature in self._inputs.ids if feature.is_among(scope, of_item)]
        columns = torch.tensor(_columns(self._inputs, of_item), dtype=torch.int64)
        weights = [net.of_query if scope == "query" else net.of_impression for net in members]
        self._weight = torch.stack([weight[:, columns].t() for weight in weights]).contiguous()  # [M, width, H]
        self._tables = tables

    def __call__(self, x: Tensor, ids: Mapping[str, Tensor], beside: Tensor | None = None) -> Tensor:
        """x [N, F], ids int64 [N, T] by feature -> [M, N, H], added to what is `beside`"""
        members, width, _ = self._weight.shape
        numbers = self._inputs.numbers(x)  # [N, 4 F]
        inputs = torch.empty((members, len(x), width), dtype=self._weight.dtype)
        at = numbers.shape[1]
        inputs[:, :, :at] = numbers
        for feature in self._ids:
            embedded = self._embed(feature, ids[feature.name])  # [N, M W]
            wide = embedded.shape[1] // members
            inputs[:, :, at : at + wide] = embedded.view(len(x), members, wide).transpose(0, 1)
            at += wide
        return torch.bmm(inputs, self._weight) if beside is None else torch.baddbmm(beside, inputs, self._weight)

    def _embed(self, feature: Feature, codes: Tensor) -> Tensor:
        """[N, T] -> [N, M W]: the mean of the ids that are known; that of code 0 is zero."""
        table = self._tables[str(feature.space)]
        found = table.index_select(0, codes.reshape(-1))
        if not feature.many:
            return found
        known = (codes > 0).sum(dim=1, keepdim=True).clamp_min_(1)
        return found.view(*codes.shape, table.shape[1]).sum(dim=1) / known.to(table.dtype)


def _columns(inputs: Inputs, of_item: bool | None) -> list[int]:
    """The columns of a network's inputs that are of these features, in their order."""
    return [at for at, feature in enumerate(inputs.columns) if feature.is_among(inputs.scope, of_item)]


def _stacked(layers: Sequence[torch.nn.Linear]) -> tuple[Tensor, Tensor]:
    """Weights [M, in, out] and biases [M, 1, out] of one layer of all members."""
    weight = torch.stack([layer.weight.t() for layer in layers]).contiguous()
    return weight, torch.stack([layer.bias for layer in layers])[:, None]


def _add_queries(hidden: Tensor, query: Tensor, request: Rows) -> None:
    """Add to each candidate's row [M, N, H] that of its request [M, B, H]. A few requests whose candidates lie
    together, as in serving, need no copy for every candidate."""
    requests = query.shape[1]
    if requests > FEW_REQUESTS or (np.diff(request) < 0).any():
        hidden += query[:, torch.from_numpy(request)]
        return
    starts = np.searchsorted(request, np.arange(requests + 1)).tolist()
    for at in range(requests):
        hidden[:, starts[at] : starts[at + 1]] += query[:, at : at + 1]
