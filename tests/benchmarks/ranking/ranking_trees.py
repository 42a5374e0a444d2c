"""LightGBM with the ranker's features and the ranker's loss, as something to beat.

The unbiased weighted logistic loss, T softplus(-z) + softplus(z), is (1 + T) times the cross entropy of the label
T / (1 + T); so its raw score is the logit, and exp of it expected seconds. What an item, a channel, a topic and a
length have held before is among the numbers, so their means of the past are known to the trees without their ids.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import numpy as np

from infra.platform.settings import Settings
from models.arrays import Floats, Rows
from models.ranking.id_spaces import IdSpaces
from models.ranking.ranker_training import fit_spaces
from models.ranking.ranking_evaluation import Predictions
from models.ranking.ranking_examples import RankingExamples
from tests.benchmarks.ranking.ranking_ground import Ground, Part
from tests.benchmarks.ranking.ranking_judged import judged
from tests.benchmarks.report import say

IDS = ("candidate", "channel", "topics", "length")  # what an impression is of, as categories beside the numbers
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


@dataclass(frozen=True)
class Trees:
    """A fit. `spaces`: the ids that it knows, those of a ranker of the same rows; None where it is given none."""

    booster: Any
    spaces: IdSpaces | None


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


def fitted(ground: Ground, stop: int, setting: Setting, *, with_ids: bool = False) -> Trees:
    """On the first `stop` exposures. `with_ids`: it sees the ids that the ranker has embeddings of, as categories."""
    import lightgbm

    known = ground.examples.take(np.arange(stop))
    spaces = fit_spaces(known, np.arange(stop), Settings.model_construct().ranker) if with_ids else None
    target_s = np.asarray(known.target_s, np.float64)
    numbers, categories = columns_of(known, spaces)
    data = lightgbm.Dataset(
        np.concatenate([numbers, categories], axis=1),
        label=target_s / (1 + target_s),
        weight=1 + target_s,
        categorical_feature=[numbers.shape[1] + at for at in range(categories.shape[1])],
    )
    own = {"learning_rate": setting.rate, "num_leaves": setting.leaves, "min_data_in_leaf": setting.least_rows}
    return Trees(lightgbm.train(ALWAYS | own, data, num_boost_round=setting.rounds), spaces)


def predicted(trees: Trees, part: Part) -> Predictions:
    tables = [np.concatenate(columns_of(each, trees.spaces), axis=1) for each in (part.page, part.user)]
    logits = (trees.booster.predict(table, raw_score=True) for table in tables)
    page, user = (np.minimum(np.exp(logit), part.page.cap_s) for logit in logits)
    return Predictions(page, user)


def columns_of(examples: RankingExamples, spaces: IdSpaces | None) -> tuple[Floats, Floats]:
    """[N, F] the numbers of query and impression; [N, K] the categories: surface and first topic, or all IDS."""
    numbers = [examples.numbers["query"][examples.request], examples.numbers["impression"]]
    surface = examples.ids["surface"].codes[examples.request][:, :1]
    if spaces is None:
        categories: list[Rows] = [surface, examples.ids["topics"].codes[:, :1]]
    else:
        space_of = {"candidate": "item", "topics": "topic"}
        categories = [surface, *(spaces.codes(space_of.get(name, name), examples.ids[name]) for name in IDS)]
    return np.concatenate(numbers, axis=1).astype(np.float32), np.concatenate(categories, axis=1).astype(np.float32)
