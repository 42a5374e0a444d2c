"""A release's candidate model, asked about the users and items of another release's log.

Each release numbers items, contexts and words by itself. Two of them are compared on the same queries, so the queries
are read in the numbering of whoever is asked.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from models.arrays import Floats, Rows
from models.catalogue.context import ContextVocabulary
from models.evaluation.eval_queries import EvalQueries, History
from models.logs.examples import Queries
from models.logs.timeline import newest_of
from models.logs.training_set import TrainingSet
from models.retrieval.candidate_learning import tower_queries
from models.retrieval.candidates import CandidateModel, with_one


class Asked:
    """A models.evaluation.backtest.Recommender. Items that the model does not know stand behind all others.
    `words`: rows of the table that the log's searches were hashed for."""

    def __init__(
        self,
        model: CandidateModel,
        training_set: TrainingSet,
        history: History,
        catalogue: int,
        *,
        name: str,
        words: int,
    ) -> None:
        self.name = name
        self._model, self._training_set, self._history = model, training_set, history
        rows = np.array([model.row(item_id) for item_id in training_set.catalogue.item_ids[:catalogue]], np.int64)
        self._rows = np.where(rows < len(model.vectors), rows, -1)  # [C]
        self._vectors = model.item_vectors(np.maximum(self._rows, 0))  # [C, D + 1]
        self._reads_words = bool(model.encoder.tower.shape.words) and len(model.encoder.words) == words

    def scores(self, queries: EvalQueries) -> Floats:
        inputs = self._read(tower_queries(self._training_set.dataset, self._history, queries))
        scores = np.asarray(with_one(self._model.encode(inputs)) @ self._vectors.T)
        scores[:, self._rows < 0] = scores.min(initial=0.0) - 1
        return scores

    def learn(self, rows: slice) -> None:
        pass

    def _read(self, queries: Queries) -> Queries:
        """The queries in the model's own numbering."""
        histories, skips = self._numbered(queries.histories), self._numbered(queries.skips)
        skips = newest_of(skips, self._model.encoder.tower.shape.skips)  # as many as it reads, or as the log tells of
        tokens = queries.tokens if self._reads_words and queries.tokens.shape[1] else self._no_words(len(queries))
        numbered = renumbered(queries, self._training_set.contexts, self._model.encoder.contexts)
        return replace(numbered, histories=histories, skips=skips, tokens=tokens)

    def _numbered(self, items: Rows) -> Rows:
        known = (items >= 0) & (items < len(self._rows))
        return np.where(known, self._rows[np.where(known, items, 0)], -1)

    def _no_words(self, size: int) -> Rows:
        return np.full((size, 1 if self._model.encoder.tower.shape.words else 0), -1, np.int64)


def renumbered(queries: Queries, ours: ContextVocabulary, theirs: ContextVocabulary) -> Queries:
    """The queries with context codes and traits of another vocabulary; what one of the two does not have is unknown."""
    codes = np.zeros((len(queries), len(theirs.fields)), np.int64)
    for column, (name, values) in enumerate(theirs.fields.items()):
        if name in ours.fields:
            code_of = {value: code for code, value in enumerate(values, 1)}
            table = np.array([0, *(code_of.get(value, 0) for value in ours.fields[name])])
            codes[:, column] = table[queries.context[:, list(ours.fields).index(name)]]
    traits = np.full((len(queries), len(theirs.traits)), np.nan, np.float32)
    for column, name in enumerate(theirs.traits):
        if name in ours.traits:
            traits[:, column] = queries.traits[:, ours.traits.index(name)]
    return replace(queries, context=codes, traits=traits)
