"""From a data set to a candidate generator: how long to train and how to weigh its parts is asked of validation days.

The last days before the end are held out of a first training. After each of its epochs the catalogue is ranked for what
came next, with the parts of the score at several weights: the towers', the linear part's, beside popularity at 1. Both
at 0 is decayed popularity alone, so the model contains that baseline and does not lose to it where recency is all.
Epochs and weights of the best then hold for a training on everything, since the newest days are what a live system
needs most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import msgspec
import numpy as np
import torch

from models.arrays import Floats, Rows
from models.catalogue.catalogue import Catalogue
from models.catalogue.content import bag_of
from models.device import device_of
from models.evaluation.backtest import judge, rows_at_once
from models.evaluation.eval_queries import EvalQueries, EvalQuery, History, Stream
from models.logs.dataset import Dataset
from models.logs.examples import Queries
from models.logs.training_set import TrainingSet
from models.retrieval.candidate_training import Fit, TrainingData
from models.retrieval.candidates import CandidateModel, UserEncoder
from models.retrieval.checkpoint import Checkpoints, ModelSelection
from models.retrieval.cold_start import ColdStart, ContentMap, fit_content, matrix_of
from models.retrieval.encoders import recent_sum_of, root_sum_of
from models.retrieval.hyper_parameters import CandidateParameters
from models.retrieval.linear import item_factors, ordered_factors
from models.retrieval.net import CandidateNet
from models.retrieval.popularity import HALF_LIFE, choose_half_life, popularity_of
from models.retrieval.tower import TowerShape, UserTowers

Progress = Callable[[str, int, int], None]
Quality = Callable[[Mapping[str, float]], float]
Pair = tuple[float, float]  # weights of the towers and of the linear part

CUTOFFS = (10, 50, 100, 500)
WEIGHTS = (1.0, 0.9, 0.75, 0.5, 0.0)  # of the towers beside popularity; the first wins a tie
LINEAR_WEIGHTS = (0.0, 6.0, 12.0, 18.0, 27.0)  # of the linear part
ORDERED_WEIGHTS = (0.0, 30.0, 60.0, 120.0, 240.0)  # of it, where it counts in order: its products are smaller
PATIENCE = 1  # epochs without a better one
MOST_QUERIES = 4000  # users who are asked about; drawn when there are more
MOST_SCORES = 1_000_000_000  # and fewer where the catalogue is large: their scores in all
CACHED_SCORES, LEAST_USERS = 500_000, 32  # ranked together; a product with fewer users reads all items for few
SIDE_IDS = 8  # most ids of one item in one column
MOST_TAUGHT = 100_000  # items that a map of content is learnt from, the most watched
LEAST_WATCHES = 3  # of each of them
VALIDATION, FINAL = "validation", "candidates"  # stages


class WarmStartError(ValueError):
    """An earlier release is no start for a model of these settings; the text says which."""


class Learned(NamedTuple):
    """The model of everything, what was chosen, and the model that has not seen the validation days (None: no such)."""

    model: CandidateModel
    selection: ModelSelection
    earlier: CandidateModel | None


def learn_candidates(
    training_set: TrainingSet,
    settings: CandidateParameters,
    *,
    until: int,
    valid_from: int | None,
    items: int,
    selection: ModelSelection | None = None,
    warm: CandidateModel | None = None,
    warm_rows: int = 0,
    checkpoints: Checkpoints | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Learned:
    """A model of the first `items` of the catalogue from the data set's rows before `until`.

    Rows from `valid_from` on are validation first; None takes settings.epochs as they are. With a `selection` that was
    made before they choose nothing but the half-life. `warm` is an earlier model to begin from, which may have learnt
    the first `warm_rows` rows: where these reach into the validation days, only the last training begins from it. The
    same seed gives the same model, also when it was interrupted and went on from `checkpoints`.
    """
    if warm is not None:
        check_start(warm, settings)
    watched, half_life = training_set.dataset.items[:until], settings.half_life_events
    if not settings.half_life_events:
        half_life = HALF_LIFE if valid_from is None else choose_half_life(watched, items, since=valid_from)
    begin = partial(Training, training_set, settings, items=items)
    earlier = None
    if selection is None and valid_from is not None:
        unbiased = warm if warm_rows <= valid_from else None
        training = begin(until=valid_from, half_life_events=half_life, warm=unbiased)
        selection = choose(training, until=until, checkpoints=checkpoints, progress=progress)
        earlier = training.freeze(selection)
    selection = selection or ModelSelection(settings.epochs)
    if not (selection.weight or selection.linear):  # popularity alone: at its best, and nothing to train
        selection = msgspec.structs.replace(selection, epochs=0)
        if not settings.half_life_events:
            half_life = choose_half_life(watched, items, since=valid_from or 0, tolerance=0.0)
        progress(FINAL, 1, 1)
    training = begin(until=until, half_life_events=half_life, warm=warm)
    if checkpoints is not None:
        checkpoints.restore(training.fits, FINAL)
    return Learned(train(training, selection, checkpoints, progress), selection, earlier)


def train(
    training: Training,
    selection: ModelSelection,
    checkpoints: Checkpoints | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> CandidateModel:
    """Train for the epochs that were selected, and freeze."""
    while training.epoch < selection.epochs:
        training.run_epoch(selection, FINAL, selection.epochs, checkpoints, progress)
    return training.freeze(selection)


class Training:
    """The members of one model under training, and its linear part (what a history adds up, and what items are)."""

    net_type, fit_type = CandidateNet, Fit

    def __init__(
        self,
        training_set: TrainingSet,
        settings: CandidateParameters,
        *,
        half_life_events: float,
        until: int,
        items: int,
        warm: CandidateModel | None = None,
    ) -> None:
        self.training_set, self.settings, self.until, self.items = training_set, settings, until, items
        dataset, self.fits = training_set.dataset, []
        data = TrainingData(dataset, until, items, settings, half_life_events)
        for member in range(settings.members):
            seed = settings.seed + 1000 * member
            net = new_net(training_set, settings, items=items, seed=seed, kind=self.net_type)
            if warm is not None:
                warm_start(net, warm, training_set.catalogue, member)
            self.fits.append(self.fit_type(net, data, settings, seed=seed))
        rows = data.new_rows
        factors_of = ordered_factors if settings.linear_order else item_factors
        self.linear = factors_of(
            dataset.users[rows].astype(np.int64),
            dataset.items[rows].astype(np.int64),
            size=items,
            dim=settings.linear_dim,
            seed=settings.seed,
        )
        self.popularity = popularity_of(dataset.items[:until], items, half_life_events)

    @property
    def epoch(self) -> int:
        """Epochs that all members have done."""
        return min(fit.epoch for fit in self.fits)

    def run_epoch(
        self, selection: ModelSelection, stage: str, epochs: int, checkpoints: Checkpoints | None, progress: Progress
    ) -> None:
        """The next epoch of every member that has not done it; `selection` is what a checkpoint is to remember."""
        target = self.epoch + 1
        save = checkpoints.saver(self.fits, stage, selection) if checkpoints is not None else None

        def report(_: int, total: int) -> None:
            progress(stage, sum(fit.epoch * fit.steps + fit.step for fit in self.fits), total * len(self.fits))

        for fit in self.fits:
            if fit.epoch < target:
                fit.run_epoch(epochs, report, save)

    def users(self, queries: Queries) -> Floats:
        """float32 [B, members * dim]: by the towers as they are."""
        with torch.inference_mode():
            return np.concatenate([fit.net.users(queries, []).cpu().numpy() for fit in self.fits], axis=1)

    def linear_users(self, histories: Rows) -> Floats:
        """float32 [B, L]: of the linear part; histories int64 [B, H]."""
        sum_of = recent_sum_of if self.settings.linear_order else root_sum_of
        return np.asarray(sum_of(torch.from_numpy(self.linear[0]), torch.from_numpy(histories)).numpy())

    def output_vectors(self) -> Floats:
        """float32 [N, members * dim]: of the towers; their logits are averaged."""
        vectors: Floats = np.concatenate([fit.net.outputs.everything() for fit in self.fits], axis=1)
        return vectors / np.float32(len(self.fits))

    def bias(self) -> Floats:
        biases = np.stack([fit.net.bias.values.numpy()[:, 0] for fit in self.fits])
        return np.asarray(biases.mean(axis=0, dtype=np.float32))

    def linear_width(self, selection: ModelSelection) -> int:
        """The numbers of the linear part in a model: none where it has no weight."""
        return self.linear[0].shape[1] if selection.linear else 0

    def freeze(self, selection: ModelSelection) -> CandidateModel:
        """The model as it is served: side embeddings are added into the rows, the weights are multiplied into the
        output side, and items that nobody has completed start where a new item would; of those that were skipped the
        towers keep what that says of a user."""
        nets, catalogue = [fit.net for fit in self.fits], self.training_set.catalogue
        vectors, bias, queries = self.rows(selection)
        learnt = self.popularity.totals() > 0
        content = self.content_map(vectors, queries, self.taught()) if places_by_content(selection.metrics) else None
        start = ColdStart(vectors, bias, queries, catalogue=catalogue, learnt=learnt, content=content)
        skipped, towers = self.training_set.dataset.skipped(self.until, self.items), sum(net.shape.dim for net in nets)
        for row in np.flatnonzero(~learnt).tolist():
            kept = towers if skipped[row] else 0
            vectors[row], bias[row], placed = start.place(self.training_set.content_of(row))
            queries[row, kept:] = placed[kept:]
        words = np.concatenate([net.words.values.numpy() for net in nets], axis=1)
        return CandidateModel(
            catalogue.item_ids[: self.items],
            UserEncoder(self._towers(selection), words, self.training_set.contexts),
            vectors=vectors,
            bias=bias,
            query_rows=queries,
            popularity=self.popularity,
            content=content,
        )

    def rows(self, selection: ModelSelection) -> tuple[Floats, Floats, Floats]:
        """Vectors [N, D], bias [N] and query rows [N, D] with these weights, of watched items as they are served."""
        weight, linear = np.float32(selection.weight), np.float32(selection.linear)
        heard, spoken = (side[:, : self.linear_width(selection)] for side in self.linear)
        vectors = np.concatenate([weight * self.output_vectors(), linear * spoken], axis=1)
        queries = np.concatenate([*(fit.net.queries.everything() for fit in self.fits), heard], axis=1)
        return vectors, weight * self.bias(), queries

    def taught(self) -> Rows:
        """int64 [n]: the items that a map of content is learnt from."""
        totals = self.popularity.totals()
        rows = np.flatnonzero(totals >= LEAST_WATCHES)
        return rows[np.argsort(-totals[rows], kind="stable")[:MOST_TAUGHT]]

    def content_map(self, vectors: Floats, queries: Floats, taught: Rows) -> ContentMap | None:
        """The map from content to vectors and query rows [N, D] that these items teach; None where there are none."""
        if not len(taught):
            return None
        said, contents = self.training_set.said, map(self.training_set.content_of, taught.tolist())
        bags = matrix_of((bag_of(content, said.shape) for content in contents), said.shape)
        learnt = np.concatenate([vectors[taught], queries[taught]], axis=1)
        own = None if said.vectors is None else said.vectors[taught]
        return ContentMap(fit_content(bags, learnt, self.popularity.totals()[taught], own), said.shape)

    def _towers(self, selection: ModelSelection) -> UserTowers:
        shape = self.fits[0].net.shape
        whole = msgspec.structs.replace(
            shape,
            members=len(self.fits),
            linear=self.linear_width(selection),
            ordered=self.settings.linear_order,
            muted_towers=not selection.weight,
        )
        with torch.random.fork_rng(devices=[]):  # weights are drawn and then replaced
            towers = UserTowers(whole)
        for member, fit in zip(towers.members, self.fits, strict=True):
            member.load_state_dict(fit.net.tower.state_dict())
        return towers


def choose(
    training: Training,
    *,
    until: int,
    checkpoints: Checkpoints | None,
    progress: Progress,
    quality: Quality | None = None,
    patience: int = PATIENCE,
    most: int = MOST_QUERIES,
) -> ModelSelection:
    """Train on what is before the validation days until they get no better for so many epochs and one more; the epochs
    and weights that did best for `most` users, by quality_of where nothing else is asked for."""
    dataset, epochs = training.training_set.dataset, training.settings.epochs
    columns = (dataset.users, dataset.items, dataset.event_ms)
    history = History(Stream(*(np.asarray(column[:until], np.int64) for column in columns)))
    asked = drawn(history.next_unseen(training.until), training.items, training.settings.seed, most=most)
    if not len(asked):  # nobody comes back in the validation days: they decide nothing
        return ModelSelection(epochs, metrics={"cases": 0.0})
    best = (checkpoints and checkpoints.restore(training.fits, VALIDATION)) or ModelSelection(epochs)
    while training.epoch < epochs and (best.quality < 0 or training.epoch - best.epochs <= patience):
        training.run_epoch(best, VALIDATION, epochs, checkpoints, progress)
        best = max(
            [best, *judged(training, history, asked, quality or quality_of)], key=lambda selection: selection.quality
        )
        if training.settings.content and best.epochs == training.epoch:
            best = msgspec.structs.replace(best, metrics=best.metrics | content_gain(training, history, asked, best))
    if checkpoints is not None:
        checkpoints.save(training.fits, VALIDATION, best)
    if is_worth_it(best.metrics):
        return best
    return msgspec.structs.replace(best, weight=0.0, linear=0.0, metrics=popular_alone(best.metrics))


def drawn(asked: EvalQuery, items: int, seed: int, least: int = 1, most: int = MOST_QUERIES) -> EvalQuery:
    """At most so many of those who could be asked that ranking the catalogue for them stays affordable, and `least` of
    them whatever it costs."""
    most = max(least, min(most, MOST_SCORES // items))
    if len(asked) <= most:
        return asked
    return asked[np.sort(np.random.default_rng([seed, 4]).choice(len(asked), most, replace=False))]


def is_worth_it(metrics: Mapping[str, float]) -> bool:
    """Return whether the selection ranks what was watched better than popularity alone, by more than two standard
    errors: it is the best of many, and luck alone would be worth one."""
    return metrics.get("log_rank_gain", 1.0) > 2 * metrics.get("log_rank_gain_se", 0.0)


def popular_alone(metrics: Mapping[str, float]) -> dict[str, float]:
    """The figures of popularity as those of the selection, which has no other part."""
    own = {name.removeprefix("popular_"): value for name, value in metrics.items() if name.startswith("popular_")}
    others = ("linear_", "skips_", "content_")
    return {name: value for name, value in metrics.items() if not name.startswith(others)} | own


def judged(training: Training, history: History, asked: EvalQuery, quality: Quality) -> list[ModelSelection]:
    """The present state as a selection, once with each pair of weights. The best one is also asked without its linear
    part, and without skips: what they earn. It was chosen for being the best, so that is rather too much."""
    ordered = training.settings.linear_order
    linear_weights = (ORDERED_WEIGHTS if ordered else LINEAR_WEIGHTS) if training.settings.linear_dim else (0.0,)
    pairs = [(weight, linear) for linear in linear_weights for weight in WEIGHTS]
    ranks = ranked(training, history, asked, pairs)
    alone, items = ranks[0.0, 0.0], training.items
    found = {pair: recall_of(of_pair) | gain_of("log_rank", of_pair, alone, items) for pair, of_pair in ranks.items()}
    best = max(found, key=lambda pair: quality(found[pair]))
    if best[1]:
        found[best] |= gain_of("linear", ranks[best], ranks[best[0], 0.0], items)
    if best[0] and training.training_set.dataset.skips is not None:
        without = ranked(training, history, asked, [best], skips=False)[best]
        found[best] |= gain_of("skips", ranks[best], without, items)
    beside = {f"popular_{name}": value for name, value in recall_of(alone).items() if name != "cases"}
    return [
        ModelSelection(training.epoch, weight, linear, quality(at), at | beside)
        for (weight, linear), at in found.items()
    ]


def ranked(
    training: Training, history: History, asked: EvalQuery, pairs: Sequence[Pair], *, skips: bool = True
) -> dict[Pair, Rows]:
    """The rank of what was watched by each pair of weights, of towers and linear part. int64 [n] each"""
    ranks = {pair: [np.empty(0, np.int64)] for pair in pairs}
    vectors, bias = training.output_vectors(), training.bias()
    popular, size = training.popularity.log_share(), users_at_once(training.items)
    for start in range(0, len(asked), size):
        queries = history.queries(asked[start : start + size])
        inputs = tower_queries(training.training_set.dataset, history, queries)
        if not skips:
            inputs = replace(inputs, skips=np.full_like(inputs.skips, -1))
        personal = training.users(inputs) @ vectors.T + bias
        linear = training.linear_users(queries.histories) @ training.linear[1].T  # [B, N]
        for weight, linear_weight in pairs:
            scores = np.float32(weight) * personal + np.float32(linear_weight) * linear + popular
            ranks[weight, linear_weight].append(judge(scores, queries))
    return {pair: np.concatenate(blocks) for pair, blocks in ranks.items()}


def users_at_once(items: int) -> int:
    """How many users are ranked together: with many pairs of weights their scores had better stay in the cache."""
    return min(rows_at_once(items), max(LEAST_USERS, CACHED_SCORES // max(items, 1)))


def places_by_content(metrics: Mapping[str, float]) -> bool:
    """Return whether new items are placed by a map of their content: it did better on the validation days than means
    of their ids, by more than two standard errors."""
    return metrics.get("content_gain", 0.0) > 2 * metrics.get("content_gain_se", 0.0)


def content_gain(training: Training, history: History, asked: EvalQuery, selection: ModelSelection) -> dict[str, float]:
    """By how many doublings what was watched stands higher where watched items are placed by a map of their content and
    not by means of their ids, as if they were new: each by what the other half of them teaches. Mean, standard error
    and number of queries; nothing where too few items are known well."""
    vectors, bias, queries = training.rows(selection)
    taught = training.taught()
    asked = asked[np.flatnonzero(np.isin(history.targets(asked), taught))]
    first = np.random.default_rng([training.settings.seed, 5]).random(len(taught)) < 0.5
    by_means, by_content = vectors.copy(), vectors.copy()
    for half in (taught[first], taught[~first]):
        others = np.setdiff1d(taught, half)
        content = training.content_map(vectors, queries, others)
        if content is None or not len(asked):
            return {}
        learnt = np.isin(np.arange(training.items), others)
        catalogue = training.training_set.catalogue
        means = ColdStart(vectors, bias, queries, catalogue=catalogue, learnt=learnt)
        for row in half.tolist():
            own = training.training_set.content_of(row)
            by_means[row] = means.place(own).vector
            by_content[row] = content.row_of(own)[: vectors.shape[1]]
    ours, without = (_ranks_of(training, history, asked, placed, bias) for placed in (by_content, by_means))
    return gain_of("content", ours, without, training.items) | {"content_cases": float(len(asked))}


def _ranks_of(training: Training, history: History, asked: EvalQuery, vectors: Floats, bias: Floats) -> Rows:
    """int64 [n]: the rank of what was watched, by these vectors [N, D]."""
    offsets = bias + training.popularity.log_share()
    ranks = [np.empty(0, np.int64)]
    for start in range(0, len(asked), rows_at_once(training.items)):
        queries = history.queries(asked[start : start + rows_at_once(training.items)])
        users = np.concatenate(
            [
                training.users(tower_queries(training.training_set.dataset, history, queries)),
                training.linear_users(queries.histories),
            ],
            axis=1,
        )
        ranks.append(judge(users[:, : vectors.shape[1]] @ vectors.T + offsets, queries))
    return np.concatenate(ranks)


def gain_of(name: str, ranks: Rows, without: Rows, items: int) -> dict[str, float]:
    """By how many doublings what was watched stands higher than in the ranks `without` something, query by query: mean
    and its standard error, `<name>_gain` and `<name>_gain_se`. A miss stands behind all items."""
    if len(ranks) < 2:
        return {f"{name}_gain": 0.0, f"{name}_gain_se": 0.0}
    ours, theirs = (np.log2(1.0 + np.where(one < 0, items, one)) for one in (ranks, without))
    gains = theirs - ours
    error = gains.std(ddof=1) / np.sqrt(len(gains))
    return {f"{name}_gain": float(gains.mean()), f"{name}_gain_se": float(error)}


def quality_of(found: Mapping[str, float]) -> float:
    """The geometric mean of the recalls: a tenth more of the top 10 is worth a tenth more of the top 500."""
    recalls = np.array([found[f"recall@{k}"] for k in CUTOFFS])
    return float(np.exp(np.log(np.maximum(recalls, 1e-9)).mean()))


def recall_of(ranks: Rows) -> dict[str, float]:
    """`recall@k` and `cases` (their number) of ranks from 0, negative for misses."""
    hits = {f"recall@{k}": ((ranks >= 0) & (ranks < k)).mean() if len(ranks) else 0.0 for k in CUTOFFS}
    return {name: float(value) for name, value in hits.items()} | {"cases": float(len(ranks))}


def tower_queries(dataset: Dataset, history: History, queries: EvalQueries) -> Queries:
    """The users of a walk as serving would see them: searches up to then, the context of their newest watch."""
    newest = history.newest(queries.users, queries.rows)
    return dataset.queries_at(queries.histories, queries.users, queries.event_ms, newest)


def new_net(
    training_set: TrainingSet,
    settings: CandidateParameters,
    *,
    items: int,
    seed: int | None = None,
    kind: type[CandidateNet] = CandidateNet,
) -> CandidateNet:
    """A net for the first `items` rows of the catalogue, with the inputs that the data set has; `seed` in place of the
    settings' own."""
    dataset, contexts = training_set.dataset, training_set.contexts
    shape = TowerShape(
        settings.dim,
        settings.hidden,
        settings.encoder,
        residual=settings.residual,
        words=settings.search_dim if dataset.searches is not None else 0,
        contexts=contexts.sizes,
        traits=len(contexts.traits),
        example_age=settings.example_age,
        dropout=settings.dropout,
        skips=dataset.skips.most if dataset.skips is not None else 0,
    )
    names = training_set.catalogue.id_names if settings.sides else ()
    return kind(
        shape,
        {name: training_set.catalogue.id_table(name, SIDE_IDS)[:items].astype(np.int32) for name in names},
        items,
        words=settings.search_tokens if shape.words else 0,
        seed=settings.seed if seed is None else seed,
        tied=settings.tied,
        device=device_of(settings.device),
    )


