"""Our candidate generator as a backtest judges it: as released, or kept up by the very trainer that runs live."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from models.evaluation.eval_queries import EvalQueries, History
from models.logs.examples import Examples, Queries
from models.logs.training_set import TrainingSet
from models.retrieval.candidate_learning import case_queries
from models.retrieval.candidates import CandidateModel, with_one
from models.retrieval.hyper_parameters import LiveParameters
from models.retrieval.incremental import IncrementalTrainer

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


class Released:
    """A model that does not learn. Its users' histories are those of the cases: live in a live walk, as in serving."""

    def __init__(self, model: CandidateModel, source: TrainingSet, history: History, *, name: str = "tower") -> None:
        self.name = name
        self._model, self._source, self._history = model, source, history
        self._vectors = model.item_vectors()  # [C, D + 1]

    def scores(self, cases: EvalQueries) -> Floats:
        queries = case_queries(self._source.dataset, self._history, cases)
        known = queries.with_histories(np.where(queries.histories < len(self._vectors), queries.histories, -1))
        return np.asarray(with_one(self._model.encode(known)) @ self._vectors.T)

    def learn(self, rows: slice) -> None:
        pass


class Live:
    """A model under the incremental trainer. Items that were not known at the cut get rows when they are first watched,
    as in the running system; they are not ranked, since no case can ask for them."""

    def __init__(
        self,
        model: CandidateModel,
        source: TrainingSet,
        history: History,
        *,
        settings: LiveParameters,
        seed: int,
        refresh_ms: int = 0,
        name: str = "tower, live",
    ) -> None:
        """`refresh_ms`: how long vectors are served before what was learnt since is taken over; 0: not at all."""
        self.name = name
        self._source, self._history = source, history
        self._catalogue = len(model.vectors)
        self._trainer = IncrementalTrainer(model, source.catalogue, settings, seed=seed)
        self._row_of = np.full(len(source.catalogue), -1, np.int64)  # [I] the trainer's row of each item
        self._row_of[: self._catalogue] = np.arange(self._catalogue)
        self._refresh_ms, self._refreshed_ms = refresh_ms, int(source.dataset.event_ms[0])
        self._vectors: Floats | None = None

    def scores(self, cases: EvalQueries) -> Floats:
        if self._vectors is None:
            self._vectors = self._trainer.vectors(slice(0, self._catalogue))
        queries = self._placed(case_queries(self._source.dataset, self._history, cases))
        return np.asarray(self._trainer.user_vectors(queries) @ self._vectors.T)

    def learn(self, rows: slice) -> None:
        dataset = self._source.dataset
        at = np.arange(rows.start, rows.stop)
        items = dataset.items[at].astype(np.int64)
        for item in np.unique(items[self._row_of[items] < 0]).tolist():
            catalogue = self._source.catalogue
            self._row_of[item] = self._trainer.add_item(catalogue.item_ids[item], catalogue.all_ids_of(item))
        self._trainer.learn(Examples(self._placed(dataset.queries(at)), self._row_of[items]))
        now_ms = int(dataset.event_ms[rows.stop - 1])
        if now_ms - self._refreshed_ms >= self._refresh_ms:
            self._vectors, self._refreshed_ms = None, now_ms

    def _placed(self, queries: Queries) -> Queries:
        """With the trainer's rows; items that it has not met are unknown to it."""
        there = queries.histories >= 0
        return replace(queries, histories=np.where(there, self._row_of[np.where(there, queries.histories, 0)], -1))
