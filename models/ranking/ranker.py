"""The ranker: expected watch seconds of each candidate, by weighted logistic regression (paper section 4.2).

The odds of a logistic regression in which each impression weighs its watch time as a positive and one as a negative are
E[T]; so exp(logit) is served as seconds. Quantile table, ids and schema are frozen into the bundle with the network.
Nothing here loops over candidates: features, codes and network take all candidates of all requests at once.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from msgspec.structs import replace
from torch import Tensor

from models.arrays import Array, Doubles, Floats, Rows
from models.ranking.feature import Feature, Scope
from models.ranking.features import compute_ids, compute_numbers, ids_of, numbers_of
from models.ranking.id_spaces import IdSpaces
from models.ranking.merged_nets import MergedNets
from models.ranking.quantiles import Isotonic, Quantiles, WatchQuantiles
from models.ranking.ranker_net import RankerNet, RankerShape
from models.ranking.ranking_batch import IMPRESSIONS, Codes, RankingBatch
from models.ranking.ranking_examples import CAP_S, MOST_CAP_S, SCOPES

LEAST_LOGIT = -10.0
LEAST_S = np.exp(np.float32(LEAST_LOGIT))
_OF_ITEM = np.array([feature.of_item for feature in numbers_of("impression")])
_ITEM_COLUMNS = np.flatnonzero(_OF_ITEM), np.flatnonzero(~_OF_ITEM)


@dataclass(frozen=True)
class Ranked:
    """expected_s float32 [N], finite, within [0, cap_s]; the features by scope, as they were fed; `completion` float32
    [N]: P(completed), where that head exists; `spread` float32 [N]: standard deviation of the log seconds that the
    members predict, how far they disagree; zeros of a single one."""

    expected_s: Floats
    numbers: dict[Scope, Floats]
    ids: dict[str, Codes]
    completion: Floats | None = None
    spread: Floats | None = None


class ItemParts(NamedTuple):
    """What a ranking has of N items whoever asks: numbers float32 [N, F] and `ids` by feature, the features of the item
    alone; hidden [M, N, H], their part of the networks' first layer; shown float64 [N], decayed impressions."""

    numbers: Floats
    ids: dict[str, Codes]
    hidden: Tensor
    shown: Doubles


