"""How examples are dealt into steps: shuffled anew each epoch, and a short log into smaller batches."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]

LEAST_BATCH = 64


def batch_size(examples: int, *, largest: int, least_steps: int) -> int:
    """`largest`, or less where an epoch would have fewer than `least_steps` steps: a small log would end before
    anything is learnt."""
    return min(largest, max(LEAST_BATCH, examples // least_steps))


def shuffled_batches(examples: Rows, batch: int, epochs: int, rng: np.random.Generator) -> list[Rows]:
    """Every example once per epoch, in batches of `batch` (the last of an epoch may be smaller)."""
    batches: list[Rows] = []
    for _ in range(epochs):
        shuffled = rng.permutation(examples)
        batches += [shuffled[start : start + batch] for start in range(0, len(shuffled), batch)]
    return batches
