"""A recommender that stops at the cut, to be walked live beside the one that goes on: what following is worth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from models.arrays import Floats
from models.evaluation.backtest import Recommender
from models.evaluation.eval_queries import EvalQueries, EvalQuery, History


class Frozen:
    """A recommender that learns nothing and is shown what each user had watched at the cut (nothing, where they came
    later)."""

    def __init__(self, recommender: Recommender, history: History, cut: int, *, name: str) -> None:
        self.name = name
        self._recommender, self._history, self._cut = recommender, history, cut

    def scores(self, queries: EvalQueries) -> Floats:
        nothing = np.full(len(queries), -1)
        asked = EvalQuery(queries.users, np.minimum(queries.rows, self._cut), nothing)
        return self._recommender.scores(replace(self._history.queries(asked), targets=queries.targets))

    def learn(self, rows: slice) -> None:
        """It does not."""
