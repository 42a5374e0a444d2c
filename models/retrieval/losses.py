"""The two losses of the paper: importance-corrected sampled softmax (3.1) and watch-time weighted logistic (4.2)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

LEAST = -1e30  # a logit that weighs nothing; minus infinity has no gradient where all negatives are hits


class SharedSoftmax(torch.autograd.Function):
    """Sampled softmax of dot products with negatives that the batch shares, its gradient worked out by hand. A test
    holds it against the plain definition.

    Autograd would keep and walk through several [B, S] arrays; here one is filled once, and the gradients are two
    matrix products of it. A product that no one asks for (the users', where the tower is frozen) is left out.
    """

    @staticmethod
    def forward(
        context: Any, users: Tensor, own: Tensor, own_bias: Tensor, others: Tensor, bias: Tensor, extra: Extra
    ) -> Tensor:
        """users [B, D]; own [B, D] and own_bias [B]: vectors and biases of the positives; others [S, D] and bias [S]:
        of the negatives; `extra`: what is added without being learnt. -> [B]"""
        if extra.others.dim() == 1:
            logits = torch.addmm(bias + extra.others, users, others.T)  # [B, S]
        else:
            logits = extra.others.addmm_(users, others.T).add_(bias)
        logits[extra.hits[0], extra.hits[1]] = LEAST
        positive = torch.linalg.vecdot(users, own) + own_bias + extra.own  # [B]
        top = torch.maximum(logits.amax(dim=1), positive)  # [B]
        weights = logits.sub_(top[:, None]).exp_()  # [B, S]
        weight = (positive - top).exp()  # [B]
        total = weights.sum(dim=1) + weight
        context.save_for_backward(users, own, others, weights, total, weight / total)
        losses: Tensor = total.log() + top - positive
        return losses

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        users, own, others, weights, total, share = context.saved_tensors
        scale = (gradient / total)[:, None]  # [B, 1]
        missing = (gradient * (share - 1))[:, None]  # [B, 1]: the positive's part
        needed = context.needs_input_grad
        return (
            (weights @ others) * scale + missing * own if needed[0] else None,
            missing * users if needed[1] else None,
            missing[:, 0] if needed[2] else None,
            weights.T @ (users * scale) if needed[3] else None,
            weights.T @ scale[:, 0] if needed[4] else None,
            None,
        )


class Extra(NamedTuple):
    """Terms that are added to the logits without being learnt. own [B]: popularity of the positives. others [S] or [B,
    S]: popularity of the negatives minus the log of their expected counts; [B, S] is overwritten. hits int64 [2, K]:
    which example and which negative are the same item."""

    own: Tensor
    others: Tensor
    hits: Tensor


def shared_softmax(users: Tensor, own: Tensor, own_bias: Tensor, others: Tensor, bias: Tensor, extra: Extra) -> Tensor:
    """See SharedSoftmax. -> [B]"""
    losses: Tensor = SharedSoftmax.apply(users, own, own_bias, others, bias, extra)  # type: ignore[no-untyped-call]
    return losses


def watch_time_logistic(logit: Tensor, watch_s: Tensor) -> Tensor:
    """Weighted logistic regression in its unbiased form: each impression enters once as a positive of weight T and once
    as a negative of weight 1, so that the odds exp(logit) are E[T] in seconds whatever the share of watched ones.
    [B], [B] -> [B]."""
    return watch_s * F.softplus(-logit) + F.softplus(logit)


def paper_logistic(logit: Tensor, watch_s: Tensor, watched: Tensor) -> Tensor:
    """The same as in the paper (section 4.2): a watched impression is a positive of weight T, another one a negative of
    weight 1. The odds are E[T] / (1 - P), P the watched share, which is about E[T] only where P is small.
    [B], [B], bool [B] -> [B]."""
    return torch.where(watched, watch_s * F.softplus(-logit), F.softplus(logit))
