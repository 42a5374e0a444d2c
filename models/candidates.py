"""The candidate generator as it is served: a user tower, and each item's vector and embedding on the user's side.

An index vector is the item's output embedding and one number more: its bias plus log of its live popularity. The user's
side is 1 there, so that the logit is one inner product and the index needs to know nothing of popularity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from models.columns import Columns
from models.popularity import Popularity
from models.tower import HISTORY, UserTower, bag_histories
from models.viewer import Viewer

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


class CandidateModel:
    """`item_ids` are the items it was trained with, in the order of its rows; query rows of later items are added."""

    def __init__(
        self,
        item_ids: list[str],
        tower: UserTower,
        *,
        vectors: Floats,
        bias: Floats,
        query_rows: Floats,
        popularity: Popularity,
    ) -> None:
        """vectors and query_rows float32 [N, D], bias float32 [N]."""
        self.item_ids = item_ids
        self.tower = tower.eval().requires_grad_(False)
        self.vectors = vectors
        self.bias = bias
        self.popularity = popularity
        self._query = Columns(row=query_rows)
        self._row_of = {item_id: row for row, item_id in enumerate(item_ids)}

    @property
    def dim(self) -> int:
        """Length of an index vector."""
        return int(self.vectors.shape[1]) + 1

    def row(self, item_id: str) -> int:
        """The row of an item on the user's side, -1 when it has none."""
        return self._row_of.get(item_id, -1)

    def user_vectors(self, viewers: Sequence[Viewer], now_ms: int) -> Floats:
        """float32 [B, dim], finite also for an empty history. `now_ms` is the time of the request.

        Items without a query row are passed over."""
        return with_one(self.encode(history_rows(viewers, self._row_of)))

    def encode(self, rows: Rows) -> Floats:
        """int64 [B, H] query rows, -1 for none -> float32 [B, D]"""
        return encode(self.tower, self._query["row"], rows)

    def item_vectors(self, rows: Rows | slice = slice(None)) -> Floats:
        """float32 [N, dim]: what goes into the index. The inner product with a user vector is the logit."""
        coordinate = self.bias[rows] + self.popularity.log_share(rows)
        return np.concatenate([self.vectors[rows], coordinate[:, None]], axis=1)

    def query_rows(self) -> Floats:
        """float32 [N, D]: the embeddings on the user's side of the items it was trained with."""
        return np.asarray(self._query["row"][: len(self.item_ids)])

    def query_row(self, item_id: str) -> Floats | None:
        """float32 [D]: the item's embedding on the user's side; None when it has none."""
        row = self.row(item_id)
        return None if row < 0 else np.array(self._query["row"][row])

    def apply_query_row(self, item_id: str, row: Floats) -> None:
        """Set the embedding that a history averages for this item, as the trainer published it: float32 [D]."""
        if row.shape != (self.dim - 1,) or not np.isfinite(row).all():
            raise ValueError(f"query row must be {self.dim - 1} finite numbers, got shape {row.shape}")
        known = self._row_of.get(item_id)
        if known is None:
            self._row_of[item_id] = self._query.append(row=row)
        else:
            self._query["row"][known] = row

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Everything that was learnt, by name; query rows of later items are not part of it."""
        tower = {f"tower.{name}": tensor.numpy() for name, tensor in self.tower.state_dict().items()}
        popularity = {f"popularity.{name}": array for name, array in self.popularity.arrays().items()}
        rows = {"vectors": self.vectors, "bias": self.bias, "query_rows": self.query_rows()}
        return rows | tower | popularity

    @classmethod
    def from_arrays(
        cls,
        item_ids: list[str],
        arrays: Mapping[str, npt.NDArray[Any]],
        *,
        hidden: Sequence[int],
        half_life_events: float,
        clock: int,
    ) -> CandidateModel:
        """The reverse of `to_arrays`. Raises KeyError or RuntimeError (torch) when a name or shape does not fit."""
        tower = UserTower(arrays["vectors"].shape[1], hidden)
        weights = {n.removeprefix("tower."): torch.from_numpy(a) for n, a in arrays.items() if n.startswith("tower.")}
        tower.load_state_dict(weights)
        count, total, touched = (arrays[f"popularity.{name}"] for name in ("count", "total", "touched"))
        return cls(
            item_ids,
            tower,
            vectors=arrays["vectors"],
            bias=arrays["bias"],
            query_rows=arrays["query_rows"],
            popularity=Popularity(half_life_events, count, total, touched, clock=clock),
        )


def history_rows(viewers: Sequence[Viewer], row_of: Mapping[str, int]) -> Rows:
    """int64 [B, HISTORY]: rows of the newest completed watches, oldest first, -1 in front and for unknown items."""
    rows = np.full((len(viewers), HISTORY), -1, np.int64)
    for at, viewer in enumerate(viewers):
        newest = [row_of.get(watch.item_id, -1) for watch in viewer.watches if watch.completed][-HISTORY:]
        if newest:
            rows[at, -len(newest) :] = newest
    return rows


def encode(tower: UserTower, query_rows: Floats, rows: Rows) -> Floats:
    """query_rows float32 [N, D], rows int64 [B, H] -> user vectors float32 [B, D]"""
    distinct, index, starts = bag_histories(rows)
    with torch.inference_mode():
        return np.asarray(tower(torch.from_numpy(query_rows[distinct.numpy()]), index, starts).numpy())


def with_one(vectors: Floats) -> Floats:
    """[B, D] -> [B, D + 1]: the user's side of the popularity coordinate."""
    return np.concatenate([vectors, np.ones((len(vectors), 1), np.float32)], axis=1)
