"""From a data set to a candidate generator: how long to train and how much to personalise is asked of validation days.

The last days before the end are held out of a first training. After each of its epochs the whole catalogue is ranked
for what came next, with the personal part of the score at several weights; weight 0 is decayed popularity alone, so the
model contains that baseline and does not lose to it. Epochs and weight of the best then hold for a training on
everything, since the newest days are what a live system needs most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from infra.settings import Model
from models.backtest import walk_frozen
from models.candidate_training import NOTHING, Ablation, Fit
from models.candidates import CandidateModel, Reader
from models.cases import Cases, History, Stream
from models.catalogue import Catalogue
from models.checkpoint import Checkpoints, Choice
from models.cold_start import ColdStart
from models.dataset import Dataset
from models.examples import Queries
from models.net import CandidateNet
from models.popularity import Popularity, popularity_of
from models.source import Source
from models.tower import TowerShape

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Progress = Callable[[str, int, int], None]

CUTOFFS = (10, 50, 100, 500)
WEIGHTS = (1.0, 0.75, 0.5, 1.25, 0.0)  # of the personal part beside popularity; the first wins a tie
PATIENCE = 1  # epochs without a better one
VALIDATION, FINAL = "validation", "candidates"  # stages
SIDE_IDS = 8  # most ids of one item in one column


class Learned(NamedTuple):
    """The model of everything, what was chosen, and the model that has not seen the validation days (None: no such)."""

    model: CandidateModel
    choice: Choice
    earlier: CandidateModel | None


def learn_candidates(
    source: Source,
    settings: Model,
    *,
    until: int,
    valid_from: int | None,
    items: int,
    warm: CandidateModel | None = None,
    ablation: Ablation = NOTHING,
    checkpoints: Checkpoints | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Learned:
    """A model of the first `items` of the catalogue from the data set's rows before `until`.

    Rows from `valid_from` on are validation first; None takes settings.epochs as they are. `warm` is an earlier model
    to begin from. The same seed gives the same model, also when it was interrupted and went on from `checkpoints`.
    """

    def begin(end: int) -> Fit:
        net = new_net(source, settings, items=items, ablation=ablation)
        if warm is not None:
            warm_start(net, warm, source.catalogue)
        return Fit(net, source.dataset, end, settings, ablation=ablation)

    choice, earlier = Choice(settings.epochs), None
    if valid_from is not None:
        fit = begin(valid_from)
        choice = choose(fit, source, until=until, checkpoints=checkpoints, progress=progress)
        earlier = freeze(fit.net, source, popularity_at(fit), weight=choice.weight)
    fit = begin(until)
    if checkpoints is not None:
        checkpoints.restore(fit, FINAL)
    save = checkpoints.saver(FINAL, choice) if checkpoints is not None else None
    while fit.epoch < choice.epochs:
        fit.run_epoch(choice.epochs, _staged(progress, FINAL), save)
    return Learned(freeze(fit.net, source, popularity_at(fit), weight=choice.weight), choice, earlier)


def choose(
    fit: Fit, source: Source, *, until: int, checkpoints: Checkpoints | None = None, progress: Progress
) -> Choice:
    """Train on what is before the validation days until they get no better; the epochs and weight that did best."""
    dataset, epochs = source.dataset, fit.settings.epochs
    columns = (dataset.users, dataset.items, dataset.event_ms)
    history = History(Stream(*(np.asarray(column[:until], np.int64) for column in columns)))
    popular = popularity_at(fit).log_share()
    best = (checkpoints and checkpoints.restore(fit, VALIDATION)) or Choice(epochs)
    while fit.epoch < epochs and (best.quality < 0 or fit.epoch - best.epochs <= PATIENCE):
        save = checkpoints.saver(VALIDATION, best) if checkpoints is not None else None
        fit.run_epoch(epochs, _staged(progress, VALIDATION), save)
        found = judged(fit, dataset, history, popular=popular)
        best = max([best, *found], key=lambda choice: choice.quality)
    if checkpoints is not None:
        checkpoints.save(fit, VALIDATION, best)
    return best


def popularity_at(fit: Fit) -> Popularity:
    """After the last row that the fit learns from."""
    return popularity_of(fit.items_before, fit.net.items, fit.settings.half_life_events)


def judged(fit: Fit, dataset: Dataset, history: History, *, popular: Floats) -> list[Choice]:
    """The present state as a choice, once with each weight."""
    found = validate(fit, dataset, history, cut=fit.until, popular=popular)
    beside = {f"popular_{name}": value for name, value in found[0.0].items() if name != "cases"}
    return [
        Choice(fit.epoch, weight, float(np.mean([figures[f"recall@{k}"] for k in CUTOFFS])), figures | beside)
        for weight, figures in found.items()
    ]


def validate(
    fit: Fit, dataset: Dataset, history: History, *, cut: int, popular: Floats
) -> dict[float, dict[str, float]]:
    """By weight of the personal part: recall@k on each warm user's next watch after the cut, and `cases`."""
    net = fit.net
    vectors, bias = net.output_vectors(), net.bias.values.numpy()[:, 0]

    def personal(cases: Cases) -> Floats:
        with torch.inference_mode():
            users = net.users(case_queries(dataset, history, cases), []).numpy()
        return np.asarray(users @ vectors.T + bias)

    net.tower.eval()
    once = _Remembered(personal)
    asked = [_Weighted(once, weight, popular) for weight in WEIGHTS]
    ranks = walk_frozen(asked, history, cut=cut, catalogue=net.items).ranks
    return {one.weight: recall_of(ranks[one.name]) for one in asked}


