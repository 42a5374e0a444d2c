"""Puts together a list whose items are unlike each other, greedily: of what is left, the best by score and by distance.

Both kinds pick the candidate with the largest (1 - weight) * score - weight * likeness, scores brought to [0, 1] over
the pool. They differ in the likeness: MMR (Carbonell and Goldstein 1998) looks at the nearest of those picked, the
cosine of the vectors; the determinantal point process (greedy MAP: Chen, Zhang and Zhou 2018) at all of them, minus the
log of what is left of the candidate's own direction. A step costs one product of the pool's vectors with one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Doubles = NDArray[np.float64]
Likeness = Callable[[int], Doubles]  # takes the row of the next pick, gives the likeness of all to those picked so far

LEAST_LEFT = 1e-9  # of a direction: what lies within those picked
UNBOUNDED = 2**62


def pick_apart(
    scores: NDArray[Any],
    vectors: NDArray[Any],
    channels: NDArray[np.integer[Any]],
    *,
    most: int,
    cap: int,
    kind: str,
    weight: float,
) -> Rows:
    """Rows of the pool [Q], in the order of being picked, at most `most` and `cap` of a channel (0: any number).

    scores [Q], finite, best first; vectors [P + Q, D] and channels [P + Q], those of P items that are picked already in
    front."""
    given = len(vectors) - len(scores)
    like = _likeness(kind, vectors, given + most)
    worth = (1 - weight) * _to_unit_range(scores)
    codes, channel = np.unique(channels, return_inverse=True)
    room = np.where((codes > 0) & (cap > 0), cap, UNBOUNDED)
    open_ = np.ones(len(vectors), np.bool_)
    likeness = np.zeros(len(vectors))
    picked: list[int] = []
    for step in range(given + most):
        at = step
        if step >= given:
            gain = np.where(open_[given:], worth - weight * likeness[given:], -np.inf)
            at = given + int(gain.argmax()) if len(gain) else -1
            if at < 0 or not open_[at]:
                break
            picked.append(at - given)
        open_[at] = False
        room[channel[at]] -= 1
        if room[channel[at]] <= 0:
            open_ &= channel != channel[at]
        likeness = like(at)
    return np.array(picked, np.int64)


def _likeness(kind: str, vectors: NDArray[Any], steps: int) -> Likeness:
    unit = _unit_vectors(vectors)
    return to_nearest(unit) if kind == "mmr" else to_all(unit, steps)


def to_nearest(unit: Doubles) -> Likeness:
    """The cosine to the nearest of those picked. unit float64 [N, D]"""
    nearest = np.full(len(unit), -1.0)

    def add(at: int) -> Doubles:
        return np.asarray(np.maximum(nearest, unit @ unit[at], out=nearest))

    return add


def to_all(unit: Doubles, steps: int) -> Likeness:
    """Minus the log of the squared length that each has outside of all those picked, by a Cholesky row for each pick.
    unit float64 [N, D]"""
    left, rows = np.ones(len(unit)), np.zeros((steps, len(unit)))
    done = 0

    def add(at: int) -> Doubles:
        nonlocal done
        row = (unit @ unit[at] - rows[:done, at] @ rows[:done]) / np.sqrt(left[at])
        rows[done] = row
        done += 1
        np.maximum(left - row**2, LEAST_LEFT, out=left)
        return np.asarray(-np.log(left))

    return add


def _unit_vectors(vectors: NDArray[Any]) -> Doubles:
    """Rows of length 1; a row that has none, or is not finite, is like nothing."""
    rows = np.asarray(vectors, np.float64)
    rows = np.where(np.isfinite(rows).all(axis=1, keepdims=True), rows, 0.0)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


def _to_unit_range(scores: NDArray[Any]) -> Doubles:
    if not len(scores):
        return np.zeros(0)
    scores = np.asarray(scores, np.float64)
    low, width = scores.min(), np.ptp(scores)
    return np.asarray((scores - low) / width if width > 0 else np.zeros(len(scores)))
