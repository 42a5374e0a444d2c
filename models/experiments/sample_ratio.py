"""The sequential check of an experiment's sample ratio: viewers that are missing from one variant more than chance
explains mean that what was measured is of other viewers, and nothing may be concluded.

The Bayes factor of a Dirichlet-multinomial against the planned shares (Lindon and Malek, "Anytime-valid inference for
multinomial count data", NeurIPS 2022): under the shares it is a martingale that begins at 1, so it reaches 1 / alpha
with a probability of alpha at most, however often it is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import gammaln

CONCENTRATION = 100.0  # of the prior about the shares: deviations of about a tenth are looked for first
ALPHA = 0.01


def log_bayes_factor(counts: Sequence[int], shares: Sequence[float]) -> float:
    """The logarithm of how much better other shares than these explain the viewers of each variant. Shares are brought
    to a sum of 1."""
    seen, planned = np.asarray(counts, np.float64), np.asarray(shares, np.float64)
    planned = planned / planned.sum()
    prior = CONCENTRATION * planned
    other = (
        gammaln(CONCENTRATION) - gammaln(CONCENTRATION + seen.sum()) + (gammaln(prior + seen) - gammaln(prior)).sum()
    )
    return float(other - (seen * np.log(planned)).sum())


def is_off(counts: Sequence[int], shares: Sequence[float], alpha: float = ALPHA) -> bool:
    """True when the shares are not what they were planned to be; of experiments that are well, with a probability of
    alpha at most over all looks."""
    return log_bayes_factor(counts, shares) >= -math.log(alpha)
