"""The least that a request can cost: a search of the same collection by pymilvus itself, and one pass of user towers
and ranker on tensors that are ready. No view, no filter, no source, no feature, no reply."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pymilvus import MilvusClient

from indexer.schema import collection_name
from models.ranking.ranking_request import RankingQuery, ranking_batch_of
from models.release.bundle import Bundle
from streams.messages import UserHistory
from tests.benchmarks.ranking.ranking_serving import forward, tensors_of

CANDIDATES = 500
TURNS_READY = 16  # batches that are made ready and gone through again and again

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Search = Callable[[Sequence[Floats]], Any]


@dataclass(frozen=True)
class Ready:
    """A batch of viewers: their vectors [B, D] for the search, and what tower and ranker read."""

    vectors: list[Floats]
    tower: Any
    ranker: tuple[Any, Any, torch.Tensor]


@contextlib.contextmanager
def raw_client(uri: str, version: str, consistency: str) -> Iterator[Search]:
    """Searches of the collection of a version, nq at a time, best 500, nothing but ids asked for."""
    client = MilvusClient(uri)

    def search(vectors: Sequence[Floats]) -> Any:
        return client.search(
            collection_name("items_", version),
            data=list(vectors),
            anns_field="vector",
            limit=CANDIDATES,
            search_params={"metric_type": "IP"},
            output_fields=["item_id"],  # Milvus Lite takes none for all
            consistency_level=consistency,
        )

    try:
        yield search
    finally:
        client.close()


def make_ready(bundle: Bundle, viewers: Sequence[UserHistory], search: Search, now_ms: int) -> Ready:
    """The candidates are those that the search finds."""
    model = bundle.model
    vectors = list(model.user_vectors(viewers, now_ms))
    found = [(list(hits.ids), np.array(hits.distances, np.float32)) for hits in search(vectors)]
    queries = [RankingQuery(v, now_ms, ids, scores) for v, (ids, scores) in zip(viewers, found, strict=True)]
    asked = model.encoder.queries(viewers, {item_id: row for row, item_id in enumerate(model.item_ids)})
    inputs = model.encoder.inputs(asked, model.query_rows)
    batch = ranking_batch_of(queries, bundle.catalogue, [bundle.statistics])
    return Ready(vectors, inputs, tensors_of(bundle.ranker, batch))


def pass_forward(bundle: Bundle, ready: Ready) -> None:
    with torch.inference_mode():
        bundle.model.encoder.tower(ready.tower)
    forward(bundle.ranker, *ready.ranker)


def measure_raw(bundle: Bundle, search: Search, batches: Sequence[Ready], turns: int) -> dict[str, list[float]]:
    """Milliseconds of a search and of a pass, in turns."""
    found: dict[str, list[float]] = {"search": [], "forward": []}
    for turn in range(turns + 2):
        ready = batches[turn % len(batches)]
        began_s = time.perf_counter()
        search(ready.vectors)
        searched_s = time.perf_counter()
        pass_forward(bundle, ready)
        found["search"].append(1000 * (searched_s - began_s))
        found["forward"].append(1000 * (time.perf_counter() - searched_s))
    return {part: times[2:] for part, times in found.items()}  # the first two are a warm-up


def batches_of(bundle: Bundle, viewers: Sequence[UserHistory], search: Search, size: int, now_ms: int) -> list[Ready]:
    """Batches of `size` viewers, made ready."""
    count = max(2, TURNS_READY // size)
    order = [viewers[at % len(viewers)] for at in range(count * size)]
    return [make_ready(bundle, order[at * size : (at + 1) * size], search, now_ms) for at in range(count)]
