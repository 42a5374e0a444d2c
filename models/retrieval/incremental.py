"""Learns item rows live: the user tower is frozen, the items that are watched move, popularity is counted.

One call of `learn` is one step of row-wise Adagrad on the rows it touches; no operation in it is as large as the
catalogue. What a row has learnt travels with it (`rows`), so that the release's bundle and the published rows give the
trainer back after a crash.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from models.arrays import Array, Flags, Floats, Rows
from models.catalogue.catalogue import Catalogue
from models.catalogue.columns import Columns
from models.catalogue.content import NO_CONTENT, ContentShape, ItemContent
from models.catalogue.user_profile import Example
from models.evaluation.drift import turned_and_grown
from models.logs.examples import Examples, Queries
from models.retrieval.candidates import CandidateModel, UserEncoder, with_one
from models.retrieval.cold_start import ColdStart
from models.retrieval.hyper_parameters import LiveParameters
from models.retrieval.losses import Extra, shared_softmax
from models.retrieval.popularity import Popularity
from models.retrieval.refresh import RefreshSchedule
from models.retrieval.sampling import Frequency, draw_negatives, find_hits
from models.retrieval.table import Distinct, Table

FIRST_SQUARE = 1.0  # Adagrad's accumulator of a row that has not moved: what a negative gets at first stays small
PUBLISH_MOVE = 0.2  # a row is to be published at once when it has moved so far since it last was,
PUBLISH_GAIN = 0.35  # or when its log popularity has risen so much; both are a third of a logit, more or less
STATE_COLUMNS = np.dtype(  # of a published row; packed, little-endian
    [
        ("count", "<f8"),
        ("total", "<f8"),
        ("touched", "<i8"),  # clock of the last watch
        ("bias", "<f4"),
        ("square", "<f4"),
        ("query_square", "<f4"),
        ("gap", "<f4"),
    ]
)
EXPLODED = 3.0  # a loss so many times the running mean is no accident
WARM_UP = 20  # steps before a mean is trusted
MEAN_RATE = 0.02
UNTOLD = -1e4  # log popularity of a row that was never published: the first watch is a rise
NOWHERE = -1e4  # the bias of a row that is free: it is never retrieved, and weighs nothing as a negative
NO_ROWS = np.empty(0, np.int64)
SWEPT = 256  # rows looked at for idle ones in one call


@dataclass(frozen=True)
class StepResult:
    """`touched` are rows to publish, those that were watched and those that are `due`: that have moved far enough to be
    published at once. `dropped`: the loss was not finite or had exploded, and nothing was applied."""

    loss: float
    touched: Rows
    due: Rows
    dropped: bool


class IncrementalTrainer:
    """The item tables of one release, kept up to date. Rows are numbered as in the bundle, new items behind."""

    def __init__(self, model: CandidateModel, catalogue: Catalogue, settings: LiveParameters, *, seed: int) -> None:
        """`catalogue` describes the model's items, in the same rows; those behind them are not looked at."""
        self.item_ids = list(model.item_ids)
        self.popularity: Popularity = model.popularity.copy()
        self.encoder: UserEncoder = model.encoder
        self._row_of = {item_id: row for row, item_id in enumerate(self.item_ids)}
        self._vectors = Table.of(model.vectors, first_square=FIRST_SQUARE)
        self._queries = Table.of(model.query_rows, first_square=FIRST_SQUARE)
        size = len(self.item_ids)
        self._items = Columns(
            bias=np.array(model.bias),
            moved=np.zeros(size, np.float32),  # since it was last published
            told=model.popularity.log_share(),  # as it was last published
            seen_s=np.zeros(size, np.uint32),  # when last watched; 0: not since the release
            released=np.ones(size, np.bool_),  # whether the row is still the release's item of that number
        )
        self._free: list[int] = []
        self._swept = 0
        self._released = model.vectors
        self._frequency = Frequency(model.popularity.totals() / max(model.popularity.clock, 1))
        self._start = ColdStart(
            model.vectors,
            model.bias,
            model.query_rows,
            catalogue=catalogue,
            learnt=model.popularity.totals() > 0,
            content=model.content,
        )
        self._settings = settings
        self._rng = np.random.default_rng(seed)
        self._distinct = Distinct(len(self.item_ids))
        self._mean_loss, self._steps = 0.0, 0
        self._refreshes = RefreshSchedule(self.popularity)

    def __len__(self) -> int:
        return len(self.item_ids)

    @property
    def dim(self) -> int:
        """Length of an index vector."""
        return self._vectors.dim + 1

    @property
    def content_shape(self) -> ContentShape:
        """What new items are placed by, beside ids and title."""
        return self._start.content_shape

    def row(self, item_id: str) -> int:
        return self._row_of.get(item_id, -1)

    def read(self, examples: Sequence[Example]) -> Examples:
        """Examples as numbers: the rows of items as they are known now."""
        targets = np.array([self.row(example.item_id) for example in examples], np.int64)
        weights = np.array([example.weight for example in examples], np.float32)
        return Examples(self.encoder.queries(examples, self._row_of), targets, weights)

    def add_item(self, item_id: str, content: ItemContent = NO_CONTENT) -> int:
        """The row of an item, made at first sight where what it says of itself places it (models.retrieval.cold_start).
        O(1)."""
        known = self._row_of.get(item_id)
        if known is not None:
            return known
        start = self._start.place(content)
        if self._free:
            row = self._free.pop()
            self._vectors.reset(np.array([row]), start.vector[None])
            self._queries.reset(np.array([row]), start.query_row[None])
            self._items["bias"][row], self._items["told"][row] = start.bias, UNTOLD
            self.item_ids[row] = item_id
        else:
            row = self._vectors.append(start.vector)
            self._queries.append(start.query_row)
            self._items.append(bias=start.bias, moved=0.0, told=UNTOLD, seen_s=0, released=False)
            self.popularity.append()
            self._frequency.append()
            self.item_ids.append(item_id)
        self._row_of[item_id] = row
        return row

    def describe(self, item_id: str, content: ItemContent) -> int:
        """Move an item that was placed without its content to where that would have placed it; what it has learnt since
        is kept. Returns its row, -1 when it has none. O(1)."""
        row = self.row(item_id)
        if row >= 0:
            known, unknown = self._start.place(content), self._start.place()
            self._vectors.values.numpy()[row] += known.vector - unknown.vector
            self._queries.values.numpy()[row] += known.query_row - unknown.query_row
            self._items["bias"][row] += known.bias - unknown.bias
        return row

    def remove_item(self, item_id: str) -> None:
        """Forget an item; its row is free for another. Nothing happens when there is no such item."""
        row = self._row_of.pop(item_id, None)
        if row is None:
            return
        self._vectors.reset(np.array([row]), np.zeros((1, self._vectors.dim), np.float32))
        self._queries.reset(np.array([row]), np.zeros((1, self._queries.dim), np.float32))
        for name, value in (("bias", NOWHERE), ("moved", 0), ("seen_s", 0), ("released", False)):
            self._items[name][row] = value
        self.popularity.restore(row, 0.0, 0.0, self.popularity.clock)
        self._frequency.forget(row)
        self.item_ids[row] = ""
        self._free.append(row)

    def expire(self, now_ms: int, idle_ms: int) -> list[str]:
        """Remove items that have not been watched for `idle_ms`; their ids. Each call looks at the next few rows, so
        that it costs the same at any size; a row that was never watched since the release begins to idle when it is
        first looked at."""
        rows = np.arange(self._swept, min(self._swept + SWEPT, len(self)))
        self._swept = int(rows[-1]) + 1 if len(rows) and rows[-1] + 1 < len(self) else 0
        seen_s = self._items["seen_s"]
        seen_s[rows[seen_s[rows] == 0]] = now_ms // 1000
        idle = [self.item_ids[row] for row in rows[seen_s[rows] < (now_ms - idle_ms) // 1000].tolist()]
        expired = [item_id for item_id in idle if item_id]
        for item_id in expired:
            self.remove_item(item_id)
        return expired

    def restore(self, item_id: str, vector: bytes, query_row: bytes, state: bytes) -> None:
        """Put back a row as `rows` published it. Raises ValueError naming the item when the bytes do not fit or hold
        a number that is not finite."""
        expected = 4 * self.dim, 4 * (self.dim - 1), STATE_COLUMNS.itemsize
        if (len(vector), len(query_row), len(state)) != expected:
            sizes = f"{len(vector)}, {len(query_row)}, {len(state)} bytes, expected {expected}"
            raise ValueError(f"row of item {item_id} does not fit this release: vector, query row and state of {sizes}")
        count, total, touched, *numbers = np.frombuffer(state, STATE_COLUMNS)[0].item()
        parameters, query = np.frombuffer(vector, "<f4"), np.frombuffer(query_row, "<f4")
        if not (np.isfinite(parameters).all() and np.isfinite(query).all() and np.isfinite([count, *numbers]).all()):
            raise ValueError(f"row of item {item_id} holds a number that is not finite")
        row = self.add_item(item_id)
        self._items["bias"][row], self._vectors.squares[row], self._queries.squares[row], gap = numbers
        self._frequency.restore(row, gap)
        self._vectors.values.numpy()[row] = parameters[:-1]
        self._queries.values.numpy()[row] = query
        self.popularity.restore(row, count, total, touched)
        self._items["told"][row] = parameters[-1] - self._items["bias"][row]
        self._refreshes.forget()

    def rows(self, touched: Rows) -> Iterator[tuple[str, bytes, bytes, bytes]]:
        """item id, index vector, query row (little-endian float32) and state of each row: what is published."""
        self._items["moved"][touched], self._items["told"][touched] = 0, self.popularity.log_share(touched)
        states = np.zeros(len(touched), STATE_COLUMNS)
        states["count"], states["total"], states["touched"] = self.popularity.stored(touched)
        states["bias"] = self._items["bias"][touched]
        states["square"] = self._vectors.squares.numpy()[touched]
        states["query_square"] = self._queries.squares.numpy()[touched]
        states["gap"] = self._frequency.gaps(touched)
        vectors = _pieces(self.vectors(touched).astype("<f4"))
        queries = _pieces(self._queries.values.numpy()[touched].astype("<f4"))
        ids = (self.item_ids[row] for row in touched.tolist())
        yield from zip(ids, vectors, queries, _pieces(states), strict=True)

    def user_vectors(self, queries: Queries) -> Floats:
        """float32 [B, D + 1]: of users as they are now."""
        return with_one(self.encoder.encode(queries, self._queries.values.numpy()))

    def vectors(self, rows: Rows | slice = slice(None)) -> Floats:
        """float32 [N, D + 1]: what goes into the index."""
        coordinates = self._items["bias"][rows] + self.popularity.log_share(rows)
        return np.concatenate([self._vectors.values.numpy()[rows], coordinates[:, None]], axis=1)

    def learn(self, examples: Examples, now_ms: int = 0) -> StepResult:
        """One step; `now_ms` is the time of the newest example. Popularity counts every example, repeats included, but
        a repeat is not learnt from, since serving would not have shown it, nor one of weight 0. Every target has a row.

        The cost does not depend on the catalogue's size. A step that is not finite, or whose loss has exploded, is
        dropped as a whole."""
        targets = examples.targets
        loss, moved, watched, gained = 0.0, NO_ROWS, NO_ROWS, NO_ROWS
        new = np.flatnonzero(~examples.repeated() & (True if examples.weights is None else examples.weights > 0))
        if len(new) and self._settings.learns == "output_rows":
            step = self._step(examples.take(new))
            if step is None:
                return StepResult(np.nan, NO_ROWS, NO_ROWS, True)
            loss, moved = step
        if self._settings.learns != "history":
            rows, counts = np.unique(targets, return_counts=True)
            since = self.popularity.clock + len(targets) - self.popularity.touched(rows)
            self._frequency.add(rows, counts, since)
            self.popularity.add(targets)
            self._refreshes.watched(rows)
            watched, gained = rows, rows[self.popularity.log_share(rows) - self._items["told"][rows] > PUBLISH_GAIN]
        self._items["seen_s"][targets] = now_ms // 1000
        due = np.union1d(moved, gained)
        return StepResult(loss, np.union1d(watched, due), due, False)

    def due_refreshes(self, limit: int) -> Rows:
        """int64 [R], R <= limit: rows to publish again because their popularity has decayed since
        (models.retrieval.refresh). Rows that were freed meanwhile are no one's."""
        due = self._refreshes.due(limit)
        return due[[bool(self.item_ids[row]) for row in due.tolist()]] if self._free else due

    def drift(self, rows: Rows) -> tuple[Floats, Floats]:
        """Measure how far those of the rows [R] that the release has too [<= R] have turned and grown since
        (models.evaluation.drift)."""
        old = rows[self.in_release(rows)]
        return turned_and_grown(self._vectors.values.numpy()[old], self._released[old])

    def in_release(self, rows: Rows) -> Flags:
        """bool [R]: whether each row is an item that the release has in that very row."""
        return np.asarray(self._items["released"][rows])

    def _step(self, examples: Examples) -> tuple[float, Rows] | None:
        """Sampled softmax and row-wise Adagrad (bias and popularity stay as offsets): the mean loss and the rows that
        have moved far enough to be published, None when the step is dropped."""
        targets = examples.targets
        negatives = draw_negatives(
            targets,
            self._frequency.shares,
            items=len(self),
            negatives=self._settings.negatives,
            in_batch=self._settings.in_batch,
            rng=self._rng,
        )
        rows, places = self._distinct(np.concatenate([targets, negatives.rows]))
        own, others = torch.from_numpy(places[: len(targets)]), torch.from_numpy(places[len(targets) :])
        moving = torch.from_numpy(rows)
        vectors = self._vectors.gather(moving)  # [T, D]
        encoded = self.encoder.encode(examples.queries, self._queries.values.numpy(), self._distinct)
        users = torch.from_numpy(encoded)  # [B, D]
        offsets = torch.from_numpy(self._items["bias"][rows] + self.popularity.log_share(rows))  # [T]
        hits = torch.from_numpy(find_hits(own.numpy(), others.numpy(), len(rows)))
        extra = Extra(offsets[own], offsets[others] - torch.from_numpy(negatives.log_expected), hits)
        nothing = vectors.new_zeros(1)
        losses = shared_softmax(users, F.embedding(own, vectors), nothing, F.embedding(others, vectors), nothing, extra)
        loss = float(losses.detach().mean())
        weights = torch.ones_like(losses) if examples.weights is None else torch.from_numpy(examples.weights)
        (losses * weights).sum().backward()  # type: ignore[no-untyped-call]
        assert vectors.grad is not None
        change, squares = self._vectors.change(moving, vectors.grad, self._settings.learning_rate)
        if not squares.isfinite().all() or self._diverged(loss):
            return None
        self._vectors.apply(moving, change, squares)
        self._items["moved"][rows] += change.norm(dim=1).numpy()
        return loss, rows[self._items["moved"][rows] > PUBLISH_MOVE]

    def _diverged(self, loss: float) -> bool:
        """Return whether a step's loss is no number or far above the mean of those before it. It joins the mean in
        either case: a stream whose losses rise for good is learnt from again after some dropped steps."""
        if not np.isfinite(loss):
            return True
        exploded = self._steps >= WARM_UP and loss > EXPLODED * self._mean_loss
        rate = max(MEAN_RATE, 1 / (self._steps + 1))
        self._mean_loss += rate * (loss - self._mean_loss)
        self._steps += 1
        return exploded


def _pieces(rows: Array) -> Iterator[bytes]:
    """The bytes of each row."""
    whole, size = rows.tobytes(), rows.nbytes // max(len(rows), 1)
    return (whole[at : at + size] for at in range(0, len(whole), size)) if size else iter(())
