"""Learns item rows live: the user tower is frozen, the items that are watched move, popularity is counted.

One call of `learn` is one step of row-wise Adagrad on the rows it touches, gathered from the tables and written back;
no operation in it is as large as the catalogue. What a row has learnt travels with it (`rows`), so that the release's
bundle and the published rows give the trainer back after a crash.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from models.bundle import Bundle
from models.candidates import encode, history_rows, with_one
from models.cold_start import ColdStart
from models.columns import Columns
from models.evaluation import rows_at_once, target_ranks
from models.losses import sampled_softmax
from models.popularity import Popularity
from models.refresh import RefreshSchedule
from models.viewer import Example

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

FIRST_SQUARE = 1.0  # Adagrad's accumulator of a row that has not moved: what a negative gets at first stays small
PUBLISH_MOVE = 0.1  # a row that only was a negative is published when it has moved this far since it last was
MEMORY = 50_000  # examples remembered for replay
STATE = struct.Struct("<ddqff")  # count, total, clock of the last watch, bias, accumulator


class Ranks(NamedTuple):
    """0-based rank of each example's item among all items but those already watched, int64 [B], before learning it.

    -1: the item is not known to that model, a miss. `counted` is False where the item was watched before: serving would
    have left it out, so it is neither hit nor miss (its ranks are -1 too).
    """

    live: Rows
    frozen: Rows
    popular: Rows
    counted: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class StepResult:
    """`touched` are rows to publish; `dropped`: the step was not finite and nothing of it was applied."""

    loss: float
    touched: Rows
    dropped: bool


class IncrementalTrainer:
    """The item table of one release, kept up to date. Rows are numbered as in the bundle, new items behind."""

    def __init__(self, bundle: Bundle, *, learning_rate: float, negatives: int, replay: int, seed: int) -> None:
        model = bundle.model
        self.item_ids = list(model.item_ids)
        self.popularity: Popularity = model.popularity.copy()
        self._tower = model.tower
        self._frozen = model.item_vectors()  # [N, D + 1]
        self._frozen_row_of = {item_id: row for row, item_id in enumerate(model.item_ids)}
        self._frozen_query = model.query_rows()  # [N, D]
        self._row_of = dict(self._frozen_row_of)
        self._items = Columns(
            vector=model.vectors.copy(),
            bias=model.bias.copy(),
            query=self._frozen_query.copy(),
            square=np.full(len(self.item_ids), FIRST_SQUARE, np.float32),
            moved=np.zeros(len(self.item_ids), np.float32),
        )
        self._start = ColdStart(
            model.vectors,
            model.bias,
            self._frozen_query,
            catalogue=bundle.catalogue,
            learnt=model.popularity.totals() > 0,
        )
        self._rate, self._negatives, self._replay = learning_rate, negatives, replay
        self._rng = np.random.default_rng(seed)
        self._memory = Memory(MEMORY, model.dim - 1)
        self._refreshes = RefreshSchedule(self.popularity)

    def __len__(self) -> int:
        return len(self.item_ids)

    @property
    def dim(self) -> int:
        """Length of an index vector."""
        return int(self._items["vector"].shape[1]) + 1

    def row(self, item_id: str) -> int:
        return self._row_of.get(item_id, -1)

    def add_item(self, item_id: str, *, channel: str | None = None, topics: Sequence[str] = ()) -> int:
        """The row of an item, made at first sight at the mean of its channel and topics. O(1) amortised."""
        known = self._row_of.get(item_id)
        if known is not None:
            return known
        start = self._start.place(channel, topics)
        row = self._items.append(
            vector=start.vector,
            bias=start.bias,
            query=start.query_row,
            square=FIRST_SQUARE,
            moved=0.0,
        )
        self.popularity.append()
        self.item_ids.append(item_id)
        self._row_of[item_id] = row
        return row

    def restore(self, item_id: str, vector: bytes, query_row: bytes, state: bytes) -> None:
        """Put back a row as `rows` published it. Raises ValueError naming the item when the bytes do not fit or hold
        a number that is not finite."""
        expected = 4 * self.dim, 4 * (self.dim - 1), STATE.size
        if (len(vector), len(query_row), len(state)) != expected:
            sizes = f"{len(vector)}, {len(query_row)}, {len(state)} bytes, expected {expected}"
            raise ValueError(f"row of item {item_id} does not fit this release: vector, query row and state of {sizes}")
        count, total, touched, bias, square = STATE.unpack(state)
        parameters, query = np.frombuffer(vector, "<f4"), np.frombuffer(query_row, "<f4")
        if not (
            np.isfinite(parameters).all() and np.isfinite(query).all() and np.isfinite([count, bias, square]).all()
        ):
            raise ValueError(f"row of item {item_id} holds a number that is not finite")
        row = self.add_item(item_id)
        self._items["vector"][row] = parameters[:-1]
        self._items["bias"][row] = bias
        self._items["query"][row] = query
        self._items["square"][row] = square
        self.popularity.restore(row, count, total, touched)
        self._refreshes.forget()

    def rows(self, touched: Rows) -> Iterator[tuple[str, bytes, bytes, bytes]]:
        """item id, index vector, query row (little-endian float32) and state of each row: what is published."""
        vectors = self._vectors(touched).astype("<f4")
        self._items["moved"][touched] = 0
        for row, vector in zip(touched.tolist(), vectors, strict=True):
            bias, square = self._items["bias"][row], self._items["square"][row]
            state = STATE.pack(*self.popularity.stored(row), bias, square)
            yield self.item_ids[row], vector.tobytes(), self._items["query"][row].astype("<f4").tobytes(), state

    def rank(self, examples: Sequence[Example]) -> Ranks:
        """Where each example's item stands before it is learnt. The cost grows with the catalogue: a sample will do."""
        vectors, popular = self._vectors(), self.popularity.log_share()
        size = rows_at_once(len(self))
        starts = range(0, max(1, len(examples)), size)  # an empty batch is one empty block
        blocks = [self._rank(examples[at : at + size], vectors, popular) for at in starts]
        return Ranks._make(np.concatenate(columns) for columns in zip(*blocks, strict=True))

    def _rank(self, examples: Sequence[Example], vectors: Floats, popular: Floats) -> Ranks:
        """vectors float32 [N, D + 1] and popular float32 [N] of all items, as they are now."""
        targets = np.array([self.row(example.item_id) for example in examples], np.int64)
        seen_case, seen_item = self._seen(examples)
        users = with_one(self._encode(examples))
        live = _ranks(users @ vectors.T, targets, seen_case, seen_item)
        by_count = _ranks(np.tile(popular, (len(examples), 1)), targets, seen_case, seen_item)
        known = len(self._frozen)
        frozen_users = with_one(encode(self._tower, self._frozen_query, history_rows(examples, self._frozen_row_of)))
        old_targets, old = np.where(targets < known, targets, -1), seen_item < known
        frozen = _ranks(frozen_users @ self._frozen.T, old_targets, seen_case[old], seen_item[old])
        repeated = _repeated(examples)
        for ranks in (live, frozen, by_count):
            ranks[repeated] = -1
        return Ranks(live, frozen, by_count, ~repeated)

    def learn(self, examples: Sequence[Example]) -> StepResult:
        """One step on these examples and some remembered ones. Unknown items get a row; popularity counts every
        example, repeats included, but a repeat is not learnt from, since serving would not have shown it.

        The cost does not depend on the catalogue's size. A step that is not finite is dropped as a whole."""
        targets = np.array([self.add_item(example.item_id) for example in examples], np.int64)
        new = ~_repeated(examples)
        users, learnt = self._encode(examples)[new], targets[new]
        loss, moved = 0.0, np.empty(0, np.int64)
        if len(learnt):
            step = self._step(users, learnt)
            if step is None:
                return StepResult(np.nan, np.empty(0, np.int64), True)
            loss, moved = step
            self._memory.add(users, learnt)
        self.popularity.add(targets)
        self._refreshes.watched(targets)
        return StepResult(loss, np.union1d(targets, moved), False)

    def due_refreshes(self, limit: int) -> Rows:
        """int64 [R], R <= limit: rows to publish again because their popularity has decayed since (models.refresh)."""
        return self._refreshes.due(limit)

    def _step(self, users: Floats, targets: Rows) -> tuple[float, Rows] | None:
        """Sampled softmax and row-wise Adagrad on the vectors (bias and popularity stay as offsets): the mean loss and
        the rows that have moved far enough to be published, None when anything is not finite."""
        negatives, log_expected = self._draw(targets)
        old_users, old_targets = self._memory.sample(self._replay, self._rng)
        users, targets = np.concatenate([users, old_users]), np.concatenate([targets, old_targets])
        rows, place = np.unique(np.concatenate([targets, negatives]), return_inverse=True)
        own, others = torch.from_numpy(place[: len(targets)]), torch.from_numpy(place[len(targets) :])
        vectors = torch.from_numpy(self._items["vector"][rows]).requires_grad_()  # [T, D]
        offsets = torch.from_numpy(self._coordinates(rows))  # [T]
        viewers = torch.from_numpy(users)  # [B, D]
        positive = (viewers * vectors[own]).sum(dim=1) + offsets[own]
        logits = viewers @ vectors[others].T + offsets[others]  # [B, S]
        losses = sampled_softmax(positive, logits, torch.from_numpy(log_expected), own[:, None] == others)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        assert vectors.grad is not None
        gradient = vectors.grad.numpy()
        with np.errstate(over="ignore"):  # judged below
            square = self._items["square"][rows] + np.square(gradient).mean(axis=1)  # [T]
        change = self._rate * gradient / np.sqrt(square)[:, None]  # [T, D]
        if not (torch.isfinite(losses).all() and np.isfinite(square).all() and np.isfinite(change).all()):
            return None
        self._items["vector"][rows] -= change
        self._items["square"][rows] = square
        self._items["moved"][rows] += np.linalg.norm(change, axis=1)
        return float(losses.detach().mean()), rows[self._items["moved"][rows] > PUBLISH_MOVE]

    def _draw(self, targets: Rows) -> tuple[Rows, Floats]:
        """Negatives and the log of their expected counts: the batch's own targets and uniform ones; all items, each
        once, where there are fewer than that."""
        size = len(self)
        if size <= self._negatives:
            return np.arange(size), np.zeros(size, np.float32)
        rows = np.concatenate([targets, self._rng.integers(0, size, self._negatives)])
        share = np.exp(self.popularity.log_share(rows))
        return rows, np.log(len(targets) * share + self._negatives / size)

    def _encode(self, examples: Sequence[Example]) -> Floats:
        return encode(self._tower, self._items["query"], history_rows(examples, self._row_of))

    def _vectors(self, rows: Rows | slice = slice(None)) -> Floats:
        """float32 [N, D + 1]: what goes into the index."""
        return np.concatenate([self._items["vector"][rows], self._coordinates(rows)[:, None]], axis=1)

    def _coordinates(self, rows: Rows | slice = slice(None)) -> Floats:
        return np.asarray(self._items["bias"][rows] + self.popularity.log_share(rows))

    def _seen(self, examples: Sequence[Example]) -> tuple[Rows, Rows]:
        """Pairs of example and known item that its history has completed."""
        pairs = [
            (at, row)
            for at, example in enumerate(examples)
            for watch in example.watches
            if watch.completed and (row := self.row(watch.item_id)) >= 0
        ]
        array = np.array(pairs, np.int64).reshape(-1, 2)
        return array[:, 0], array[:, 1]