def check_start(warm: CandidateModel, settings: CandidateParameters) -> None:
    """Return when a model of these settings can begin from `warm`. Raises WarmStartError when the shapes differ."""
    theirs = warm.encoder.tower.shape
    if theirs.dim != settings.dim or settings.members > theirs.members:
        has = f"{theirs.members} towers of {theirs.dim}"
        raise WarmStartError(f"the release to start from has {has}; set model.members and model.dim to that")


def warm_start(net: CandidateNet, warm: CandidateModel, catalogue: Catalogue, member: int) -> None:
    """Begin from an earlier model's rows and, where its tower has the same shape, from its tower. Items that it does
    not know begin at small noise, as in a cold start; one table for both sides begins from the rows of the user's side.
    It has passed check_start."""
    theirs = warm.encoder.tower.shape
    part = slice(member * theirs.dim, (member + 1) * theirs.dim)
    rows = np.array([warm.row(item_id) for item_id in catalogue.item_ids[: net.items]])
    known = np.flatnonzero((rows >= 0) & (rows < len(warm.vectors)))
    net.outputs.own.values.numpy()[known] = warm.vectors[rows[known], part] * theirs.members
    net.queries.own.values.numpy()[known] = warm.query_rows[rows[known], part]
    net.bias.values.numpy()[known, 0] = warm.bias[rows[known]]
    state = warm.encoder.tower.members[member].state_dict()
    ours = net.tower.state_dict()
    if {name: weight.shape for name, weight in state.items()} == {name: weight.shape for name, weight in ours.items()}:
        net.tower.load_state_dict(state)
    words = warm.encoder.words[:, member * theirs.words : (member + 1) * theirs.words]
    if words.shape == tuple(net.words.values.shape):
        net.words.values.numpy()[...] = words
