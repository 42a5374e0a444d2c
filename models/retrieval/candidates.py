"""The candidate generator as it is served: a user tower, and each item's vector and embedding on the user's side.

An index vector is the item's output embedding and one number more: its bias plus log of its live popularity. The user's
side is 1 there, so that the logit is one inner product and the index needs to know nothing of popularity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from models.arrays import Floats, Rows
from models.catalogue.context import ContextVocabulary
from models.catalogue.user_profile import UserProfile
from models.logs.array_file import forget_pages
from models.logs.examples import Queries, queries_of
from models.logs.searches import MOST_HISTORY, history_tokens
from models.logs.timeline import HISTORY, newest_of
from models.retrieval.cold_start import ContentMap
from models.retrieval.popularity import Popularity
from models.retrieval.table import Distinct, Table, distinct
from models.retrieval.tower import Inputs, UserTowers
from models.retrieval.tower_arrays import MOST_USERS, TowerArrays


@dataclass(frozen=True)
class UserEncoder:
    """All that turns a user into a vector: the tower, the words' table [W, E] (read-only, may be a mapped file), the
    contexts known."""

    tower: UserTowers
    words: Floats
    contexts: ContextVocabulary

    def __post_init__(self) -> None:
        self.tower.eval().requires_grad_(False)

    @cached_property
    def _arrays(self) -> TowerArrays | None:
        """The towers for a few users; None where only torch has their encoder."""
        return TowerArrays(self.tower) if self.tower.shape.encoder == "average" else None

    def queries(self, users: Sequence[UserProfile], row_of: Mapping[str, int]) -> Queries:
        """Return what the tower reads of each user; `row_of` numbers the items."""
        size = len(users)
        codes, traits = self.contexts.read([user.context for user in users])
        tokens = np.empty((size, 0), np.int64)
        if self.tower.shape.words:
            tokens = search_tokens(users, len(self.words))
        skips = skip_rows(users, row_of, self.tower.shape.skips)
        return Queries(history_rows(users, row_of), tokens, codes, traits, np.zeros(size, np.float32), skips)

    def queries_of(self, histories: Rows, skips: Rows | None = None) -> Queries:
        """Queries of watches alone, where nothing else is known; of `skips`, as histories has the completed ones, the
        newest that the tower reads."""
        codes, traits = self.contexts.read([None] * len(histories))
        queries = replace(queries_of(histories), context=codes, traits=traits)
        return queries if skips is None else replace(queries, skips=newest_of(skips, self.tower.shape.skips))

    def encode(self, queries: Queries, query_rows: Floats, find: Distinct | None = None) -> Floats:
        """query_rows float32 [N, D] -> user vectors float32 [B, D]. Costs in proportion to what the users have watched,
        not to what there is: a member reads its slice of the rows, which torch copies. `find` saves sorting them, to
        who is alone in using it."""
        if self._arrays is not None and len(queries.histories) <= MOST_USERS:
            return self._arrays.encode(queries, query_rows, self.words)
        with torch.inference_mode():
            return np.asarray(self.tower(self.inputs(queries, query_rows, find)).numpy())

    def inputs(self, queries: Queries, query_rows: Floats, find: Distinct | None = None) -> Inputs:
        """Of the rows those of the watched items alone: a tower that is given the whole table reads all of it."""
        (rows, places), (words, word_places) = distinct(queries.items, find), distinct(queries.tokens)
        watches, skips = np.split(places, [queries.histories.shape[1]], axis=1)
        known = self.words[words], word_places, queries.context, queries.traits, queries.age
        return Inputs(*map(torch.from_numpy, (query_rows[rows], watches, *known, skips)))


class CandidateModel:
    """`item_ids` are the items it was trained with, in the order of its rows; query rows of later items are added."""

    def __init__(
        self,
        item_ids: list[str],
        encoder: UserEncoder,
        *,
        vectors: Floats,
        bias: Floats,
        query_rows: Floats,
        popularity: Popularity,
        content: ContentMap | None = None,
    ) -> None:
        """vectors and query_rows float32 [N, D], bias float32 [N]; `content`: how items are placed that nobody has
        watched, None: by means of their ids. They may be mapped files and are not written to."""
        self.item_ids = item_ids
        self.encoder = encoder
        self.vectors = vectors
        self.bias = bias
        self.popularity = popularity
        self.query_rows = query_rows
        self.content = content
        self._query: Table | None = None  # a copy to write to, from the first change on

    @cached_property
    def _row_of(self) -> dict[str, int]:
        """Made at first use: the trainer has one of its own, and ten million items make it large."""
        return {item_id: row for row, item_id in enumerate(self.item_ids)}

    @property
    def dim(self) -> int:
        """Length of an index vector."""
        return int(self.vectors.shape[1]) + 1

    def row(self, item_id: str) -> int:
        """The row of an item on the user's side, -1 when it has none."""
        return self._row_of.get(item_id, -1)

    def user_vectors(self, users: Sequence[UserProfile], now_ms: int) -> Floats:
        """float32 [B, dim], finite also for an empty history. `now_ms` is the time of the request: the example age of a
        request is 0 (paper section 3.3), so the vector does not depend on it.

        Items without a query row are passed over."""
        return with_one(self.encode(self.encoder.queries(users, self._row_of)))

    def encode(self, queries: Queries) -> Floats:
        """-> float32 [B, D]"""
        return self.encoder.encode(queries, self._query_values())

    def item_vectors(self, rows: Rows | slice = slice(None)) -> Floats:
        """float32 [N, dim]: what goes into the index. The inner product with a user vector is the logit."""
        coordinate = self.bias[rows] + self.popularity.log_share(rows)
        return np.concatenate([self.vectors[rows], coordinate[:, None]], axis=1)

    def query_row(self, item_id: str) -> Floats | None:
        """float32 [D]: the item's embedding on the user's side; None when it has none."""
        row = self.row(item_id)
        return None if row < 0 else np.array(self._query_values()[row])

    def write_query_rows_to(self, table: Table) -> None:
        """Take this copy of the query rows for changes, in place of one of its own that the first change makes."""
        self._query = table

    def apply_query_row(self, item_id: str, row: Floats) -> None:
        """Set the embedding that a history averages for this item, as the trainer published it: float32 [D]."""
        if row.shape != (self.dim - 1,) or not np.isfinite(row).all():
            raise ValueError(f"query row must be {self.dim - 1} finite numbers, got shape {row.shape}")
        if self._query is None:
            self._query = Table.of(self.query_rows)
            forget_pages(self.query_rows)
        known = self._row_of.get(item_id)
        if known is None:
            self._row_of[item_id] = self._query.append(row)
        else:
            self._query.values.numpy()[known] = row

    def _query_values(self) -> Floats:
        return self.query_rows if self._query is None else self._query.values.numpy()


