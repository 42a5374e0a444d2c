"""One share out of counts of several speeds: what is watched within hours as far as that is enough to go by, else
within days, weeks, or of all time.

With c an item's decayed watches by one half-life, n those of all items, and q its share by the next slower one, its
share is (c + m q) / (n + m): Dirichlet smoothing, as of language models. Where n is well above m the present decides,
where it is well below, the past. So a busy stream, a quiet one and the end of an old log need no settings of their own.
A quarter of the share is that of all time however much is watched now: who has watched nothing yet begins with what
everybody has watched. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np

from models.arrays import Doubles, Rows
from streams.messages import Trending

BACK_OFF = 2000.0  # m, in watches
EVER = 0.25  # of a share, that of all time
_LEAST_S = 1e-3  # of a half-life: messages may say 0


def shares_of(counts: Doubles, totals: Doubles, base: Doubles | None = None) -> Doubles:
    """counts [N, L] by half-life, the fastest first and all time last; totals [L] of all items -> shares [N].

    `base` [N]: the shares where even all time is too little to go by; without it all time is the last word."""
    ever = counts[:, -1] / max(totals[-1], 1.0) if base is None else _smoothed(counts[:, -1], totals[-1], base)
    share = ever
    for level in reversed(range(counts.shape[1] - 1)):
        share = _smoothed(counts[:, level], totals[level], share)
    return np.asarray(EVER * ever + (1 - EVER) * share)


def _smoothed(counts: Doubles, total: float, slower: Doubles) -> Doubles:
    return np.asarray((counts + BACK_OFF * slower) / (total + BACK_OFF))


def best_first(shares: Doubles, counts: Doubles) -> Rows:
    """Rows of N items, best first. Equal shares: by the watches of all time, then by the slowest decay (who was watched
    later), then what came later."""
    slowest = counts[:, max(0, counts.shape[1] - 2)]
    return np.lexsort((-np.arange(len(shares)), -slowest, -counts[:, -1], -shares))


def half_lives_of(message: Trending) -> tuple[float, ...]:
    """Seconds, the fastest first, all time (infinite) last."""
    return (message.half_life_s, *message.slower_s, inf)


def counts_by(message: Trending, half_lives_s: Sequence[float]) -> tuple[Doubles, Doubles]:
    """The message's counts [N, L] and totals [L] by these half-lives, all as of its own time: by each the counts of its
    first half-life that is as slow, else of its slowest. A message of before there were several knows one."""
    fast = np.array([count for _, count in message.items], np.float64).reshape(-1, 1)
    known, counts, totals = [message.half_life_s], fast, fast.sum(axis=0)
    width = len(message.slower_s) + 1
    if len(message.slower) == len(message.items) and all(len(row) == width for row in message.slower):
        known = list(half_lives_of(message))
        counts = np.concatenate([fast, np.array(message.slower, np.float64).reshape(-1, width)], axis=1)
        totals = np.array(message.totals) if len(message.totals) == width + 1 else counts.sum(axis=0)
    levels = np.minimum(np.searchsorted(known, half_lives_s), len(known) - 1)
    return counts[:, levels], totals[levels]


def decays(age_ms: float, half_lives_s: Sequence[float]) -> Doubles:
    """[L]: what is left of a watch after this time."""
    return np.asarray(np.exp2(-age_ms / 1000 / np.maximum(half_lives_s, _LEAST_S)))
