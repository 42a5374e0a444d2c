"""Chooses the best rows by their scores, or by what their scores can be at most.

With upper bounds in place of scores few rows must be scored, and the answer is the one that scoring them all would
give. Those with the highest bounds are scored first; the last of the best of these is a value that many reach, so a
row whose bound lies below it cannot be one of the best. All others are scored too.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from models.arrays import Floats, Rows

GROUPS = 4  # for each item of an answer: rows are grouped to find out what the last of the best reaches
NOTHING = np.float32(-np.inf)


def best_rows(scores: Floats, limit: int, least: np.float32) -> tuple[Rows, Floats]:
    """[N] -> the `limit` rows with the largest scores and these, best first, ties in the order of rows; none below
    `least`."""
    rows = np.flatnonzero(scores >= max(_reached(scores, limit), least))
    return _sorted(rows, scores[rows], limit)


def best_by_bounds(
    bounds: Floats, slack: float, limit: int, least: np.float32, score: Callable[[Rows], Floats]
) -> tuple[Rows, Floats]:
    """The same by `score`, which is asked for some rows only: no row's may be above its bound, [N], plus `slack`. A
    bound that is not a number bounds nothing. `bounds` is written to."""
    reached = float(max(_reached(bounds, limit), least)) - slack
    rows = _not_below(bounds, reached)
    scores = score(rows)
    if len(rows) < limit:  # all that may be shown are among them
        return _best(rows, scores, limit, least)
    wanted = float(max(np.partition(scores, -limit)[-limit], least)) - slack
    if not wanted >= reached:
        bounds[rows] = NOTHING
        others = _not_below(bounds, wanted)
        rows, scores = np.concatenate((rows, others)), np.concatenate((scores, score(others)))
    return _best(rows, scores, limit, least)


def _not_below(bounds: Floats, value: float) -> Rows:
    return np.flatnonzero(~(bounds < value))


def _best(rows: Rows, scores: Floats, limit: int, least: np.float32) -> tuple[Rows, Floats]:
    order = np.argsort(rows)
    rows, scores = rows[order], scores[order]
    shown = scores >= least
    return _sorted(rows[shown], scores[shown], limit)


def _sorted(rows: Rows, scores: Floats, limit: int) -> tuple[Rows, Floats]:
    order = np.argsort(-scores, kind="stable")[:limit]
    return rows[order], scores[order]


def _reached(scores: Floats, limit: int) -> np.float32:
    """[N] -> a value that at least `limit` of them reach, and not many more. Groups of rows have a best one each: the
    limit-th best of these will do, and is found among far fewer."""
    size = len(scores) // (GROUPS * limit)
    if size > 1:
        count = len(scores) // size
        scores = np.concatenate((scores[: size * count].reshape(size, count).max(axis=0), scores[size * count :]))
    return np.float32(np.partition(scores, -limit)[-limit]) if limit < len(scores) else NOTHING
