"""The findings of a backtest as one JSON document: every number with its n and standard error, every difference paired.

The page (`infra.backtest.page`) is drawn from this document and nothing else, so whatever it shows can be
read by a program too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.arrays import Rows
from models.evaluation.backtest import Entrant, Walk
from models.evaluation.comparison import Slice, even_edges, log_rank, paired, recall, recall_within, reciprocal_rank
from models.evaluation.coverage import DEPTHS
from models.evaluation.eval_queries import History
from models.evaluation.order_test import K, OrderTest

Json = dict[str, Any]

KIND = "nextwatch backtest"
CUTOFFS = (10, 50, 100, 500)
CURVE = (1, 2, 5, 10, 20, 50, 100, 200, 500)
SLICED = (10, 100)  # recall@k by age, history length and time
AGE_BINS, TIME_BINS = 8, 12
HISTORY_EDGES = (1, 2, 5, 10, 20, 50, 100, math.inf)


@dataclass(frozen=True)
class Grounds:
    """The data that was walked: the history, when each item was born (int64 [I]), the cut, how many items were known
    then."""

    history: History
    born_ms: Rows
    cut: int
    catalogue: int


def build_report(
    protocol: Json,
    *,
    entrants: Sequence[Entrant],
    left_out: Mapping[str, str],
    grounds: Grounds,
    frozen: Walk,
    cold: Walk,
    live: Walk | None,
    parts: Walk,
    ours: Sequence[str],
    order: OrderTest,
) -> Json:
    """The document. `protocol`: what a reader must know before any number; `cold`: the frozen walk of the users who had
    watched nothing; `parts`: the frozen walk of ours whole and without each of its parts; `ours`: the recommenders that
    all others are compared with, where a walk has them."""
    report = {
        "kind": KIND,
        "protocol": protocol,
        "recommenders": [describe(each) for each in entrants],
        "left_out": [{"name": name, "why": why} for name, why in left_out.items()],
        "frozen": walk_report(frozen, grounds, ours),
        "cold": figures(cold, grounds, ours),
        "live": None if live is None else walk_report(live, grounds, ours),
        "parts": figures(parts, grounds, ours),
        "order": order_report(order),
    }
    return {name: finite(part) for name, part in report.items()}


def walk_report(walk: Walk, grounds: Grounds, ours: Sequence[str]) -> Json:
    """The figures of a walk, also by slices of its cases, and what was shown."""
    users, watched = walk.asked.users, walk.asked.watched
    targets = grounds.history.targets(walk.asked)
    known = targets < grounds.catalogue
    times_ms = np.asarray(grounds.history.stream.event_ms[watched], np.float64)
    ages_s = np.where(known, np.maximum(times_ms - grounds.born_ms[targets], 0) / 1000, np.nan)
    counts = grounds.history.watched_before(users, walk.asked.before)
    slices = {
        "by_item_age_s": (ages_s, even_edges(ages_s, AGE_BINS)),
        "by_history": (counts, HISTORY_EDGES),
        "by_time_ms": (times_ms, even_edges(times_ms, TIME_BINS)),
    }
    slices_of = {name: _sliced(walk, values, edges) for name, (values, edges) in slices.items()}
    return figures(walk, grounds, ours) | slices_of | {"shown": _shown(walk)}


def figures(walk: Walk, grounds: Grounds, ours: Sequence[str]) -> Json:
    """The figures of a walk over all of its cases."""
    users = walk.asked.users
    return {
        "cases": len(walk),
        "users": len(np.unique(users)),
        "unknown_items": int((grounds.history.targets(walk.asked) >= grounds.catalogue).sum()),
        "recall": {
            name: {str(k): asdict(recall(ranks, k, users)) for k in sorted({*CUTOFFS, *CURVE})}
            for name, ranks in walk.ranks.items()
        },
        "mean_reciprocal_rank": {n: asdict(reciprocal_rank(ranks, users)) for n, ranks in walk.ranks.items()},
        "mean_log2_rank": {n: asdict(log_rank(ranks, users)) for n, ranks in walk.ranks.items()},
        "differences": _differences(walk, ours),
    }


def order_report(order: OrderTest) -> Json:
    """What order is worth to a sequence model, and what that recommends."""
    return {
        "k": K,
        "in_order": asdict(order.ordered),
        "shuffled": asdict(order.shuffled),
        "difference": asdict(order.difference) | {"n": order.ordered.n, "significant": order.difference.is_significant},
        "lost": order.lost,
        "sequential": order.is_sequential,
        "advice": order.advice(),
    }


def finite(value: Any) -> Any:
    """The same with null for numbers that are none: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def describe(each: Entrant) -> Json:
    tried = [{"settings": setting, "mean_log2_rank": asdict(estimate)} for setting, estimate in each.tried]
    return {"name": each.name, "settings": each.settings, "note": each.note, "tried": tried}


def _differences(walk: Walk, ours: Sequence[str]) -> list[Json]:
    """Each of ours against every other that was not the first in an earlier pair."""
    found, done = [], set()
    for our in (name for name in ours if name in walk.ranks):
        done.add(our)
        for their, ranks in walk.ranks.items():
            if their not in done:
                pairs = (our, walk.ranks[our]), (their, ranks)
                differences = [paired(*pairs, k, walk.asked.users) for k in CUTOFFS]
                found += [asdict(each) | {"significant": each.is_significant} for each in differences]
    return found


def _sliced(walk: Walk, values: npt.ArrayLike, edges: Sequence[float]) -> Json:
    """By recommender and k: a list of slices."""
    users = walk.asked.users
    return {
        name: {str(k): [_slice(part) for part in recall_within(ranks, k, values, edges, users)] for k in SLICED}
        for name, ranks in walk.ranks.items()
    }


def _shown(walk: Walk) -> Json:
    return {
        name: {
            str(k): {
                "coverage": asdict(coverage.coverage(k)),
                "mean_log_share": asdict(coverage.popularity(k)),
                "share_from_top_1_percent": asdict(coverage.top_share(k)),
            }
            for k in DEPTHS
        }
        for name, coverage in walk.coverage.items()
    }


def _slice(part: Slice) -> Json:
    return {"low": part.low, "high": part.high, **asdict(part.estimate)}