class Memory:
    """The newest examples that were learnt, as user vectors and targets: a ring, sampled for replay. The tower is
    frozen, so a user's vector stays what it was."""

    def __init__(self, capacity: int, dim: int) -> None:
        self._users = np.empty((capacity, dim), np.float32)
        self._targets = np.empty(capacity, np.int64)
        self._added = 0

    def add(self, users: Floats, targets: Rows) -> None:
        at = (self._added + np.arange(len(targets))) % len(self._targets)
        self._users[at], self._targets[at] = users, targets
        self._added += len(targets)

    def sample(self, size: int, rng: np.random.Generator) -> tuple[Floats, Rows]:
        """float32 [R, D] and int64 [R], R = `size` or less while there is less."""
        there = min(self._added, len(self._targets))
        at = rng.integers(0, there, min(size, there)) if there else np.empty(0, np.int64)
        return self._users[at], self._targets[at]


def _repeated(examples: Sequence[Example]) -> npt.NDArray[np.bool_]:
    """bool [B]: whether the example's item is among the completed watches before it."""
    return np.array([any(w.completed and w.item_id == e.item_id for w in e.watches) for e in examples], np.bool_)


def _ranks(scores: Floats, targets: Rows, seen_case: Rows, seen_item: Rows) -> Rows:
    """`target_ranks`, -1 for unknown targets."""
    known = targets >= 0
    ranks = target_ranks(scores, np.where(known, targets, 0), seen_case, seen_item)
    return np.where(known, ranks, -1)
