"""Trains the candidate generator from completed watches: next watch from the history before it, sampled softmax.

Popularity enters as a fixed offset, read from a snapshot that is older than the example; the embeddings learn what is
left. That one coordinate, kept fresh when serving, is most of what being live is worth.

Every random choice is drawn from (seed, epoch, step), so a training that was interrupted goes on to the same result.
Several processes (torchrun) hold the same tables, take a share of each batch, and add up their gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from models.arrays import Flags, Floats, Integers, Rows
from models.logs.batches import batch_size, epoch_batches
from models.logs.dataset import Dataset
from models.logs.examples import Queries
from models.retrieval.hyper_parameters import CandidateParameters
from models.retrieval.losses import Extra
from models.retrieval.net import CandidateNet, Touched
from models.retrieval.popularity import Snapshots
from models.retrieval.sampling import Negatives, draw_negatives, find_hits

Progress = Callable[[int, int], None]

AfterStep = Callable[[], None]

LEAST_STEPS = 50  # per epoch
EPOCH_EXAMPLES = 2_000_000  # most examples of an epoch: validation is asked after so many of a long log


class TrainingData:
    """The examples that the members of one model learn from: the data set's rows before `until`.

    new_rows int64 [K]: first watches of an item by a user, without those of weight 0; rows int64 [E]: those that are
    examples, weights float32 [E]; share float [N] of each of the `items` among the targets; snapshots of popularity
    before each row."""

    def __init__(
        self,
        dataset: Dataset,
        until: int,
        items: int,
        settings: CandidateParameters,
        half_life_events: float | None = None,
    ) -> None:
        """`half_life_events` in place of the settings' own."""
        self.dataset, self.until = dataset, until
        self.new_rows = dataset.new_rows(until)
        if dataset.weights is not None:
            self.new_rows = self.new_rows[dataset.weights[self.new_rows] > 0]
        self.rows = choose_examples(dataset, self.new_rows, settings)
        self.weights = example_weights(dataset.users[self.rows], settings)
        if dataset.weights is not None and len(self.rows):
            weights = self.weights * dataset.weights[self.rows]
            self.weights = weights / np.float32(weights.mean(dtype=np.float64))
        self.snapshots = Snapshots(dataset.items[:until], items, half_life_events or settings.half_life_events)
        counts = np.bincount(dataset.items[self.rows], minlength=items)
        self.share = counts / max(counts.sum(), 1)


class Fit:
    """A training under way: the net, the tower's optimiser, and how far it is."""

    def __init__(
        self, net: CandidateNet, data: TrainingData, settings: CandidateParameters, *, seed: int | None = None
    ) -> None:
        """`seed` in place of the settings' own."""
        self.net, self.settings = net, settings
        self.seed = settings.seed if seed is None else seed
        self.epoch = self.step = 0
        self.optimizer = torch.optim.Adam(net.tower.parameters(), lr=settings.tower_rate)
        self.batch = batch_size(len(data.rows), largest=settings.batch, least_steps=LEAST_STEPS)
        self.data = data

    @property
    def steps(self) -> int:
        """The steps of one epoch: all examples once, but no more than EPOCH_EXAMPLES of them, drawn anew each time."""
        return -(-min(len(self.data.rows), EPOCH_EXAMPLES) // self.batch)

    def run_epoch(self, epochs: int, progress: Progress, after_step: AfterStep | None = None) -> float:
        """The rest of the present epoch, the learning rate falling linearly to 0 over `epochs`. Mean loss."""
        self.net.tower.train()
        rng = np.random.default_rng([self.seed, 1, self.epoch])
        batches = islice(epoch_batches(len(self.data.rows), self.batch, rng), self.steps)
        total, count = 0.0, 0
        for number, chosen in enumerate(batches):
            if number < self.step:
                continue
            done = self.epoch * self.steps + number
            total += self.learn(chosen, 1 - done / (epochs * self.steps))
            count += 1
            self.step += 1
            if after_step is not None:
                after_step()
            progress(done + 1, epochs * self.steps)
        self.epoch, self.step = self.epoch + 1, 0
        self.net.tower.eval()
        return total / max(count, 1)

    def learn(self, chosen: Rows, rate: float) -> float:
        """One step on the examples numbered `chosen`, at this share of the learning rates. The mean loss."""
        rows = self.data.rows[chosen]
        rng = np.random.default_rng([self.seed, 2, self.epoch, self.step])
        targets = self.data.dataset.items[rows].astype(np.int64)
        negatives = self.draw(targets, rng)
        distinct, at = self.net.distinct_items(np.concatenate([targets, negatives.rows]))
        own, others = at[: len(rows)], at[len(rows) :]
        part = my_part(len(rows))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**62)) + part.start)  # of the tower's dropout
            losses, touched = self.net.losses(
                self._queries(rows, rng),
                distinct,
                own,
                others,
                self.extra(rows[part], targets[part], negatives, find_hits(own[part], others, len(distinct))),
                part=part,
            )
        weighted = (losses * torch.from_numpy(self.data.weights[chosen[part]]).to(losses.device)).sum()
        self.optimizer.zero_grad(set_to_none=True)
        weighted.backward()  # type: ignore[no-untyped-call]
        total = add_up(weighted.detach(), touched, self.net, size=len(rows))
        for table, places, leaf in touched:
            if leaf.grad is not None:
                table.move(places, leaf.grad, self.settings.table_rate * rate)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.tower_rate * rate
        self.optimizer.step()
        return total

    def _queries(self, rows: Rows, rng: np.random.Generator) -> Queries:
        """As serving would see them, but for some watches that are left out at random, completed ones and others: what
        a user is must not hang on any single one."""
        window_ms = self.settings.age_window_h * 3_600_000 if self.net.shape.example_age else None
        queries = self.data.dataset.queries(rows, age_window_ms=window_ms, until=self.data.until)
        share = self.settings.history_dropout
        if not share:
            return queries
        histories, skips = thinned(queries.histories, share, rng), thinned(queries.skips, share, rng)
        return replace(queries, histories=histories, skips=skips)

    def draw(self, targets: Rows, rng: np.random.Generator) -> Negatives:
        """The negatives that a step shares."""
        return draw_negatives(
            targets,
            self.data.share.take,
            items=self.net.items,
            negatives=self.settings.negatives,
            in_batch=self.settings.in_batch,
            rng=rng,
        )

    def extra(self, rows: Rows, targets: Rows, negatives: Negatives, hits: Rows) -> Extra:
        """Return what is added to the logits: popularity as it was before each of `rows`, less the log of expected
        counts."""
        own, others = self.data.snapshots.offsets(rows, targets, negatives.rows, negatives.log_expected)
        return Extra(torch.from_numpy(own), torch.from_numpy(others), torch.from_numpy(hits))


