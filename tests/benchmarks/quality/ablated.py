"""Trainings that differ in one choice, as the ablations compare them; the product has none of these switches."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from models.logs.dataset import Dataset
from models.logs.timeline import HISTORY
from models.logs.training_set import TrainingSet
from models.retrieval.candidate_learning import Training
from models.retrieval.candidate_training import Fit
from models.retrieval.candidates import CandidateModel
from models.retrieval.checkpoint import ModelSelection
from models.retrieval.hyper_parameters import CandidateParameters
from models.retrieval.losses import Extra
from models.retrieval.net import CandidateNet, ItemTable
from models.retrieval.popularity import Popularity
from models.retrieval.sampling import Negatives

COSINE_SCALE = 12.0


def train(
    kind: type[Training], training_set: TrainingSet, settings: CandidateParameters, *, until: int, items: int
) -> CandidateModel:
    """A model of the first `items` from the rows before `until`, trained for all of the settings' epochs."""
    selection = ModelSelection(settings.epochs)
    training = kind(training_set, settings, half_life_events=settings.half_life_events, until=until, items=items)
    while training.epoch < settings.epochs:
        training.run_epoch(selection, "ablation", settings.epochs, None, lambda stage, done, total: None)
    return training.freeze(selection)


class NoPopularity(Training):
    """Neither in training nor in the index."""

    class fit_type(Fit):  # noqa: N801
        def extra(self, rows: np.ndarray, targets: np.ndarray, negatives: Negatives, hits: np.ndarray) -> Extra:
            return Extra(torch.zeros(len(rows)), -torch.from_numpy(negatives.log_expected), torch.from_numpy(hits))

    def freeze(self, selection: ModelSelection) -> CandidateModel:
        model = super().freeze(selection)
        model.popularity = Popularity.empty(len(model.popularity), model.popularity.half_life_events)
        return model


class LogQ(Fit):
    """The correction by the log of expected counts times `sign`: 1 is right."""

    sign = 0.0

    def draw(self, targets: np.ndarray, rng: np.random.Generator) -> Negatives:
        drawn = super().draw(targets, rng)
        return Negatives(drawn.rows, (self.sign * drawn.log_expected).astype(np.float32))


class LogQOff(Training):
    fit_type = LogQ


class LogQAdded(Training):
    class fit_type(LogQ):  # noqa: N801
        sign = -1.0


class FullSoftmax(Training):
    class fit_type(Fit):  # noqa: N801
        def draw(self, targets: np.ndarray, rng: np.random.Generator) -> Negatives:
            return Negatives(np.arange(self.net.items), np.zeros(self.net.items, np.float32))


class UnitVectors(ItemTable):
    """The rows of another table as vectors of one length."""

    def __init__(self, table: ItemTable) -> None:
        self.own, self.sides = table.own, table.sides

    def embed(self, rows: np.ndarray, touched: list[Any]) -> torch.Tensor:
        return COSINE_SCALE * F.normalize(super().embed(rows, touched), dim=1)


class Cosine(Training):
    """Both sides are unit vectors."""

    class net_type(CandidateNet):  # noqa: N801
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            self.outputs = UnitVectors(self.outputs)

        def users(self, *args: Any, **named: Any) -> torch.Tensor:
            return F.normalize(super().users(*args, **named), dim=1)


@dataclass(frozen=True)
class LeakyDataset(Dataset):
    """Histories from both sides of a watch, itself left out, as a random hold-out has them (paper section 3.4); of the
    first `known` items."""

    known: int = 1 << 31

    @cached_property
    def _order(self) -> tuple[np.ndarray, np.ndarray]:
        """[N] rows user by user in time, and where each row stands there."""
        order = np.argsort(self.users, kind="stable")
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        return order, place

    def histories(self, rows: np.ndarray) -> np.ndarray:
        order, place = self._order
        half = HISTORY // 2
        places = place[rows][:, None] + np.r_[np.arange(-half, 0), np.arange(1, HISTORY - half + 1)]  # [B, H]
        around = order[np.clip(places, 0, len(order) - 1)]
        mine = (places >= 0) & (places < len(order)) & (self.users[around] == self.users[rows][:, None])
        return np.where(mine & (self.items[around] < self.known), self.items[around].astype(np.int64), -1)


class RandomHoldOut(Training):
    def __init__(self, training_set: TrainingSet, *args: Any, **named: Any) -> None:
        columns = {each.name: getattr(training_set.dataset, each.name) for each in fields(Dataset) if each.init}
        super().__init__(replace(training_set, dataset=LeakyDataset(**columns, known=named["items"])), *args, **named)


ABLATED = (NoPopularity, LogQOff, LogQAdded, FullSoftmax, Cosine, RandomHoldOut)