def history_rows(users: Sequence[UserProfile], row_of: Mapping[str, int]) -> Rows:
    """int64 [B, HISTORY]: rows of the newest completed watches, oldest first, -1 in front and for unknown items."""
    rows = np.full((len(users), HISTORY), -1, np.int64)
    row = row_of.get
    for at, user in enumerate(users):
        newest = [row(watch.item_id, -1) for watch in user.watches if watch.completed][-HISTORY:]
        if newest:
            rows[at, -len(newest) :] = newest
    return rows


def skip_rows(users: Sequence[UserProfile], row_of: Mapping[str, int], most: int) -> Rows:
    """int64 [B, most]: as history_rows, of the uncompleted ones among the newest watches of whatever length."""
    rows = np.full((len(users), most), -1, np.int64)
    row = row_of.get
    for at, user in enumerate(users if most else ()):
        watches = user.watches[-HISTORY:]
        newest = [row(watch.item_id, -1) for watch in watches if not watch.completed and watch.watch_s > 0][-most:]
        if newest:
            rows[at, -len(newest) :] = newest
    return rows


def search_tokens(users: Sequence[UserProfile], buckets: int) -> Rows:
    """int64 [B, Q]: words of the newest searches, -1 behind; unordered (paper section 3.3)."""
    tokens = [history_tokens([search.query for search in user.searches], buckets) for user in users]
    rows = np.full((len(users), MOST_HISTORY), -1, np.int64)
    for at, mine in enumerate(tokens):
        rows[at, : len(mine)] = mine
    return rows


def with_one(vectors: Floats) -> Floats:
    """[B, D] -> [B, D + 1]: the user's side of the popularity coordinate."""
    return np.concatenate([vectors, np.ones((len(vectors), 1), np.float32)], axis=1)
