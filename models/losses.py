"""The two losses of the paper: importance-corrected sampled softmax (3.1) and watch-time weighted logistic (4.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST = -1e30  # a logit that weighs nothing; minus infinity has no gradient where all negatives are hits


def sampled_softmax(positive: Tensor, negatives: Tensor, log_expected: Tensor, hits: Tensor) -> Tensor:
    """Negative log likelihood per example under a softmax whose denominator is estimated from a sample.

    positive [B]: logit of the watched item, not corrected. negatives [B, S]: logits of the sample.
    log_expected [S]: log of how often each is expected in the sample; it is *subtracted*, so that the sum over the
    sample is an unbiased estimate of the sum over all other items. hits [B, S]: negatives that are the positive itself,
    left out. Returns [B].
    """
    corrected = (negatives - log_expected).masked_fill_(hits, LEAST)  # [B, S]
    return F.softplus(torch.logsumexp(corrected, dim=1) - positive)


def watch_time_logistic(logit: Tensor, watch_s: Tensor) -> Tensor:
    """Weighted logistic regression in its unbiased form: each impression enters once as a positive of weight T and once
    as a negative of weight 1, so that the odds exp(logit) are E[T] in seconds whatever the share of watched ones.
    [B], [B] -> [B]."""
    return watch_s * F.softplus(-logit) + F.softplus(logit)
