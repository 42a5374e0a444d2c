"""The ranking network: id embeddings and quantiles with their powers, ReLU layers, one logit (paper section 4).

The first layer is a sum of two: of the query's features, computed once per request, and of the candidates'. What it
reads are codes and quantiles, not strings and seconds (see models.ranking.ranker), and it knows nothing of its loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.ranking.feature import Feature, Scope
from models.ranking.features import FEATURES
from models.ranking.hyper_parameters import Objective
from models.ranking.ranking_examples import CAP_S

# Mean and standard deviation of x, x^2 and sqrt(x) for x uniform in [0, 1].
POWERS = ((1 / 2, 0.2887), (1 / 3, 0.2981), (2 / 3, 0.2357))
POSITIONS = 200  # further down is all one
INIT = 0.05  # of embeddings


class RankerShape(msgspec.Struct, frozen=True):
    """`features`: names in use; `widths` and `sizes` by id space. `powers`: x^2 and sqrt(x) beside x. `position`: where
    an item stood is a side input in training. `completion`: a second head. `members`: networks whose logits average.
    `cap_s`: the most seconds that a watch counts for and that are promised. `isotonic`: a map makes seconds of odds.
    `objective`: the weights that it was trained with; not the paper's that were wanted with a map, where there is
    none."""

    hidden: tuple[int, ...]
    features: tuple[str, ...]
    sizes: dict[str, int]
    widths: dict[str, int]
    powers: bool = True
    position: bool = False
    completion: bool = False
    members: int = 1
    dropout: float = 0.0
    cap_s: float = CAP_S
    isotonic: bool = False
    objective: Objective = "unbiased"

    def used(self, scope: Scope) -> tuple[list[Feature], list[int], list[Feature]]:
        """Continuous features in use, their columns among all of the scope, and the id features in use."""
        of_scope = [feature for feature in FEATURES if feature.scope == scope]
        numbers = [feature for feature in of_scope if feature.is_number]
        columns = [at for at, feature in enumerate(numbers) if feature.name in self.features]
        return (
            [numbers[at] for at in columns],
            columns,
            [feature for feature in of_scope if not feature.is_number and feature.name in self.features],
        )


class Inputs(nn.Module):
    """The features of one scope as one row: embeddings, powers of quantiles, flags of what is missing."""

    def __init__(self, shape: RankerShape, scope: Scope, tables: nn.ModuleDict) -> None:
        super().__init__()
        numbers, _, self.ids = shape.used(scope)
        self.scope = scope
        self._tables = [tables]  # in a list: the tables belong to the network, and are shared by both scopes
        self.powers = POWERS if shape.powers else POWERS[:1]
        embedded = [each for each in self.ids for _ in range(shape.widths[str(each.space)])]
        self.columns = [*numbers * (len(self.powers) + 1), *embedded]  # the feature of each column of a row

    @property
    def width(self) -> int:
        return len(self.columns)

    def forward(self, x: Tensor, ids: Mapping[str, Tensor]) -> Tensor:
        """x [N, F] quantiles, NaN missing; ids int64 [N, M] by feature -> [N, width]"""
        return self.joined(self.numbers(x), ids)

    def numbers(self, x: Tensor) -> Tensor:
        """Powers and flags: nothing in them is learnt, so that members can share them."""
        missing = torch.isnan(x)
        x = x.nan_to_num(0.5)
        values = (x, x * x, x.sqrt())
        columns = [((v - m) / s).masked_fill(missing, 0.0) for v, (m, s) in zip(values, self.powers, strict=False)]
        return torch.cat([*columns, missing.float()], dim=1)

    def joined(self, numbers: Tensor, ids: Mapping[str, Tensor]) -> Tensor:
        """The numbers and this network's embeddings."""
        return torch.cat([numbers, *(self._embed(feature, ids[feature.name]) for feature in self.ids)], dim=1)

    def _embed(self, feature: Feature, codes: Tensor) -> Tensor:
        weight: Tensor = self._tables[0][str(feature.space)].weight  # type: ignore[assignment]
        if feature.many:
            bag: Tensor = F.embedding_bag(codes, weight, mode="mean", padding_idx=0)
            return bag
        return F.embedding(codes[:, 0], weight, padding_idx=0)


class RankerNet(nn.Module):
    """One member. Without hidden layers it is the plain logistic regression."""

    def __init__(self, shape: RankerShape) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({s: _table(shape.sizes[s], shape.widths[s]) for s in shape.sizes})
        self.query = Inputs(shape, "query", self.tables)
        self.impression = Inputs(shape, "impression", self.tables)
        first = shape.hidden[0] if shape.hidden else 1 + shape.completion
        both = nn.Linear(self.query.width + self.impression.width, first)
        self.bias = nn.Parameter(both.bias.detach().clone())
        self.of_query = nn.Parameter(both.weight[:, : self.query.width].detach().clone())
        self.of_impression = nn.Parameter(both.weight[:, self.query.width :].detach().clone())
        self.dropout = nn.Dropout(shape.dropout)
        self.layers = nn.ModuleList(nn.Linear(width, following) for width, following in pairwise(shape.hidden))
        self.last = nn.Linear(shape.hidden[-1], 1 + shape.completion) if shape.hidden else None
        self.position = nn.Embedding(POSITIONS + 1, 1, padding_idx=0) if shape.position else None
        if self.position is not None:
            nn.init.zeros_(self.position.weight)

    def query_part(self, x: Tensor, ids: Mapping[str, Tensor]) -> Tensor:
        """The first layer's part of B queries: [B, hidden]"""
        return F.linear(self.query(x, ids), self.of_query, self.bias)

    def forward(self, query: Tensor, x: Tensor, ids: Mapping[str, Tensor]) -> Tensor:
        """query [N, hidden] or [1, hidden]: query_part of each candidate's request -> logits [N, 1 + completion]"""
        return self.rest(F.linear(self.impression(x, ids), self.of_impression) + query)

    def rest(self, hidden: Tensor) -> Tensor:
        """From what the first layer sums up, [N, hidden], to logits. Writes into it."""
        if self.last is None:
            return hidden
        hidden = self.dropout(hidden.relu_())
        for layer in self.layers:
            hidden = self.dropout(layer(hidden).relu_())
        logits: Tensor = self.last(hidden)
        return logits

    def position_part(self, position: Tensor) -> Tensor:
        """[N] places from 1, 0 for not known -> [N]: what a place adds to the logit. Serving leaves it out."""
        if self.position is None:
            return torch.zeros(len(position), device=position.device)
        shift: Tensor = self.position(position.clamp(0, POSITIONS)).squeeze(1)
        return shift


def _table(size: int, width: int) -> nn.Embedding:
    """Code 0 is zero and stays it: an unknown id says nothing."""
    table = nn.Embedding(size, width, padding_idx=0)
    nn.init.normal_(table.weight, std=INIT)
    with torch.no_grad():
        table.weight[0] = 0
    return table
