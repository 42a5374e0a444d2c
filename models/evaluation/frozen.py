"""A recommender that stops at the cut, to be walked live beside the one that goes on: what following is worth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from models.arrays import Floats
from models.evaluation.backtest import Recommender
from models.evaluation.eval_queries import EvalQueries, EvalQuery, History


class Frozen:
    """Learns nothing. With `follow_history` it is still shown what each user has watched since; without, it is shown
    what they had watched at the cut (nothing, where they came later)."""

    def __init__(
        self, recommender: Recommender, history: History, cut: int, *, name: str, follow_history: bool = False
    ) -> None:
        self.name = name
        self._recommender, self._history, self._cut = recommender, history, cut
        self._follow_history = follow_history

    def scores(self, queries: EvalQueries) -> Floats:
        return self._recommender.scores(queries if self._follow_history else self._as_of_the_cut(queries))

    def learn(self, rows: slice) -> None:
        """It does not."""

    def _as_of_the_cut(self, queries: EvalQueries) -> EvalQueries:
        nothing = np.full(len(queries), -1)
        asked = EvalQuery(queries.users, np.minimum(queries.rows, self._cut), nothing)
        return replace(self._history.queries(asked), targets=queries.targets)
