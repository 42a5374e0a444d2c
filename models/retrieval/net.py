"""The candidate generator while it learns: item tables with their side embeddings, words, and the user tower.

Input and output tables are apart (paper section 3.3), unless they are tied. An item's embedding is its own row plus,
for each id column of the catalogue, the mean of the embeddings of its ids: an item is placed before its first watch.
Only the rows that a batch touches take part in a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from models.arrays import Floats, Rows
from models.logs.examples import Queries
from models.retrieval.encoders import mean_of
from models.retrieval.losses import Extra, shared_softmax
from models.retrieval.table import Distinct, Table, distinct
from models.retrieval.tower import Inputs, TowerShape, UserTower

Codes = npt.NDArray[np.int32]

DEVIATION = 0.05  # of an item's own embedding at the start
ALL = slice(None)
AT_ONCE = 65_536  # rows that are summed up together
CPU = torch.device("cpu")


class Touched(NamedTuple):
    """Rows that took part in a step, as a leaf whose gradient moves them."""

    table: Table
    rows: Tensor
    leaf: Tensor


class SideEmbedding:
    """One id column: an embedding per id, starting at zero; code 0 is none. codes int32 [N, T] by item."""

    def __init__(self, codes: Codes, dim: int) -> None:
        self.codes = codes
        self.table = Table.of(np.zeros((int(codes.max(initial=0)) + 1, dim), np.float32), room=0)
        self._distinct = Distinct(len(self.table))

    def mean(self, rows: Rows, touched: list[Touched]) -> Tensor:
        """rows int64 [U] -> [U, D]"""
        codes = self.codes[rows].astype(np.int64)  # [U, T]
        ids, places = distinct(np.where(codes > 0, codes, -1), self._distinct)
        return mean_of(gathered(self.table, ids, touched), torch.from_numpy(places))


class ItemTable:
    """All embeddings of one side of the dot product."""

    def __init__(self, sides: Mapping[str, Codes], items: int, dim: int, rng: np.random.Generator) -> None:
        self.own = random_table(items, dim, rng)
        self.sides = {name: SideEmbedding(codes, dim) for name, codes in sides.items()}

    def embed(self, rows: Rows, touched: list[Touched]) -> Tensor:
        """Distinct rows int64 [U] -> [U, D]; what takes part is added to `touched`."""
        total = gathered(self.own, rows, touched)
        for side in self.sides.values():
            total = total + side.mean(rows, touched)
        return total

    def everything(self) -> Floats:
        """float32 [N, D] of all items."""
        blocks = [np.arange(at, min(at + AT_ONCE, len(self.own))) for at in range(0, len(self.own), AT_ONCE)]
        with torch.no_grad():
            return np.concatenate([self.embed(block, []).numpy() for block in blocks])

    def tables(self) -> Iterator[tuple[str, Table]]:
        yield "own", self.own
        for name, side in self.sides.items():
            yield f"side.{name}", side.table


class CandidateNet:
    """Everything that batch training learns."""

    def __init__(
        self,
        shape: TowerShape,
        sides: Mapping[str, Codes],
        items: int,
        *,
        words: int = 0,
        seed: int,
        tied: bool = False,
        device: torch.device = CPU,
    ) -> None:
        """`sides`: int32 [items, T] codes by id column. `words`: number of search tokens. `tied`: one item table for
        both sides. `device`: the tower's; the tables stay, their rows go there for a step."""
        rng = np.random.default_rng([seed, 0])
        self.shape = shape
        self.queries = ItemTable(sides, items, shape.dim, rng)
        self.outputs = self.queries if tied else ItemTable(sides, items, shape.dim, rng)
        self.bias = Table.of(np.zeros((items, 1), np.float32), room=0)
        self.words = random_table(words, shape.words, rng)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.tower = UserTower(shape).eval()  # a fit sets it to training for as long as its epoch lasts
        self.tower.to(device)
        self.device = device
        self.distinct_items, self._distinct_words = Distinct(items), Distinct(words)

    @property
    def items(self) -> int:
        return len(self.bias)

    def users(self, queries: Queries, touched: list[Touched], part: slice = ALL) -> Tensor:
        """-> user vectors [B, D] of a part of the batch; rows of the whole batch take part"""
        items, places = distinct(queries.items, self.distinct_items)
        watches, skips = np.split(places, [queries.histories.shape[1]], axis=1)
        words, word_places = distinct(queries.tokens, self._distinct_words)
        inputs = Inputs(
            self.queries.embed(items, touched),
            torch.from_numpy(watches[part]),
            gathered(self.words, words, touched),
            torch.from_numpy(word_places[part]),
            torch.from_numpy(queries.context[part]),
            torch.from_numpy(queries.traits[part]),
            torch.from_numpy(queries.age[part]),
            torch.from_numpy(skips[part]),
        )
        encoded: Tensor = self.tower(Inputs(*(each.to(self.device) for each in inputs)))
        return encoded

    def losses(
        self, queries: Queries, rows: Rows, own: Rows, others: Rows, extra: Extra, *, part: slice = ALL
    ) -> tuple[Tensor, list[Touched]]:
        """rows int64 [T]: the distinct items of the output side; own [B] and others [S]: where the targets and the
        negatives stand among them. -> losses of a part of the batch [P] and what took part in them."""
        touched: list[Touched] = []
        users = self.users(queries, touched, part)  # [P, D]
        vectors = self.outputs.embed(rows, touched).to(self.device)  # [T, D]
        bias = gathered(self.bias, rows, touched)[:, 0].to(self.device)  # [T]
        own_places, other_places = (torch.from_numpy(places).to(self.device) for places in (own[part], others))
        positives = F.embedding(own_places, vectors), bias[own_places]
        negatives = F.embedding(other_places, vectors), bias[other_places]
        added = Extra(*(each.to(self.device) for each in extra))
        return shared_softmax(users, *positives, *negatives, added), touched

    def tables(self) -> Iterator[tuple[str, Table]]:
        """Every table by name, each once."""
        sides = {id(table): (side, table) for side, table in (("outputs", self.outputs), ("queries", self.queries))}
        for side, item_table in sides.values():
            yield from ((f"{side}.{name}", table) for name, table in item_table.tables())
        yield "bias", self.bias
        yield "words", self.words


def random_table(rows: int, dim: int, rng: np.random.Generator) -> Table:
    """Rows of small noise, made block by block."""
    table = Table(dim, room=rows)
    for at in range(0, rows, AT_ONCE):
        block = rng.standard_normal((min(AT_ONCE, rows - at), dim), dtype=np.float32)
        table.extend(block * np.float32(DEVIATION))
    return table


def gathered(table: Table, rows: Rows, touched: list[Touched]) -> Tensor:
    """Distinct rows int64 [U] of a table -> leaf [U, D], noted in `touched`."""
    index = torch.from_numpy(rows)
    leaf = table.gather(index)
    touched.append(Touched(table, index, leaf))
    return leaf
