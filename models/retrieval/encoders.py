"""Encoders of a history into one vector: the paper's average, one in which newer watches may count more, or causal
self-attention in the manner of SASRec.

All read the embeddings of the distinct items of a batch and, per user, which of them the history holds. The average
forgets order, as the paper does on purpose (section 3.3); learnt weights by place keep how long ago, at the same cost;
attention keeps all of it, at many times the cost.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.logs.pairs import KEPT
from models.logs.timeline import HISTORY

HEADS = 2
BLOCKS = 1
FADES = 0.8  # what is left of a watch's weight with each newer one, where training begins
LEAST = -1e30  # the logarithm of no weight


class AverageEncoder(nn.Module):
    """The mean of the history's embeddings; zero for an empty one."""

    def forward(self, vectors: Tensor, places: Tensor) -> Tensor:
        """vectors [U, D]: embeddings of the distinct items; places int64 [B, H]: which of them, -1 for none.
        -> [B, D]"""
        return mean_of(vectors, places)


class RecentEncoder(nn.Module):
    """The mean of the history's embeddings with a weight for each place, learnt; zero for an empty history."""

    def __init__(self) -> None:
        super().__init__()
        ago = torch.arange(HISTORY - 1, -1, -1, dtype=torch.float32)
        self.log_weights = nn.Parameter(ago * math.log(FADES))  # [HISTORY], the newest place last

    def forward(self, vectors: Tensor, places: Tensor) -> Tensor:
        """As AverageEncoder."""
        there = places >= 0  # [B, H]
        logs = self.log_weights[-places.shape[1] :].expand(places.shape)
        weights = logs.masked_fill(~there, LEAST).softmax(dim=1)
        return weighted_sum_of(vectors, places, weights)


class AttentionEncoder(nn.Module):
    """Blocks of causal self-attention over the newest watches; what the newest one has gathered is the user
    (Kang and McAuley, ICDM 2018)."""

    def __init__(self, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(HISTORY, dim))
        self.blocks = nn.ModuleList(AttentionBlock(dim, dropout) for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(dim)

    def forward(self, vectors: Tensor, places: Tensor) -> Tensor:
        """As AverageEncoder."""
        there = places >= 0  # [B, H]
        if not len(vectors):
            vectors = vectors.new_zeros(1, vectors.shape[1])
        x = F.embedding(places.clamp_min(0), vectors) * there[:, :, None]  # [B, H, D]
        x = x + self.positions[-places.shape[1] :] * there[:, :, None]
        steps = places.shape[1]
        causal = torch.ones(steps, steps, dtype=torch.bool, device=x.device).tril()
        # Padding looks at itself, so that no row of the mask is empty.
        itself = torch.eye(steps, dtype=torch.bool, device=x.device)
        mask = (causal & there[:, None, :]) | itself  # [B, H, H]
        for block in self.blocks:
            x = block(x, mask[:, None])
        encoded: Tensor = self.norm(x[:, -1]) * there[:, -1:]
        return encoded


class AttentionBlock(nn.Module):
    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [B, H, D]; mask bool [B, 1, H, H]: what may be looked at."""
        batch, steps, dim = x.shape
        qkv = self.qkv(self.before_attention(x)).view(batch, steps, 3, HEADS, dim // HEADS)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, heads, H, D / heads] each
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(batch, steps, dim)
        x = x + self.dropout(self.out(attended))
        changed: Tensor = x + self.dropout(self.mlp(self.before_mlp(x)))
        return changed


def mean_of(vectors: Tensor, places: Tensor) -> Tensor:
    """vectors [U, D]; places int64 [B, H], -1 for none -> the mean of each row's vectors [B, D], zero of none."""
    there = places >= 0
    lengths = there.sum(dim=1)
    starts = lengths.cumsum(0) - lengths
    if not len(vectors):
        return vectors.new_zeros(len(places), vectors.shape[1])
    if vectors.requires_grad and torch.is_grad_enabled() and vectors.device.type == "cpu":
        means: Tensor = Means.apply(vectors, places[there], starts, lengths)  # type: ignore[no-untyped-call]
        return means
    return F.embedding_bag(places[there], vectors, starts, mode="mean")


class Means(torch.autograd.Function):
    """The means of an embedding bag, their gradient worked out as one product with a sparse matrix: torch's own sorts
    all places first, which costs ten times as much."""

    @staticmethod
    def forward(context: Any, vectors: Tensor, held: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
        """vectors [U, D]; held int64 [K]: which of them, bag after bag; starts and lengths int64 [B] of the bags.
        -> [B, D]"""
        context.save_for_backward(held, starts, lengths)
        context.size = len(vectors)
        return F.embedding_bag(held, vectors, starts, mode="mean")

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        held, starts, lengths = context.saved_tensors
        bounds = np.append(starts.numpy(), len(held))
        bags = sp.csr_matrix((np.ones(len(held), np.float32), held.numpy(), bounds), (len(starts), context.size))
        each = gradient / lengths.clamp_min(1)[:, None]  # [B, D]
        return torch.from_numpy(bags.T @ each.numpy()), None, None, None


def root_sum_of(vectors: Tensor, places: Tensor) -> Tensor:
    """As mean_of, but the sum over the root of the number: a long history weighs more, though not in proportion."""
    return mean_of(vectors, places) * (places >= 0).sum(dim=1, keepdim=True).sqrt()


def recent_sum_of(vectors: Tensor, places: Tensor) -> Tensor:
    """As mean_of, but a sum in which the newest counts 1 and each older one KEPT of the one after it."""
    there = (places >= 0).long()
    newer = there.flip(1).cumsum(1).flip(1) - there  # [B, H]
    return weighted_sum_of(vectors, places, KEPT ** newer.float())


def weighted_sum_of(vectors: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    """weights float32 [B, H], of no matter where nothing is. -> [B, D], zero of none"""
    there = places >= 0
    lengths = there.sum(dim=1)
    starts = lengths.cumsum(0) - lengths
    if not len(vectors):
        return vectors.new_zeros(len(places), vectors.shape[1])
    return F.embedding_bag(places[there], vectors, starts, mode="sum", per_sample_weights=weights[there])