class Ranker:
    """Ranks by trained networks. Without enough examples there is none: then `trained` is False."""

    def __init__(
        self,
        shape: RankerShape | None = None,
        nets: Sequence[RankerNet] = (),
        quantiles: Mapping[Scope, Quantiles] | None = None,
        spaces: IdSpaces | None = None,
        watch_quantiles: WatchQuantiles | None = None,
        isotonic: Isotonic | None = None,
    ) -> None:
        self.shape, self.nets = shape, [net.eval().requires_grad_(False) for net in nets]
        self.quantiles = dict(quantiles or {})
        self.spaces = spaces or IdSpaces({})
        self.watch_quantiles = watch_quantiles
        self.isotonic = isotonic  # from the seconds of the networks to those that are promised
        self._encodings: dict[tuple[Scope, bool | None], _Encoding] = {}

    @property
    def trained(self) -> bool:
        return bool(self.nets)

    @property
    def cap_s(self) -> float:
        """The most seconds that it promises."""
        return CAP_S if self.shape is None else self.shape.cap_s

    def in_bfloat16(self) -> Ranker:
        """The same one with weights of 16 bits: about twice as fast where the processor computes with them, and its
        seconds differ by about a hundredth (docs/serving.md)."""
        nets = [copy.deepcopy(net).bfloat16() for net in self.nets]
        return Ranker(self.shape, nets, self.quantiles, self.spaces, self.watch_quantiles, self.isotonic)

    def calibrated(self, isotonic: Isotonic | None) -> Ranker:
        """The same one with this map."""
        shape = None if self.shape is None else replace(self.shape, isotonic=isotonic is not None)
        return Ranker(shape, self.nets, self.quantiles, self.spaces, self.watch_quantiles, isotonic)

    def uncapped(self) -> Ranker:
        """The same one that promises whatever its networks say."""
        shape = None if self.shape is None else replace(self.shape, cap_s=MOST_CAP_S)
        return Ranker(shape, self.nets, self.quantiles, self.spaces, self.watch_quantiles, self.isotonic)

    def rank(self, batch: RankingBatch, items: ItemParts | None = None) -> Ranked:
        """Expected watch seconds of all candidates of a batch, in one pass; `items`: the candidates' parts, where they
        are there already. Raises RuntimeError when untrained."""
        items = items or self.item_parts(batch)
        query, others = compute_numbers(batch, "query"), compute_numbers(batch, "impression", False)
        numbers: dict[Scope, Floats] = {"query": query, "impression": _side_by_side(items.numbers, others)}
        ids = items.ids | compute_ids(batch, "query") | compute_ids(batch, "impression", False)
        encoded = self.encode("query", query, ids), self.encode("impression", others, ids, False)
        members = self._networks.logits(encoded[0], items.hidden, encoded[1], batch.request)
        logits = members.mean(axis=0)
        duration_s = batch.catalogue.duration_s(batch.candidates.rows)
        expected_s = self.seconds(logits[:, 0], duration_s)
        completion = torch.from_numpy(logits[:, 1]).sigmoid().numpy() if logits.shape[1] > 1 else None
        return Ranked(expected_s, numbers, ids, completion, self._spread(members, duration_s))

    def item_parts(self, batch: RankingBatch) -> ItemParts:
        """The parts of the candidates of a batch. Raises RuntimeError when untrained."""
        numbers, ids = compute_numbers(batch, "impression", True), compute_ids(batch, "impression", True)
        hidden = self._networks.of_items(*self.encode("impression", numbers, ids, True))
        return ItemParts(numbers, ids, hidden, batch.known.item[:, IMPRESSIONS])

    def logits(self, numbers: Mapping[Scope, Floats], ids: Mapping[str, Codes], request: Rows) -> Floats:
        """float32 [N, 1 + completion], the members' mean. numbers [B, F] and [N, F]; request int64 [N]."""
        of_items, others = (numbers["impression"][:, columns] for columns in _ITEM_COLUMNS)
        query = self.encode("query", numbers["query"], ids)
        hidden = self._networks.of_items(*self.encode("impression", of_items, ids, True))
        members = self._networks.logits(query, hidden, self.encode("impression", others, ids, False), request)
        return np.asarray(members.mean(axis=0))

    @cached_property
    def _networks(self) -> MergedNets:
        if not self.nets:
            raise RuntimeError("this ranker is not trained")
        return MergedNets(self.nets)

    def encode(
        self, scope: Scope, numbers: Floats, ids: Mapping[str, Codes], of_item: bool | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Encode a scope, or those of its features that are of the item alone, or the others, as a network reads it:
        quantiles and codes."""
        columns, quantiles, used = self._encoding(scope, of_item)
        x = torch.from_numpy(quantiles.encode(numbers[:, columns]))
        codes = {f.name: torch.from_numpy(self.spaces.codes(str(f.space), ids[f.name])) for f in used}
        return x, codes

    def _encoding(self, scope: Scope, of_item: bool | None) -> _Encoding:
        found = self._encodings.get((scope, of_item))
        if found is None:
            assert self.shape is not None
            numbers, _, used = self.shape.used(scope)
            rows = [row for row, feature in enumerate(numbers) if feature.is_among(scope, of_item)]
            every = [feature.name for feature in numbers_of(scope, of_item)]
            columns = [every.index(numbers[row].name) for row in rows]
            named = [feature for feature in used if feature.is_among(scope, of_item)]
            found = self._encodings[scope, of_item] = _Encoding(columns, self.quantiles[scope].of(rows), named)
        return found

    def seconds(self, logit: Floats, duration_s: Floats) -> Floats:
        """Logits [N] as expected seconds."""
        if self.isotonic is None:
            return self._said(logit, duration_s, self.cap_s)
        mapped = self.isotonic(self._said(logit, duration_s, MOST_CAP_S).astype(np.float64))
        return np.minimum(mapped, self.cap_s).astype(np.float32)

    def _said(self, logit: Floats, duration_s: Floats, cap_s: float) -> Floats:
        """The networks' seconds."""
        if self.watch_quantiles is None:
            return serve_seconds(logit, cap_s)
        odds = torch.from_numpy(np.nan_to_num(logit)).sigmoid().numpy()
        return np.minimum(self.watch_quantiles.seconds(odds, duration_s), np.float32(cap_s))

    def _spread(self, members: Floats, duration_s: Floats) -> Floats:
        """float32 [N]. What predicts next to nothing is not told from what predicts nothing."""
        if len(members) == 1:
            return np.zeros(len(duration_s), np.float32)
        of_all = self.seconds(members[:, :, 0].reshape(-1), np.tile(duration_s, len(members)))
        seconds = of_all.reshape(len(members), -1)  # [M, N]
        return np.asarray(np.log(np.maximum(seconds, LEAST_S)).std(axis=0), np.float32)

    def to_arrays(self) -> dict[str, Array]:
        """Everything that was learnt but the ids' names, by name."""
        arrays: dict[str, Array] = {}
        for scope, table in self.quantiles.items():
            arrays |= {f"{scope}.points": table.points, f"{scope}.ranks": table.ranks}
        if self.watch_quantiles is not None:
            arrays |= {"watch.edges": self.watch_quantiles.edges, "watch.table": self.watch_quantiles.table}
        if self.isotonic is not None:
            arrays |= {"isotonic.points": self.isotonic.points, "isotonic.values": self.isotonic.values}
        for number, net in enumerate(self.nets):
            arrays |= {f"net.{number}.{name}": tensor.numpy() for name, tensor in net.state_dict().items()}
        return arrays

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, Array], shape: RankerShape | None, names: Mapping[str, Sequence[str]]
    ) -> Ranker:
        """The reverse of `to_arrays`. Raises KeyError or RuntimeError (torch) when a name or shape does not fit."""
        if shape is None:
            return cls()
        nets = []
        for number in range(shape.members):
            net, start = RankerNet(shape), f"net.{number}."
            net.load_state_dict(
                {n.removeprefix(start): torch.from_numpy(a) for n, a in arrays.items() if n.startswith(start)}
            )
            nets.append(net)
        quantiles = {scope: Quantiles(arrays[f"{scope}.points"], arrays[f"{scope}.ranks"]) for scope in SCOPES}
        watch = WatchQuantiles(arrays["watch.edges"], arrays["watch.table"]) if "watch.edges" in arrays else None
        isotonic = Isotonic(arrays["isotonic.points"], arrays["isotonic.values"]) if shape.isotonic else None
        known = {space: names.get(space, ()) for space in shape.sizes} | dict(names)  # a space may be without names
        return cls(shape, nets, quantiles, IdSpaces(known), watch, isotonic)


