"""The metrics of a ranking, each with the objective that it favours. Pure; hand-computed numbers in the tests.

| metric | what | favours |
| --- | --- | --- |
| weighted per-user loss | of the seconds in pairs (watched, unwatched), those that were put below the other | E[T] |
| calibration | sum predicted / sum watched, also by decile of the prediction | E[T] |
| top-1 seconds | watched seconds of what a page's first place would have been | E[T] |
| MAE | mean absolute error in seconds | the median |
| XAUC | share of all pairs whose watch times are in the predicted order | the median, a monotone of it |
| GAUC | of each user's pairs (completed, not), the share in order, users weighted by their rows | P(completed) |
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.arrays import Doubles, Flags, Rows

Values = npt.NDArray[np.floating]


class PairLoss(NamedTuple):
    """Per group of rows shown together [G]: seconds that weigh in pairs, and those of them that were misordered."""

    groups: Rows
    weight: Doubles
    misordered: Doubles


def pair_loss(groups: Rows, score: Values, seconds: Values, watched: Flags) -> PairLoss:
    """The paper's weighted per-user loss (section 4.3): over pairs (watched, unwatched) of one group, the seconds of
    the watched one, misordered when the unwatched one has the greater score; a tie is half. [N] each; the work grows
    with the pairs of a group, and groups are pages."""
    order = np.argsort(groups, kind="stable")
    starts, stops = _runs(groups[order])
    found, weights, wrong = [], [], []
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        rows = order[start:stop]
        good, bad = rows[watched[rows]], rows[~watched[rows]]
        if not len(good) or not len(bad):
            continue
        others = np.sort(score[bad])
        above = len(others) - (np.searchsorted(others, score[good]) + np.searchsorted(others, score[good], "right")) / 2
        found.append(groups[rows[0]])
        weights.append(float(seconds[good].sum()))
        wrong.append(float((seconds[good] * above / len(others)).sum()))
    return PairLoss(np.array(found, np.int64), np.array(weights), np.array(wrong))


def xauc_parts(predicted: Values, watched_s: Values) -> tuple[Doubles, Doubles]:
    """Count for each row [N] its pairs with rows of another watch time that are in order (ties half), and all such
    pairs.

    By counting in a Fenwick tree of the predictions: N log N."""
    n = len(predicted)
    ranks = np.unique(predicted, return_inverse=True)[1].reshape(-1)
    order = np.argsort(watched_s, kind="stable")
    stops = np.r_[np.flatnonzero(np.diff(watched_s[order])) + 1, n] if n else np.zeros(0, np.int64)
    less = _below(ranks[order], stops)  # of the rows with less watch time: how many are predicted less, ties half
    most = int(ranks.max(initial=0))
    more = _below((most - ranks)[order[::-1]], n - np.r_[stops[-2::-1], 0] if n else stops)[::-1]
    sizes = np.diff(np.r_[0, stops])
    ordered, pairs = np.empty(n), np.empty(n)
    ordered[order] = less + more
    pairs[order] = n - np.repeat(sizes, sizes)
    return ordered, pairs


def _below(ranks: Rows, stops: Rows) -> Doubles:
    """Rows in groups that end at `stops`: of each row how many of earlier groups have a lower rank, equal ones half."""
    size = int(ranks.max(initial=0)) + 1
    tree, found, listed, start = [0] * (size + 1), np.empty(len(ranks)), ranks.tolist(), 0
    for stop in stops.tolist():
        for at in range(start, stop):
            found[at] = (_prefix(tree, listed[at]) + _prefix(tree, listed[at] + 1)) / 2
        for at in range(start, stop):
            place = listed[at] + 1
            while place <= size:
                tree[place] += 1
                place += place & -place
        start = stop
    return found


def _prefix(tree: list[int], place: int) -> int:
    total = 0
    while place > 0:
        total += tree[place]
        place -= place & -place
    return total


def user_auc(users: Rows, score: Values, completed: Flags) -> tuple[Rows, Doubles, Rows]:
    """Users that have completed some and not others, the AUC of each (ties half), and how many rows each has."""
    order = np.lexsort((score, users))
    starts, stops = _runs(users[order])
    found = []
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        rows = order[start:stop]
        good = int(completed[rows].sum())
        if 0 < good < len(rows):
            _, inverse, counts = np.unique(score[rows], return_inverse=True, return_counts=True)
            middle = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
            auc = (middle[completed[rows]].sum() - good * (good + 1) / 2) / (good * (len(rows) - good))
            found.append((int(users[rows[0]]), float(auc), len(rows)))
    columns = np.array(found, np.float64).reshape(-1, 3).T
    return columns[0].astype(np.int64), columns[1], columns[2].astype(np.int64)


def top_seconds(groups: Rows, score: Values, seconds: Values) -> tuple[Rows, Doubles]:
    """Groups of two rows or more, and the seconds of the row that each would have put first; ties share."""
    order = np.lexsort((-score, groups))
    starts, stops = _runs(groups[order])
    kept = stops - starts > 1
    first = [
        float(seconds[rows][score[rows] == score[rows[0]]].mean())
        for rows in (order[a:b] for a, b in zip(starts[kept].tolist(), stops[kept].tolist(), strict=True))
    ]
    return groups[order[starts[kept]]], np.array(first)


def calibration(predicted: Values, watched_s: Values, deciles: int = 10) -> list[tuple[float, float, float]]:
    """By decile of the prediction, lowest first: mean predicted, mean watched, their ratio (NaN where none was)."""
    parts = np.array_split(np.argsort(predicted, kind="stable"), deciles)
    means = [(float(predicted[part].mean()), float(watched_s[part].mean())) for part in parts if len(part)]
    return [(p, w, p / w if w else float("nan")) for p, w in means]


def _runs(ordered: Rows) -> tuple[Rows, Rows]:
    """The begin and end of each run of equal numbers."""
    edges = np.flatnonzero(np.diff(ordered)) + 1
    bounds = np.r_[0, edges, len(ordered)] if len(ordered) else np.zeros(1, np.int64)
    return bounds[:-1], bounds[1:]
