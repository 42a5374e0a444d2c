"""LightGBM with the ranker's features and the ranker's loss, as something to beat.

The unbiased weighted logistic loss, T softplus(-z) + softplus(z), is (1 + T) times the cross entropy of the label
T / (1 + T); so its raw score is the logit, and exp of it expected seconds.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.arrays import Floats
from models.ranking.ranking_evaluation import Predictions
from models.ranking.ranking_examples import CAP_S, RankingExamples
from tests.benchmarks.ranking.ranking_ground import Ground, Part
from tests.benchmarks.ranking.ranking_judged import judged
from tests.benchmarks.report import say

CATEGORIES = ("surface", "topics")  # of several topics the first
ALWAYS = {
    "objective": "cross_entropy",
    "feature_fraction": 0.6,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "num_threads": 1,
    "seed": 1,
    "verbosity": -1,
}


@dataclass(frozen=True)
class Setting:
    rounds: int
    rate: float
    leaves: int
    least_rows: int

    def __str__(self) -> str:
        return f"{self.rounds} rounds, rate {self.rate}, {self.leaves} leaves, {self.least_rows} rows in a leaf"


SETTINGS = (
    Setting(300, 0.05, 31, 100),
    Setting(600, 0.02, 31, 100),
    Setting(300, 0.05, 15, 200),
    Setting(300, 0.03, 63, 300),
)


def is_there() -> bool:
    return importlib.util.find_spec("lightgbm") is not None


def chosen(ground: Ground, stop: int, validation: Part, settings: tuple[Setting, ...] = SETTINGS) -> Setting:
    """The setting with the least per-user loss on the validation part, fitted on what is before it."""
    losses = []
    for setting in settings:
        found = judged(validation, predicted(fitted(ground, stop, setting), validation))
        losses.append(found["weighted_loss_user"].value)
        say(f"trees, {setting}: {100 * losses[-1]:.2f} % per user on validation")
    return settings[int(np.argmin(losses))]


def fitted(ground: Ground, stop: int, setting: Setting) -> Any:
    import lightgbm

    known = ground.examples.take(np.arange(stop))
    target_s = np.asarray(known.target_s, np.float64)
    table = columns_of(known)
    data = lightgbm.Dataset(
        table,
        label=target_s / (1 + target_s),
        weight=1 + target_s,
        categorical_feature=list(range(table.shape[1] - len(CATEGORIES), table.shape[1])),
    )
    own = {"learning_rate": setting.rate, "num_leaves": setting.leaves, "min_data_in_leaf": setting.least_rows}
    return lightgbm.train(ALWAYS | own, data, num_boost_round=setting.rounds)


def predicted(trees: Any, part: Part) -> Predictions:
    page, user = (
        np.minimum(np.exp(trees.predict(columns_of(each), raw_score=True)), CAP_S) for each in (part.page, part.user)
    )
    return Predictions(page, user)


def columns_of(examples: RankingExamples) -> Floats:
    """[N, F]: the numbers of query and impression, and the categories last."""
    numbers = [examples.numbers["query"][examples.request], examples.numbers["impression"]]
    surface = examples.ids["surface"].codes[examples.request][:, :1]
    topic = examples.ids["topics"].codes[:, :1]
    return np.concatenate([*numbers, surface, topic], axis=1).astype(np.float32)
