"""What a ranker draws from each component of its features: its own predictions beside those that it makes when the
values of one component are those of other impressions.

Nothing is trained again. The values are exchanged and not left out, so that each is one that the ranker has seen: a
component's features of the request are all of one other request, those of the candidate all of one other impression.
Two components that tell the same stand in for each other, and then each of them earns little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from models.arrays import Rows
from models.evaluation.comparison import Interval, difference
from models.ranking.feature import Scope
from models.ranking.features import numbers_of
from models.ranking.ranker import Ranker
from models.ranking.ranking_evaluation import Predictions, judge, predict
from models.ranking.ranking_examples import QUERY_IDS, SCOPES, RankingExamples

MOST = 200_000  # newest exposures that are asked about
METRICS = ("weighted_loss_page", "weighted_loss_user", "top1_s", "xauc")
COMPONENTS: Mapping[str, Sequence[str]] = {
    "ids of videos, channels, topics": ("candidate", "last_watched", "channel", "topics"),
    "length": ("length", "duration_s", "length_mean_s"),
    "context and time": ("language", "region", "device", "surface", "hour", "weekday"),
    "what the user watches": (
        *("since_last_watch_s", "history_entries", "history_mean_s", "history_completion", "recent_mean_s"),
        *("recent_completion", "history_share", "last_watch_s", "like_duration_share"),
    ),
    "history with item, channel, topics": (
        *("item_watches", "channel_watches", "channel_watched_s", "since_channel_s", "topic_watches"),
        *("topic_watched_s", "since_topic_s", "topic_mean_watched_s", "any_topic_watches", "any_topic_watched_s"),
        "since_any_topic_s",
    ),
    "shown before": (
        *("item_shown", "since_item_shown_s", "channel_shown", "since_channel_shown_s", "shown_last_hour"),
    ),
    "statistics and age": (
        *("item_impression_share", "item_watch_share", "item_watch_ratio", "item_completion", "item_mean_s"),
        *("item_lift", "channel_mean_s", "topic_mean_s", "age_h"),
    ),
    "retrieval and sources": (
        *("sources", "retrieval_score", "retrieval_gap", "retrieval_rank", "trending_watches", "similar_score"),
    ),
}


def earned(
    ranker: Ranker, page: RankingExamples, user: RankingExamples, seed: int = 0
) -> dict[str, dict[str, Interval]]:
    """By component and metric: the metric without it minus the ranker's own, of the newest exposures; `page` and `user`
    are those of the test, the state frozen at the page and at the user."""
    newest = np.arange(max(0, len(page) - MOST), len(page))
    page, user = page.take(newest), user.take(newest)
    ours = judge(page, Predictions(predict(ranker, page), predict(ranker, user)))
    found = {}
    for name, features in COMPONENTS.items():
        without = partial(exchanged, features=features, seed=seed)
        theirs = judge(page, Predictions(predict(ranker, without(page)), predict(ranker, without(user))))
        found[name] = {metric: difference(theirs[metric], ours[metric]) for metric in METRICS}
    return found


def exchanged(examples: RankingExamples, features: Sequence[str], seed: int) -> RankingExamples:
    """The same examples, in which each has the values that another one has of these features."""
    rng = np.random.default_rng(seed)
    used = np.unique(examples.request)
    other: dict[Scope, Rows] = {SCOPES[0]: np.arange(len(examples.numbers["query"]))}
    other["query"][used] = rng.permutation(used)
    other["impression"] = rng.permutation(len(examples))
    numbers = {}
    for scope in SCOPES:
        columns = [at for at, feature in enumerate(numbers_of(scope)) if feature.name in features]
        numbers[scope] = np.array(examples.numbers[scope])
        numbers[scope][:, columns] = examples.numbers[scope][other[scope]][:, columns]
    ids = {
        name: named.at(other["query" if name in QUERY_IDS else "impression"]) if name in features else named
        for name, named in examples.ids.items()
    }
    return replace(examples, numbers=numbers, ids=ids)