def recall_of(ranks: Rows) -> dict[str, float]:
    """`recall@k` and `cases` of ranks from 0, negative for misses."""
    hits = {f"recall@{k}": ((ranks >= 0) & (ranks < k)).mean() if len(ranks) else 0.0 for k in CUTOFFS}
    return {name: float(value) for name, value in hits.items()} | {"cases": float(len(ranks))}


def case_queries(dataset: Dataset, history: History, cases: Cases) -> Queries:
    """The users of a walk's cases as serving would see them: searches up to then, the context of their newest watch."""
    return dataset.queries_at(cases.histories, cases.users, cases.event_ms, history.newest(cases.users, cases.rows))


@dataclass
class _Remembered:
    """The personal scores of the last batch, which every weight asks for."""

    compute: Callable[[Cases], Floats]
    cases: Cases | None = None
    scores: Floats | None = None

    def __call__(self, cases: Cases) -> Floats:
        if self.scores is None or self.cases is not cases:
            self.cases, self.scores = cases, self.compute(cases)
        return self.scores


@dataclass(frozen=True)
class _Weighted:
    """Popularity and so much of the personal part, as a recommender of a walk."""

    personal: Callable[[Cases], Floats]
    weight: float
    popular: Floats

    @property
    def name(self) -> str:
        return f"{self.weight:g}"

    def scores(self, cases: Cases) -> Floats:
        return np.asarray(np.float32(self.weight) * self.personal(cases) + self.popular)

    def learn(self, rows: slice) -> None:
        raise NotImplementedError("validation is frozen")


def new_net(source: Source, settings: Model, *, items: int, ablation: Ablation = NOTHING) -> CandidateNet:
    """A net for the first `items` rows of the catalogue, with the inputs that the data set has."""
    dataset, contexts = source.dataset, source.contexts
    shape = TowerShape(
        settings.dim,
        settings.hidden,
        settings.encoder,
        words=settings.search_dim if dataset.searches is not None else 0,
        contexts=contexts.sizes,
        traits=len(contexts.traits),
        example_age=settings.example_age,
        dropout=settings.dropout,
    )
    names = source.catalogue.id_names if settings.sides else ()
    return CandidateNet(
        shape,
        {name: source.catalogue.id_table(name, SIDE_IDS)[:items].astype(np.int32) for name in names},
        items,
        words=settings.search_tokens if shape.words else 0,
        tied=ablation.tied,
        normalised=ablation.normalised,
        seed=settings.seed,
    )


def warm_start(net: CandidateNet, warm: CandidateModel, catalogue: Catalogue) -> None:
    """Begin from an earlier model's rows and, where its tower has the same shape, from its tower. Items that it does
    not know begin at small noise, as in a cold start. Raises ValueError when the widths differ."""
    if warm.dim - 1 != net.shape.dim:
        raise ValueError(f"the release to start from has item vectors of {warm.dim - 1}, model.dim is {net.shape.dim}")
    rows = np.array([warm.row(item_id) for item_id in catalogue.item_ids[: net.items]])
    known = np.flatnonzero((rows >= 0) & (rows < len(warm.vectors)))
    net.outputs.own.values.numpy()[known] = warm.vectors[rows[known]]
    net.queries.own.values.numpy()[known] = warm.query_rows[rows[known]]
    net.bias.values.numpy()[known, 0] = warm.bias[rows[known]]
    if warm.reader.tower.shape == net.shape:
        net.tower.load_state_dict(warm.reader.tower.state_dict())
    if warm.reader.words.shape == tuple(net.words.values.shape):
        net.words.values.numpy()[...] = warm.reader.words


def freeze(net: CandidateNet, source: Source, popularity: Popularity, *, weight: float) -> CandidateModel:
    """The model as it is served: side embeddings are added into the rows, the weight is multiplied into the output
    side, and items that nobody has watched start where a new item would."""
    catalogue = source.catalogue
    vectors, queries = net.output_vectors() * np.float32(weight), net.queries.everything()
    bias = net.bias.values.numpy()[:, 0] * np.float32(weight)
    learnt = popularity.totals() > 0
    start = ColdStart(vectors, bias, queries, catalogue=catalogue, learnt=learnt)
    for row in np.flatnonzero(~learnt).tolist():
        vectors[row], bias[row], queries[row] = start.place(catalogue.channel_of(row), catalogue.topics_of(row))
    return CandidateModel(
        catalogue.item_ids[: net.items],
        Reader(net.tower, net.words.values.numpy(), source.contexts),
        vectors=vectors,
        bias=bias,
        query_rows=queries,
        popularity=popularity,
    )


def _staged(progress: Progress, stage: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(stage, done, total)
