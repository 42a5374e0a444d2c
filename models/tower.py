"""The networks of candidate generation: item tables with side embeddings, and the user tower over a history's mean.

The nets know nothing of the loss, of time, or of how rows are numbered outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

HISTORY = 50  # completed watches averaged (paper section 3.3)
TOPICS = 8  # most topics averaged per item
INITIAL = 0.05  # standard deviation of an item's own embedding at the start


class ItemTable(nn.Module):
    """Embeddings of items: an own row, plus the channel's, plus the mean of the topics'.

    The side embeddings start at zero; code 0 (unknown) stays there. An item is placed before its first watch.
    """

    channels: Tensor
    topics: Tensor

    def __init__(self, channels: npt.NDArray[np.int64], topics: npt.NDArray[np.int64], dim: int) -> None:
        """channels int64 [N] and topics int64 [N, T]: codes from the catalogue."""
        super().__init__()
        self.register_buffer("channels", torch.from_numpy(channels.astype(np.int64)))
        self.register_buffer("topics", torch.from_numpy(topics.astype(np.int64)))
        self.own = nn.Parameter(torch.randn(len(channels), dim) * INITIAL)
        self.channel = nn.Parameter(torch.zeros(int(channels.max(initial=0)) + 1, dim))
        self.topic = nn.Parameter(torch.zeros(int(topics.max(initial=0)) + 1, dim))

    def forward(self, rows: Tensor) -> Tensor:
        """rows [N] -> [N, D]"""
        channel = F.embedding(self.channels[rows], self.channel, padding_idx=0)  # [N, D]
        topic = F.embedding_bag(self.topics[rows], self.topic, mode="mean", padding_idx=0)  # [N, D]
        return self.own[rows] + channel + topic


class UserTower(nn.Module):
    """Mean of the history's embeddings, ReLU layers, and a linear layer to the width of the item vectors."""

    def __init__(self, dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        widths = [dim, *hidden]
        layers: list[nn.Module] = []
        for width, following in pairwise(widths):
            layers += [nn.Linear(width, following), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], dim))

    def forward(self, vectors: Tensor, index: Tensor, starts: Tensor) -> Tensor:
        """vectors [U, D]: embeddings of the distinct items; index [K]: which of them each history holds, history after
        history; starts [B]: where each begins. An empty history is the zero vector. -> [B, D]"""
        mean = F.embedding_bag(index, vectors, starts, mode="mean")  # [B, D]
        encoded: Tensor = self.layers(mean)
        return encoded


def bag_histories(rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
    """From padded histories (int64 [B, H], -1 where there is none) to distinct rows [U], index [K], starts [B].

    Training and serving both come through here, so that a user's vector is the same in both.
    """
    there = rows >= 0
    lengths = there.sum(axis=1)
    distinct, index = np.unique(rows[there], return_inverse=True)
    starts = np.cumsum(lengths) - lengths
    return torch.from_numpy(distinct), torch.from_numpy(index), torch.from_numpy(starts)
