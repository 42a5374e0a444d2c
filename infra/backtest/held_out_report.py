"""The findings of a leave-one-out backtest as one JSON document: each number with its n, its error over users and
the spread between seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from infra.backtest.report import KIND, Json, describe, finite, order_report
from models.arrays import Doubles, Rows
from models.evaluation.backtest import Entrant
from models.evaluation.comparison import hits, mean, mean_interval
from models.evaluation.leave_one_out import HeldOut, discounted_gain
from models.evaluation.order_test import K, OrderTest

PROTOCOL = "leave-one-out"
METRICS = {"recall@5": 5, "recall@10": 10, "recall@20": 20, "ndcg@10": 10}


def build_held_out(
    held: HeldOut,
    *,
    name: str,
    seeds: Sequence[int],
    entrants: Sequence[Entrant],
    left_out: Mapping[str, str],
    ranks: Mapping[str, Sequence[Rows]],
    order: OrderTest,
    validated: OrderTest,
    stands_aside: Mapping[str, str],
) -> Json:
    """The document. `ranks`: by recommender int64 [n] once for each seed, all of the same users; the first is ours.
    `validated`: the test of order on validation, which chose our settings."""
    asked, stream = held.asked(), held.history.stream
    ours, *others = ranks
    report: Json = {
        "kind": KIND,
        "protocol": {
            "name": PROTOCOL,
            "log": name,
            "users": len(held.user_ids),
            "items": held.catalogue,
            "watches": len(stream),
            "learnt_from": held.parts.validation,
            "validation": held.parts.cut - held.parts.validation,
            "cases": len(asked),
            "repeats": held.parts.end - held.parts.cut - len(asked),
            "seeds": list(seeds),
            "seen": "left out",
            "candidates": "the whole catalogue",
        },
        "settings_by": order_report(validated),
        "stands_aside": dict(stands_aside),
        "recommenders": [describe(each) for each in entrants],
        "left_out": [{"name": each, "why": why} for each, why in left_out.items()],
        "figures": {each: figures_of(by_seed) for each, by_seed in ranks.items()},
        "differences": [_difference(ours, ranks[ours], each, ranks[each]) for each in others],
        "order": order_report(order),
    }
    return {part: finite(value) for part, value in report.items()}


def figures_of(by_seed: Sequence[Rows]) -> Json:
    """By metric: the mean over users and seeds, its standard error over users, and the standard deviation between seeds
    (None for one)."""
    found: Json = {}
    for metric in METRICS:
        values = np.stack([_values(metric, ranks) for ranks in by_seed])  # [seeds, n]
        between = float(values.mean(axis=1).std(ddof=1)) if len(by_seed) > 1 else None
        found[metric] = asdict(mean(values.mean(axis=0))) | {"seeds": len(by_seed), "between_seeds": between}
    return found


def _difference(ours: str, our_ranks: Sequence[Rows], theirs: str, their_ranks: Sequence[Rows]) -> Json:
    """In recall@K, paired by user, each side's seeds averaged."""
    each = [np.mean([hits(ranks, K) for ranks in by_seed], axis=0) for by_seed in (our_ranks, their_ranks)]
    interval = mean_interval(each[0] - each[1])
    about = {"ours": ours, "theirs": theirs, "k": K, "n": len(each[0]), "significant": interval.is_significant}
    return about | asdict(interval)


def _values(metric: str, ranks: Rows) -> Doubles:
    k = METRICS[metric]
    return discounted_gain(ranks, k) if metric.startswith("ndcg") else hits(ranks, k)
