"""How examples are dealt into steps: shuffled anew each epoch, and a short log into smaller batches."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]

LEAST_STEPS = 50  # per epoch: with fewer, a small log would end before anything is learnt
LEAST_BATCH = 64


def batch_size(examples: int, largest: int) -> int:
    """`largest`, or less where that would make an epoch too short."""
    return min(largest, max(LEAST_BATCH, examples // LEAST_STEPS))


def shuffled_batches(examples: Rows, batch: int, epochs: int, rng: np.random.Generator) -> list[Rows]:
    """Every example once per epoch, in batches of `batch` (the last of an epoch may be smaller)."""
    batches: list[Rows] = []
    for _ in range(epochs):
        shuffled = rng.permutation(examples)
        batches += [shuffled[start : start + batch] for start in range(0, len(shuffled), batch)]
    return batches
