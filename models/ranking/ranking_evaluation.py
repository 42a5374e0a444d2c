"""Predictions on impressions that a ranker has not seen, and what is said of them: table, deciles, rolling calibration.

Every comparison between items that one user was shown is made with predictions whose user state is frozen at the first
of them (models.ranking.impression_log): streaming features move between the rows that are compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from models.arrays import Doubles, Rows
from models.evaluation.comparison import Ratio, ratio_of
from models.evaluation.ranking_metrics import pair_loss, top_seconds, user_auc, xauc_parts
from models.logs.decayed_past import DecayedPast
from models.ranking.features import numbers_of
from models.ranking.impression_log import PAGE_MS, Delays
from models.ranking.item_statistics import MOST_FACTOR, prior_of
from models.ranking.ranker import Ranker
from models.ranking.ranking_examples import QUERY_IDS, SCOPES, RankingExamples

BLOCK = 16_384


@dataclass(frozen=True)
class Predictions:
    """Predictions of the same N impressions: expected seconds and score with the state frozen at the page, and at the
    user's first impression. float64 [N] each."""

    page: Doubles
    user: Doubles


def predict(ranker: Ranker, examples: RankingExamples) -> Doubles:
    """Expected watch seconds, float64 [N], in blocks."""
    parts = [np.zeros(0)]
    for start in range(0, len(examples), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(examples)))
        request, at = np.unique(np.asarray(examples.request[rows]), return_inverse=True)
        numbers = {
            SCOPES[0]: np.asarray(examples.numbers["query"][request]),
            SCOPES[1]: np.asarray(examples.numbers["impression"][rows]),
        }
        ids = {name: named.at(request if name in QUERY_IDS else rows) for name, named in examples.ids.items()}
        logits = ranker.logits(numbers, ids, at.astype(np.int64))
        parts.append(ranker.seconds(logits[:, 0], np.array(examples.duration_s[rows])).astype(np.float64))
    return np.concatenate(parts)


def item_means(examples: RankingExamples) -> Doubles:
    """The baseline: the item's decayed mean seconds, float64 [N]."""
    column = [feature.name for feature in numbers_of("impression")].index("item_mean_s")
    return np.nan_to_num(np.asarray(examples.numbers["impression"][:, column], np.float64))


def pages_of(examples: RankingExamples) -> Rows:
    """int64 [N]: a number for each user and hour."""
    keys = np.stack([examples.user, np.asarray(examples.at_ms) // PAGE_MS])
    return np.unique(keys, axis=1, return_inverse=True)[1].reshape(-1).astype(np.int64)


def rolling_factors(predicted_s: Doubles, examples: RankingExamples, delays: Delays) -> Doubles:
    """float64 [N]: what a server would multiply each expectation by (models.ranking.item_statistics), learnt from the
    impressions before it whose window had closed. `examples` in order of time."""
    at_ms = np.asarray(examples.at_ms, np.int64)
    past, codes = DecayedPast(1, 2, delays.half_life_ms), np.zeros(len(at_ms), np.int64)
    values = np.stack([predicted_s, np.asarray(examples.target_s, np.float64)], axis=1)
    past.settle(codes[:0], at_ms[:0], values[:0], int(at_ms[0]) if len(at_ms) else 0)
    past.open(codes, at_ms, values)
    expected, watched = past.at(codes, at_ms - delays.window_ms, at_ms).T
    prior_s = prior_of(examples.cap_s)
    return np.asarray(np.clip((watched + prior_s) / (expected + prior_s), 1 / MOST_FACTOR, MOST_FACTOR))


def judge(examples: RankingExamples, predicted: Predictions) -> dict[str, Ratio]:
    """Every metric as a ratio of sums over users; those of a user are drawn together when its error is asked for."""
    seconds = np.asarray(examples.target_s, np.float64)
    completed, pages = np.asarray(examples.completed), pages_of(examples)
    users, user = np.unique(np.asarray(examples.user), return_inverse=True)
    user = user.reshape(-1).astype(np.int64)
    user_of_page = np.zeros(int(pages.max(initial=-1)) + 1, np.int64)
    user_of_page[pages] = user
    total = partial(ratio_of, len(users))
    by_page = pair_loss(pages, predicted.page, seconds, completed)
    by_user = pair_loss(user, predicted.user, seconds, completed)
    of_page, top_s = top_seconds(pages, predicted.page, seconds)
    ordered, pairs = xauc_parts(predicted.page, seconds)
    auc_user, auc, rows = user_auc(user, predicted.user, completed)
    ones = np.ones(len(seconds))
    return {
        "weighted_loss_page": total(user_of_page[by_page.groups], by_page.misordered, by_page.weight),
        "weighted_loss_user": total(by_user.groups, by_user.misordered, by_user.weight),
        "top1_s": total(user_of_page[of_page], top_s, np.ones(len(of_page))),
        "calibration": total(user, predicted.page, seconds),
        "mae_s": total(user, np.abs(predicted.page - seconds), ones),
        "xauc": total(user, ordered, pairs, scale=2.0),
        "gauc": total(auc_user, auc * rows, rows.astype(np.float64)),
    }
