"""The dealing of examples into steps: shuffled anew each epoch, and a short log into smaller batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from models.arrays import Rows

LEAST_BATCH = 64
CHUNK = 4096  # neighbours in time that are read together
POOL = 512  # chunks shuffled together: two million examples


def batch_size(examples: int, *, largest: int, least_steps: int) -> int:
    """`largest`, or less where an epoch would have fewer than `least_steps` steps: a small log would end before
    anything is learnt."""
    return min(largest, max(LEAST_BATCH, examples // least_steps))


def epoch_batches(examples: int, batch: int, rng: np.random.Generator) -> Iterator[Rows]:
    """The numbers 0..examples-1 once, shuffled, in batches of `batch` (the last may be smaller).

    Shuffled in pools of chunks, so that neither the order nor the reading of a long log needs it whole in memory."""
    pool: list[Rows] = []
    left = np.empty(0, np.int64)
    starts = rng.permutation(np.arange(0, examples, CHUNK))
    for number, start in enumerate(starts.tolist()):
        pool.append(np.arange(start, min(start + CHUNK, examples)))
        if len(pool) < POOL and number + 1 < len(starts):
            continue
        mixed = np.concatenate([left, rng.permutation(np.concatenate(pool))])
        pool = []
        whole = len(mixed) - len(mixed) % batch if number + 1 < len(starts) else len(mixed)
        for at in range(0, whole, batch):
            yield mixed[at : at + batch]
        left = mixed[whole:]
