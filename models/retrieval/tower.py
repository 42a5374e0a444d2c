"""The user tower (paper section 3.3): what is known of a user, side by side, through ReLU layers to an item's width.

The net knows nothing of the loss, of time, or of how rows are numbered outside. Blocks of input that a log does not
have (searches, context) are not part of its tower, so nothing is learnt from constants.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor, nn

from models.retrieval.encoders import (
    AttentionEncoder,
    AverageEncoder,
    RecentEncoder,
    mean_of,
    recent_sum_of,
    root_sum_of,
)
from models.retrieval.hyper_parameters import EncoderName

CONTEXT_DIM = 8


class TowerShape(msgspec.Struct, frozen=True):
    """The description of a tower, as it stands in a bundle's manifest.

    `words`: width of search embeddings, 0 without searches. `contexts`: number of codes of each context field.
    `traits`: reals such as age and gender. `members`: towers that were trained apart and answer together, each with its
    own slice of the embeddings. `linear`: width of the item-to-item part (models.retrieval.linear) behind them,
    `ordered` when the newest watches count most in it. Towers that validation gave the weight 0 are muted: zero for
    every user, so that nothing is learnt live through them either. A linear part of weight 0 is left out; older
    bundles have it, muted.
    `skips`: how many of the newest uncompleted watches are read.
    """

    dim: int
    hidden: tuple[int, ...] = (256,)
    encoder: EncoderName = "average"
    residual: bool = True
    words: int = 0
    contexts: tuple[int, ...] = ()
    traits: int = 0
    example_age: bool = False
    dropout: float = 0.0
    members: int = 1
    linear: int = 0
    muted_towers: bool = False
    muted_linear: bool = False
    ordered: bool = False
    skips: int = 0

    @property
    def width(self) -> int:
        """The numbers that go into the first layer."""
        watches = self.dim * (2 if self.skips else 1)
        return watches + self.words + CONTEXT_DIM * len(self.contexts) + 2 * self.traits + 2 * self.example_age


class Inputs(NamedTuple):
    """The inputs of a tower for a batch: embeddings of the distinct items [U, D] and words [W, E], and per user the
    places of the completed watches [B, H] and of the searched words [B, Q] among them (-1 for none), context codes
    [B, K], traits [B, M] (NaN unknown), example age [B], places of the uncompleted watches [B, S]."""

    watched: Tensor
    watch_places: Tensor
    words: Tensor
    word_places: Tensor
    context: Tensor
    traits: Tensor
    age: Tensor
    skip_places: Tensor


class Dropout(nn.Module):
    """nn.Dropout, drawn from uniform numbers: those of its own kind cost torch three times as much on a CPU."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self._scale = 1 / (1 - share) if share < 1 else 0.0

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand_like(x) >= self.share).mul(self._scale) if self.training else x


class UserTower(nn.Module):
    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = encoder_of(shape)
        self.contexts = nn.ModuleList(nn.Embedding(size, CONTEXT_DIM, padding_idx=0) for size in shape.contexts)
        widths = [shape.width, *shape.hidden]
        layers: list[nn.Module] = []
        for width, following in pairwise(widths):
            layers += [nn.Linear(width, following), nn.ReLU(), *([Dropout(shape.dropout)] if shape.dropout else [])]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], shape.dim))

    def forward(self, inputs: Inputs) -> Tensor:
        """-> user vectors [B, D], finite also where nothing is known"""
        shape = self.shape
        watched = self.encoder(inputs.watched, inputs.watch_places)  # [B, D]
        parts = [watched]
        if shape.skips:
            parts.append(mean_of(inputs.watched, inputs.skip_places))
        if shape.words:
            parts.append(mean_of(inputs.words, inputs.word_places))
        for field, embedding in enumerate(self.contexts):
            parts.append(embedding(inputs.context[:, field]))
        if shape.traits:
            known = ~inputs.traits.isnan()
            parts += [inputs.traits.nan_to_num(0.0), known.float()]
        if shape.example_age:
            parts.append(torch.stack([inputs.age, inputs.age.sqrt()], dim=1))
        encoded: Tensor = self.layers(torch.cat(parts, dim=1) if len(parts) > 1 else watched)
        return encoded + watched if shape.residual else encoded


class UserTowers(nn.Module):
    """The towers as serving asks them: every member's tower on its slice of the embeddings, and behind them the linear
    part."""

    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.shape = shape
        self.members = nn.ModuleList(UserTower(shape) for _ in range(shape.members))

    def forward(self, inputs: Inputs) -> Tensor:
        """Inputs as of one tower, but watched [U, item_dim] and words [W, members * words]. -> [B, item_dim]"""
        shape, parts = self.shape, []
        for number, member in enumerate(self.members):
            watched = inputs.watched[:, number * shape.dim : (number + 1) * shape.dim]
            words = inputs.words[:, number * shape.words : (number + 1) * shape.words]
            parts.append(member(inputs._replace(watched=watched, words=words)))
        if shape.linear:
            sum_of = recent_sum_of if shape.ordered else root_sum_of
            parts.append(sum_of(inputs.watched[:, -shape.linear :], inputs.watch_places))
        users = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        if shape.muted_towers:
            users[:, : shape.members * shape.dim] = 0
        if shape.muted_linear:
            users[:, shape.members * shape.dim :] = 0
        return users


def encoder_of(shape: TowerShape) -> AverageEncoder | RecentEncoder | AttentionEncoder:
    if shape.encoder == "average":
        return AverageEncoder()
    return RecentEncoder() if shape.encoder == "recent" else AttentionEncoder(shape.dim, shape.dropout)
