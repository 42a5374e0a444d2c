"""The user towers as plain arrays, for a few users at once: the same numbers without torch's price of every call.

A request has one or two vectors to be made, of products that take microseconds; torch takes a tenth of a millisecond
for each of some forty calls. Towers of averages only: attention stays torch's (models.retrieval.tower).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from models.arrays import Floats, Rows
from models.logs.examples import Queries
from models.logs.pairs import KEPT
from models.retrieval.tower import TowerShape, UserTower, UserTowers

MOST_USERS = 128  # of a batch: more are torch's

Layer = tuple[Floats, Floats]  # weight [out, in], bias [out]


class TowerArrays:
    """A view of the towers' weights; `encode` is their forward pass. Raises ValueError for another encoder."""

    def __init__(self, towers: UserTowers) -> None:
        if towers.shape.encoder != "average":
            raise ValueError(f"towers of encoder {towers.shape.encoder!r} are torch's own")
        self._shape = towers.shape
        self._members = [_Member(member) for member in towers.members]  # type: ignore[arg-type]

    def encode(self, queries: Queries, query_rows: Floats, words: Floats) -> Floats:
        """query_rows [N, item_dim] and words [W, members * words], of which the users' own are read
        -> user vectors float32 [B, item_dim]"""
        shape = self._shape
        watched = _means(query_rows, queries.histories)  # [B, item_dim]
        skipped = _means(query_rows, queries.skips) if shape.skips else watched[:0]
        searched = _means(words, queries.tokens) if shape.words else words[:0]
        contexts, traits = queries.context, _traits(queries, shape)
        users = np.empty_like(watched)
        for number, member in enumerate(self._members):
            mine = slice(number * shape.dim, (number + 1) * shape.dim)
            beside = [skipped[:, mine]] if shape.skips else []
            if shape.words:
                beside.append(searched[:, number * shape.words : (number + 1) * shape.words])
            users[:, mine] = member.encode(shape, watched[:, mine], beside, contexts, traits)
        if shape.linear and shape.ordered:
            users[:, -shape.linear :] = _recent_sums(query_rows[:, -shape.linear :], queries.histories)
        elif shape.linear:
            entries = np.count_nonzero(queries.histories >= 0, axis=1)[:, None]
            users[:, -shape.linear :] = watched[:, -shape.linear :] * np.sqrt(entries, dtype=np.float32)
        if shape.muted_towers:
            users[:, : shape.members * shape.dim] = 0
        if shape.muted_linear:
            users[:, shape.members * shape.dim :] = 0
        return users


class _Member:
    def __init__(self, tower: UserTower) -> None:
        self._layers: list[Layer] = [
            (layer.weight.detach().numpy(), layer.bias.detach().numpy())
            for layer in tower.layers
            if isinstance(layer, nn.Linear)
        ]
        self._contexts = [embedding.weight.detach().numpy() for embedding in tower.contexts]  # type: ignore[union-attr, operator]

    def encode(
        self, shape: TowerShape, watched: Floats, beside: Sequence[Floats], contexts: Rows, traits: Sequence[Floats]
    ) -> Floats:
        """As UserTower.forward: [B, D], and the means of what else is known -> [B, D]"""
        known = [table[contexts[:, field]] for field, table in enumerate(self._contexts)]
        parts = [watched, *beside, *known, *traits]
        x = np.concatenate(parts, axis=1) if len(parts) > 1 else watched
        *hidden, (last, bias) = self._layers
        with np.errstate(over="ignore", invalid="ignore"):  # who asks looks whether the vector is finite
            for weight, shift in hidden:
                x = np.maximum(x @ weight.T + shift, 0)
            encoded: Floats = x @ last.T + bias
            return encoded + watched if shape.residual else encoded


def _traits(queries: Queries, shape: TowerShape) -> list[Floats]:
    parts: list[Floats] = []
    if shape.traits:
        parts += [np.nan_to_num(queries.traits), (~np.isnan(queries.traits)).astype(np.float32)]
    if shape.example_age:
        parts.append(np.stack([queries.age, np.sqrt(queries.age)], axis=1))
    return parts


def _means(table: Floats, places: Rows) -> Floats:
    """table [N, D]; places int64 [B, H], -1 for none -> the mean of each row's vectors [B, D], zero of none."""
    means = np.zeros((len(places), table.shape[1]), np.float32)
    for mean, mine in zip(means, places, strict=True):
        there = mine[mine >= 0]
        if len(there):
            np.mean(table[there], axis=0, out=mean)
    return means


def _recent_sums(table: Floats, places: Rows) -> Floats:
    """As _means, but sums in which the newest counts 1 and each older one KEPT of the one after it."""
    sums = np.zeros((len(places), table.shape[1]), np.float32)
    for total, mine in zip(sums, places, strict=True):
        there = mine[mine >= 0]
        weights = np.float32(KEPT) ** np.arange(len(there) - 1, -1, -1, dtype=np.float32)
        np.matmul(weights, table[there], out=total)
    return sums