def thinned(rows: Rows, share: float, rng: np.random.Generator) -> Rows:
    """The rows without a random share of them, -1 in their place."""
    return np.where(rng.random(rows.shape) < share, -1, rows)


def choose_examples(dataset: Dataset, rows: Rows, settings: CandidateParameters) -> Rows:
    """Those of `rows` to learn from: of each user and window at most so many, drawn at random (paper section 3.3, "a
    fixed number of training examples per user")."""
    if settings.examples_per_user:
        window_ms = round(settings.example_window_h * 3_600_000)
        window = dataset.event_ms[rows] // window_ms
        rng = np.random.default_rng([settings.seed, 3])
        rows = rows[reservoir(dataset.users[rows].astype(np.int64), window, settings.examples_per_user, rng)]
    return rows


def reservoir(users: Rows, windows: Rows, most: int, rng: np.random.Generator) -> Flags:
    """bool [N]: at most `most` rows of each user and window, each with the same chance."""
    order = np.lexsort((rng.random(len(users)), windows, users))
    user, window = users[order], windows[order]
    is_first = np.r_[True, (user[1:] != user[:-1]) | (window[1:] != window[:-1])][: len(users)]
    starts = np.flatnonzero(is_first)
    rank = np.arange(len(users)) - np.repeat(starts, np.diff(np.r_[starts, len(users)]))
    keep = np.zeros(len(users), np.bool_)
    keep[order] = rank < most
    return keep


def example_weights(users: Integers, settings: CandidateParameters) -> Floats:
    """float32 [N], mean 1: all alike, or 1/n of a user with n examples."""
    if not settings.equal_users or not len(users):
        return np.ones(len(users), np.float32)
    _, inverse, counts = np.unique(users, return_inverse=True, return_counts=True)
    weights: Floats = (1 / counts[inverse]).astype(np.float32)
    return weights / np.float32(weights.mean(dtype=np.float64))


def my_part(size: int) -> slice:
    """The share of a batch that this process computes."""
    if not dist.is_initialized():
        return slice(0, size)
    rank, world = dist.get_rank(), dist.get_world_size()
    return slice(size * rank // world, size * (rank + 1) // world)


def add_up(loss: Tensor, touched: list[Touched], net: CandidateNet, *, size: int) -> float:
    """Sum gradients and loss over all processes, in the same order in each, zeros where its part touched nothing; the
    mean loss."""
    if dist.is_initialized():
        for leaf in [*(leaf for _, _, leaf in touched), *net.tower.parameters()]:
            if leaf.grad is None:
                leaf.grad = torch.zeros_like(leaf)
            dist.all_reduce(leaf.grad)
        dist.all_reduce(loss)
    return float(loss) / size