class _Encoding(NamedTuple):
    """The numbers in use, their quantiles, and the features of ids in use."""

    columns: list[int]
    quantiles: Quantiles
    ids: list[Feature]


def _side_by_side(of_items: Floats, others: Floats) -> Floats:
    """float32 [N, F]: all numbers of an impression, in the order in which they travel."""
    numbers = np.empty((len(others), len(_OF_ITEM)), np.float32)
    for columns, values in zip(_ITEM_COLUMNS, (of_items, others), strict=True):
        numbers[:, columns] = values
    return numbers


def id_strings(ids: Mapping[str, Codes], scope: Scope, rows: Sequence[int]) -> list[dict[str, tuple[str, ...]]]:
    """The ids of some queries or impressions by feature, as they are put on record; features without any are left
    out."""
    found: list[dict[str, tuple[str, ...]]] = [{} for _ in rows]
    for feature in ids_of(scope):
        name, named = feature.name, ids[feature.name]
        for mine, codes in zip(found, named.codes[list(rows)].tolist(), strict=True):
            if known := tuple([named.names[code - named.first] for code in codes if code > 0]):
                mine[name] = known
    return found


def serve_seconds(logit: Floats, cap_s: float) -> Floats:
    """exp(logit), finite and capped; a logit that is no number sinks."""
    known = np.where(np.isnan(logit), np.float32(LEAST_LOGIT), logit)
    return np.asarray(np.exp(np.clip(known, LEAST_LOGIT, np.log(cap_s))), np.float32)
