"""Learns item rows live: the user tower is frozen, the items that are watched move, popularity is counted.

One call of `learn` is one step of row-wise Adagrad on the rows it touches, gathered from the tables and written back;
no operation in it is as large as the catalogue. What a row has learnt travels with it (`rows`), so that the release's
bundle and the published rows give the trainer back after a crash.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from models.bundle import Bundle
from models.candidates import encode, history_rows, with_one
from models.cold_start import ColdStart
from models.columns import Columns
from models.evaluation import target_ranks
from models.losses import sampled_softmax
from models.popularity import Popularity
from models.viewer import Example

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

FIRST_SQUARE = 0.1  # Adagrad's accumulator of a row that has not moved: the first steps stay below the rate
MEMORY = 50_000  # examples remembered for replay
REFRESH_SHARE = 1 / 16  # of a half-life: the first refresh after a watch, each next one at twice the age
REFRESH_NEGLIGIBLE = 0.01  # a decayed count below this share of the prior is at rest
STATE = struct.Struct("<ddqff")  # count, total, clock of the last watch, bias, accumulator


@dataclass(frozen=True)
class Ranks:
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
        parameters = np.concatenate([model.vectors, model.bias[:, None]], axis=1)  # [N, D + 1], bias last
        self._items = Columns(
            parameters=parameters.copy(),
            query=self._frozen_query.copy(),
            square=np.full(len(parameters), FIRST_SQUARE, np.float32),
            refreshing=np.zeros(len(parameters), np.bool_),
        )
        learnt = np.flatnonzero(model.popularity.totals() > 0)
        self._start = ColdStart(np.concatenate([parameters, self._frozen_query], axis=1), bundle.catalogue, learnt)
        self._rate, self._negatives, self._replay = learning_rate, negatives, replay
        self._rng = np.random.default_rng(seed)
        self._memory = Memory(MEMORY, model.dim - 1)
        self._refreshes: list[tuple[int, int]] = []  # (clock when due, row), a heap

    def __len__(self) -> int:
        return len(self.item_ids)

    @property
    def dim(self) -> int:
        """Length of an index vector."""
        return int(self._items["parameters"].shape[1])

    def row(self, item_id: str) -> int:
        return self._row_of.get(item_id, -1)

    def add_item(self, item_id: str, *, channel: str | None = None, topics: Sequence[str] = ()) -> int:
        """The row of an item, made at first sight at the mean of its channel and topics. O(1) amortised."""
        known = self._row_of.get(item_id)
        if known is not None:
            return known
        start = self._start.place(channel, topics)
        row = self._items.append(
            parameters=start[: self.dim], query=start[self.dim :], square=FIRST_SQUARE, refreshing=False
        )
        self.popularity.append()
        self.item_ids.append(item_id)
        self._row_of[item_id] = row
        return row

    def restore(self, item_id: str, vector: bytes, query_row: bytes, state: bytes) -> None:
        """Put back a row as `rows` published it. Raises ValueError naming the item when the bytes do not fit."""
        expected = 4 * self.dim, 4 * (self.dim - 1), STATE.size
        if (len(vector), len(query_row), len(state)) != expected:
            sizes = f"{len(vector)}, {len(query_row)}, {len(state)} bytes, expected {expected}"
            raise ValueError(f"row of item {item_id} does not fit this release: vector, query row and state of {sizes}")
        row = self.add_item(item_id)
        count, total, touched, bias, square = STATE.unpack(state)
        self._items["parameters"][row, :-1] = np.frombuffer(vector, "<f4")[:-1]
        self._items["parameters"][row, -1] = bias
        self._items["query"][row] = np.frombuffer(query_row, "<f4")
        self._items["square"][row] = square
        self.popularity.restore(row, count, total, touched)
        self._schedule(row)

    def rows(self, touched: Rows) -> Iterator[tuple[str, bytes, bytes, bytes]]:
        """item id, index vector, query row (little-endian float32) and state of each row: what is published."""
        vectors = self._vectors(touched).astype("<f4")
        for row, vector in zip(touched.tolist(), vectors, strict=True):
            bias, square = self._items["parameters"][row, -1], self._items["square"][row]
            state = STATE.pack(*self.popularity.stored(row), bias, square)
            yield self.item_ids[row], vector.tobytes(), self._items["query"][row].astype("<f4").tobytes(), state

    def rank(self, examples: Sequence[Example]) -> Ranks:
        """Where each example's item stands before it is learnt. The cost grows with the catalogue: a sample will do."""
        targets = np.array([self.row(example.item_id) for example in examples], np.int64)
        seen_case, seen_item = self._seen(examples)
        repeated = _repeated(examples)
        users = with_one(self._encode(examples))
        frozen_users = with_one(encode(self._tower, self._frozen_query, history_rows(examples, self._frozen_row_of)))
        popular = self.popularity.log_share()
        live = _ranks(users @ self._vectors().T, targets, seen_case, seen_item)
        known = len(self._frozen)
        old = seen_item < known
        frozen = _ranks(
            frozen_users @ self._frozen.T, np.where(targets < known, targets, -1), seen_case[old], seen_item[old]
        )
        by_count = _ranks(np.tile(popular, (len(examples), 1)), targets, seen_case, seen_item)
        live, frozen, by_count = (np.where(repeated, -1, ranks) for ranks in (live, frozen, by_count))
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
            old_users, old_targets = self._memory.sample(self._replay, self._rng)
            step = self._step(np.concatenate([users, old_users]), np.concatenate([learnt, old_targets]))
            if step is None:
                return StepResult(np.nan, np.empty(0, np.int64), True)
            loss, moved = step
            self._memory.add(users, learnt)
        self.popularity.add(targets)
        touched = np.union1d(targets, moved)
        for row in np.unique(targets).tolist():
            self._schedule(row)
        return StepResult(loss, touched, False)

    def due_refreshes(self, limit: int) -> Rows:
        """int64 [R], R <= limit: rows to publish again because their popularity has decayed since.

        After a watch at ages 1/16, 1/8, ... of a half-life until the decayed count no longer matters: O(1) amortised
        per event."""
        due: list[int] = []
        first = self.popularity.half_life_events * REFRESH_SHARE
        while self._refreshes and self._refreshes[0][0] <= self.popularity.clock and len(due) < limit:
            _, row = heapq.heappop(self._refreshes)
            at = np.array([row])
            age = self.popularity.clock - int(self.popularity.touched(at)[0])
            if age < first:  # watched again meanwhile, and published then
                self._push(row, first - age)
                continue
            due.append(row)
            if self.popularity.counts(at)[0] > REFRESH_NEGLIGIBLE * self.popularity.prior(at)[0]:
                self._push(row, age)
            else:
                self._items["refreshing"][row] = False
        return np.array(due, np.int64)

    def _step(self, users: Floats, targets: Rows) -> tuple[float, Rows] | None:
        """Sampled softmax and row-wise Adagrad; mean loss and moved rows, None when anything is not finite."""
        negatives, log_expected = self._draw()
        rows, place = np.unique(np.concatenate([targets, negatives]), return_inverse=True)
        parameters = torch.from_numpy(self._items["parameters"][rows]).requires_grad_()  # [T, D + 1]
        offsets = torch.from_numpy(self.popularity.log_share(rows))  # [T]
        own, others = torch.from_numpy(place[: len(targets)]), torch.from_numpy(place[len(targets) :])
        users_one = torch.from_numpy(with_one(users))  # [B, D + 1]
        positive = (users_one * parameters[own]).sum(dim=1) + offsets[own]
        logits = users_one @ parameters[others].T + offsets[others]  # [B, S]
        hits = own[:, None] == others
        losses = sampled_softmax(positive, logits, torch.from_numpy(log_expected), hits)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        assert parameters.grad is not None
        gradient = parameters.grad.numpy()
        square = self._items["square"][rows] + np.square(gradient).mean(axis=1)  # [T]
        moved = parameters.detach().numpy() - self._rate * gradient / np.sqrt(square)[:, None]
        if not (torch.isfinite(losses).all() and np.isfinite(moved).all()):
            return None
        self._items["parameters"][rows] = moved
        self._items["square"][rows] = square
        return float(losses.detach().mean()), rows

    def _draw(self) -> tuple[Rows, Floats]:
        """Uniform negatives and the log of their expected counts; all items where there are fewer than that."""
        size = len(self)
        if size <= self._negatives:
            return np.arange(size), np.zeros(size, np.float32)
        expected = np.log(self._negatives / size)
        return self._rng.integers(0, size, self._negatives), np.full(self._negatives, expected, np.float32)

    def _encode(self, examples: Sequence[Example]) -> Floats:
        return encode(self._tower, self._items["query"], history_rows(examples, self._row_of))

    def _vectors(self, rows: Rows | slice = slice(None)) -> Floats:
        vectors = self._items["parameters"][rows].copy()
        vectors[:, -1] += self.popularity.log_share(rows)
        return np.asarray(vectors)

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

    def _schedule(self, row: int) -> None:
        if not self._items["refreshing"][row]:
            self._items["refreshing"][row] = True
            self._push(row, self.popularity.half_life_events * REFRESH_SHARE)

    def _push(self, row: int, after: float) -> None:
        heapq.heappush(self._refreshes, (self.popularity.clock + max(1, round(after)), row))


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
