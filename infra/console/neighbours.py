"""The items that lie nearest to one in the live release: by the cosine of their vectors, as the index holds them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from infra.platform.settings import Settings

LOOKED_AT = 200  # the largest inner products, which favour what is popular; of these the nearest are shown
SHOWN = 10


class Neighbour(NamedTuple):
    item_id: str
    cosine: float


def read_neighbours(settings: Settings, item_id: str) -> list[Neighbour]:
    """Ask the index of the live release; empty when there is none, or when it does not hold the item.

    Raises IndexFailure and KafkaError.
    """
    from indexer.collection import Index  # with pymilvus, which takes a second to load
    from infra.operate.releases import read_topic

    version = read_topic(settings.kafka).live
    if not version:
        return []
    with closing(Index(settings.milvus)) as index:
        own = index.vectors(version, [item_id]).get(item_id)
        if own is None:
            return []
        [(ids, _)] = index.search(version, own[1][None], LOOKED_AT)
        vectors = {each: vector for each, (_, vector) in index.vectors(version, ids).items()}
    return nearest(item_id, own[1], vectors)


def nearest(item_id: str, own: NDArray[np.float32], vectors: Mapping[str, NDArray[np.float32]]) -> list[Neighbour]:
    """The nearest of these to `own` [D], the item itself left out."""
    others = [each for each in vectors if each != item_id]
    if not others:
        return []
    matrix = np.stack([vectors[each] for each in others])  # [N, D]
    norms = np.linalg.norm(matrix, axis=1) * np.linalg.norm(own)
    cosines = np.divide(matrix @ own, norms, out=np.zeros(len(others), np.float32), where=norms > 0)
    order = np.argsort(-cosines, kind="stable")[:SHOWN].tolist()
    return [Neighbour(others[at], float(cosines[at])) for at in order]
