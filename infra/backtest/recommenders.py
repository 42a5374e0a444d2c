"""Our candidate generator as a backtest judges it: as released, or kept up by the very trainer that runs live."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from models.arrays import Floats, Rows
from models.evaluation.eval_queries import EvalQueries, History
from models.logs.examples import Examples, Queries
from models.logs.training_set import TrainingSet
from models.retrieval.candidate_learning import tower_queries
from models.retrieval.candidates import CandidateModel, with_one
from models.retrieval.checkpoint import ModelSelection
from models.retrieval.hyper_parameters import LiveParameters
from models.retrieval.incremental import IncrementalTrainer, StepResult

Part = Literal["towers", "linear part", "popularity", "skips"]
PARTS: tuple[Part, ...] = get_args(Part)


class Released:
    """A model that does not learn. Histories are those of the queries: live in a live walk, as in serving."""

    def __init__(
        self, model: CandidateModel, training_set: TrainingSet, history: History, *, name: str = "tower"
    ) -> None:
        self.name = name
        self._model, self._training_set, self._history = model, training_set, history
        self._vectors = model.item_vectors()  # [C, D + 1]

    def scores(self, queries: EvalQueries) -> Floats:
        inputs = tower_queries(self._training_set.dataset, self._history, queries)
        return np.asarray(with_one(self._model.encode(self._known(inputs))) @ self._vectors.T)

    def learn(self, rows: slice) -> None:
        pass

    def _known(self, queries: Queries) -> Queries:
        """Of what the model knows."""
        histories, skips = (
            np.where(each < len(self._vectors), each, -1) for each in (queries.histories, queries.skips)
        )
        return replace(queries, histories=histories, skips=skips)


class Without(Released):
    """A released model of which one part says nothing: what that part earns, without a training of its own."""

    def __init__(self, part: Part, model: CandidateModel, training_set: TrainingSet, history: History) -> None:
        super().__init__(model, training_set, history, name=f"without {part}")
        shape = model.encoder.tower.shape
        towers = shape.members * shape.dim
        self._is_without_skips = part == "skips"
        self._vectors = self._vectors.copy()
        if part == "towers":
            self._vectors[:, :towers] = 0
        elif part == "linear part":
            self._vectors[:, towers:-1] = 0
        elif part == "popularity":
            self._vectors[:, -1] = model.bias

    def _known(self, queries: Queries) -> Queries:
        known = super()._known(queries)
        return replace(known, skips=np.full_like(known.skips, -1)) if self._is_without_skips else known


def parts_of(model: CandidateModel) -> list[Part]:
    """The parts of a model that say anything."""
    shape = model.encoder.tower.shape
    is_there = {
        "towers": not shape.muted_towers,
        "linear part": shape.linear > 0 and not shape.muted_linear,
        "popularity": True,
        "skips": shape.skips > 0 and not shape.muted_towers,
    }
    return [part for part in PARTS if is_there[part]]


def what_validation_said(selection: ModelSelection) -> str:
    """What its parts earned on the validation days, for the report; empty where nothing was asked."""
    found = ", ".join(f"{part} {gain}" for part, gain in validated_gains(selection).items())
    return f"doublings of rank on validation (± two standard errors): {found}" if found else ""


def validated_gains(selection: ModelSelection) -> dict[Part, str]:
    """What each part that was asked about earned there, in doublings of the rank of what was watched."""
    asked: dict[Part, str] = {"linear part": "linear_gain", "skips": "skips_gain"}
    found = selection.metrics
    return {
        part: f"{found[name]:+.3f} ± {2 * found[f'{name}_se']:.3f}" for part, name in asked.items() if name in found
    }


class Live:
    """A model under the incremental trainer. Items that were not known at the cut get rows when they are first watched,
    as in the running system; they are not ranked, since no query can ask for them."""

    def __init__(
        self,
        model: CandidateModel,
        training_set: TrainingSet,
        history: History,
        *,
        settings: LiveParameters,
        seed: int,
        refresh_ms: int = 0,
        name: str = "tower, live",
    ) -> None:
        """`refresh_ms`: how long vectors are served before what was learnt since is taken over; 0: not at all."""
        self.name = name
        self._training_set, self._history = training_set, history
        self._catalogue = len(model.vectors)
        self._trainer = IncrementalTrainer(model, training_set.catalogue, settings, seed=seed)
        self._row_of = np.full(len(training_set.catalogue), -1, np.int64)  # [I] the trainer's row of each item
        self._row_of[: self._catalogue] = np.arange(self._catalogue)
        self._refresh_ms, self._refreshed_ms = refresh_ms, int(training_set.dataset.event_ms[0])
        self._vectors: Floats | None = None

    def scores(self, queries: EvalQueries) -> Floats:
        if self._vectors is None:
            self._vectors = self._trainer.vectors(slice(0, self._catalogue))
        inputs = self._placed(tower_queries(self._training_set.dataset, self._history, queries))
        return np.asarray(self._trainer.user_vectors(inputs) @ self._vectors.T)

    def learn(self, rows: slice) -> None:
        dataset = self._training_set.dataset
        at = np.arange(rows.start, rows.stop)
        weights = None if dataset.weights is None else dataset.weights[at]
        items = dataset.items[at].astype(np.int64)
        for item in np.unique(items[self._row_of[items] < 0]).tolist():
            known = self._training_set
            self._row_of[item] = self._trainer.add_item(known.catalogue.item_ids[item], known.content_of(item))
        step = self._trainer.learn(Examples(self._placed(dataset.queries(at)), self._row_of[items], weights))
        self._take_over(step, int(dataset.event_ms[rows.stop - 1]))

    def _take_over(self, _: StepResult, now_ms: int) -> None:
        """Serve what was learnt, if it is time to."""
        if now_ms - self._refreshed_ms >= self._refresh_ms:
            self._vectors, self._refreshed_ms = None, now_ms

    def _placed(self, queries: Queries) -> Queries:
        """With the trainer's rows; items that it has not met are unknown to it."""
        return replace(queries, histories=self._rows(queries.histories), skips=self._rows(queries.skips))

    def _rows(self, items: Rows) -> Rows:
        return np.where(items >= 0, self._row_of[np.maximum(items, 0)], -1)
