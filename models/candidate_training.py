"""Trains the candidate generator from completed watches: next watch from the history before it, sampled softmax.

Popularity enters as a fixed offset, read from a snapshot that is older than the example; the embeddings learn what is
left. That one coordinate, kept fresh when serving, is most of what being live is worth.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from infra.settings import Model
from models.batches import batch_size, shuffled_batches
from models.candidates import CandidateModel
from models.catalogue import Catalogue
from models.cold_start import ColdStart
from models.evaluation import Positives
from models.losses import sampled_softmax
from models.popularity import Popularity, popularity_snapshots
from models.timeline import Timeline, first_of_pair
from models.tower import HISTORY, TOPICS, ItemTable, UserTower, bag_histories

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]

TABLE_RATE = 5e-3
TOWER_RATE = 2e-3
LEAST_STEPS = 50  # per epoch
SNAPSHOT_EVENTS = 1000  # watches between two snapshots of popularity
SNAPSHOT_CELLS = 50_000_000  # at most so many numbers in all snapshots: with more items they are further apart


class CandidateNet(nn.Module):
    """All that is learnt: both item tables, the bias, the tower."""

    def __init__(self, catalogue: Catalogue, dim: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        channels = catalogue.channel_codes(np.arange(len(catalogue))).astype(np.int64)
        topics = catalogue.topic_table(TOPICS)
        self.queries = ItemTable(channels, topics, dim)
        self.outputs = ItemTable(channels, topics, dim)
        self.bias = nn.Parameter(torch.zeros(len(catalogue)))
        self.tower = UserTower(dim, hidden)

    def forward(self, histories: Rows) -> Tensor:
        """int64 [B, H] -> user vectors [B, D]"""
        distinct, index, starts = bag_histories(histories)
        encoded: Tensor = self.tower(self.queries(distinct), index, starts)
        return encoded


class Sampler:
    """Shared negatives of a step, half from the batch, half uniform over the catalogue, and how often each is expected
    in such a sample: both halves count, since an item can come from either (Yang et al., WWW 2020)."""

    def __init__(self, items: Rows, size: int, negatives: int, rng: np.random.Generator) -> None:
        self._in_batch = negatives // 2
        self._uniform = negatives - self._in_batch
        self._share = np.bincount(items, minlength=size) / len(items)  # [N] of all training targets
        self._rng = rng

    def draw(self, targets: Rows) -> tuple[Rows, Floats]:
        """Rows int64 [S] and the log of their expected counts float32 [S], for a shuffled batch of targets [B]."""
        size = len(self._share)
        uniform = self._rng.integers(0, size, self._uniform)
        in_batch = targets[: self._in_batch]
        rows = np.concatenate([in_batch, uniform])
        expected = len(in_batch) * self._share[rows] + self._uniform / size
        return rows, np.log(expected).astype(np.float32)


def train_candidates(
    positives: Positives, catalogue: Catalogue, settings: Model, progress: Progress = lambda done, total: None
) -> CandidateModel:
    """Train on `positives`, whose items are rows of `catalogue`. The same seed gives the same model.

    `progress(done, total)` counts steps.
    """
    every = max(SNAPSHOT_EVENTS, len(positives) * len(catalogue) // SNAPSHOT_CELLS)
    snapshots, popularity = popularity_snapshots(positives.items, len(catalogue), settings.half_life_events, every)
    examples = np.flatnonzero(first_of_pair(positives.users, positives.items))  # repeats are dropped, as serving does
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        net = CandidateNet(catalogue, settings.dim, settings.hidden)
    rng = np.random.default_rng(settings.seed)
    sampler = Sampler(positives.items[examples], len(catalogue), settings.negatives, rng)
    timeline = Timeline(positives.users)
    size = batch_size(len(examples), largest=settings.batch, least_steps=LEAST_STEPS)
    batches = shuffled_batches(examples, size, settings.epochs, rng)
    optimizer = _optimizer(net)
    for step, chosen in enumerate(batches):
        windows = timeline.before(chosen, HISTORY)
        histories = np.where(windows >= 0, positives.items[windows], -1)
        _decay_rates(optimizer, 1 - step / len(batches))
        loss = step_loss(
            net,
            histories,
            positives.items[chosen],
            snapshots=snapshots,
            snapshot=chosen // every,
            sampler=sampler,
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        progress(step + 1, len(batches))
    return _freeze(net, catalogue, popularity)


def step_loss(
    net: CandidateNet, histories: Rows, targets: Rows, *, snapshots: Floats, snapshot: Rows, sampler: Sampler
) -> Tensor:
    """Mean loss of a batch. histories int64 [B, H]; targets int64 [B]; snapshots float32 [K, N] of popularity, and
    which of them is each example's: snapshot int64 [B]."""
    negatives, log_expected = sampler.draw(targets)
    users = net(histories)  # [B, D]
    rows = torch.from_numpy(np.concatenate([targets, negatives]))
    vectors, bias = net.outputs(rows), net.bias[rows]  # [B + S, D], [B + S]
    size = len(targets)
    offsets = torch.from_numpy(snapshots[:, negatives])[torch.from_numpy(snapshot)]  # [B, S]
    own_offset = torch.from_numpy(snapshots[snapshot, targets])  # [B]
    positive = (users * vectors[:size]).sum(dim=1) + bias[:size] + own_offset
    others = torch.addmm(offsets, users, vectors[size:].T) + bias[size:]  # [B, S]
    hits = torch.from_numpy(targets)[:, None] == torch.from_numpy(negatives)  # [B, S]
    return sampled_softmax(positive, others, torch.from_numpy(log_expected), hits).mean()


def _optimizer(net: CandidateNet) -> torch.optim.Optimizer:
    tables = [*net.queries.parameters(), *net.outputs.parameters(), net.bias]
    groups = [
        {"params": tables, "lr": TABLE_RATE, "first_lr": TABLE_RATE},
        {"params": list(net.tower.parameters()), "lr": TOWER_RATE, "first_lr": TOWER_RATE},
    ]
    return torch.optim.Adam(groups, fused=True)


def _decay_rates(optimizer: torch.optim.Optimizer, share: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["first_lr"] * share


def _freeze(net: CandidateNet, catalogue: Catalogue, popularity: Popularity) -> CandidateModel:
    """Add the side embeddings into the rows; items that nobody has watched start where a new item would."""
    everything = torch.arange(len(catalogue))
    with torch.no_grad():
        vectors, queries = net.outputs(everything).numpy(), net.queries(everything).numpy()
        bias = net.bias.detach().numpy().copy()
    learnt = popularity.totals() > 0
    start = ColdStart(vectors, bias, queries, catalogue=catalogue, learnt=learnt)
    for row in np.flatnonzero(~learnt).tolist():
        vectors[row], bias[row], queries[row] = start.place(catalogue.channel_of(row), catalogue.topics_of(row))
    return CandidateModel(
        list(catalogue.item_ids), net.tower, vectors=vectors, bias=bias, query_rows=queries, popularity=popularity
    )
