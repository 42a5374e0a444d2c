"""The spec of a collection: index type, metric and parameters of its vectors. It is written on the collection, so that
a changed setting leaves existing collections readable, and one of an older version of nextwatch is known as such.

FLAT holds vectors as they are (metric IP). HNSW and IVF_FLAT hold them on a sphere (metric L2, see
indexer/mips_to_l2.py): under the inner product the lists of an IVF are as useless as an HNSW's graph. Recall@500 of
20,000 vectors with a popularity coordinate, 64 of 128 lists searched: .75 as they are, .98 on the sphere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from pymilvus import MilvusClient

from indexer.mips_to_l2 import radius_for
from infra.platform.settings import Milvus

FORMAT = 2  # rises when the fields of a collection change: 2 has the items' attributes beside their vectors
_SPEC, _RADIUS = "nextwatch.form", "nextwatch.radius"  # properties of a collection; the second was all of format 1
_LEAST_EF, _MOST_EF = 64, 32768
_ROWS_PER_HIT = 8  # with fewer, nearly every list holds some of the hits


class IndexSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """`radius` of the sphere, 0: vectors as they are. `rows` that it was made for."""

    kind: str
    radius: float = 0.0
    nlist: int = 0
    rows: int = 0
    format: int = FORMAT


def spec_for(milvus: Milvus, *, longest: float, rows: int) -> IndexSpec:
    """The spec of a new collection: `rows` vectors, the longest of which has the norm `longest`."""
    kind = milvus.index_type
    if kind == "FLAT":
        return IndexSpec(kind, rows=rows)
    return IndexSpec(kind, radius_for(longest), milvus.ivf_nlist if kind == "IVF_FLAT" else 0, rows)


def properties_of(spec: IndexSpec) -> dict[str, str]:
    return {_SPEC: msgspec.json.encode(spec).decode()}


def spec_from(properties: Mapping[str, str]) -> IndexSpec:
    """Return what the properties of a collection say."""
    if written := properties.get(_SPEC):
        return msgspec.json.decode(written, type=IndexSpec)
    radius = float(properties.get(_RADIUS, 0))
    return IndexSpec("HNSW" if radius else "FLAT", radius, format=1)


def metric_of(spec: IndexSpec) -> str:
    return "L2" if spec.radius else "IP"


def index_of(spec: IndexSpec, milvus: Milvus) -> Any:
    """pymilvus' description of the index to build. The parameters stand in a text of their own: Milvus Lite passes over
    those that pymilvus puts beside the type, and a server reads both."""
    parameters: dict[str, Any] = {}
    if spec.kind == "HNSW":
        parameters = {"M": milvus.hnsw_m, "efConstruction": milvus.hnsw_ef_construction}
    elif spec.kind == "IVF_FLAT":
        parameters = {"nlist": spec.nlist}
    index = MilvusClient.prepare_index_params()
    index.add_index(
        "vector", index_type=spec.kind, metric_type=metric_of(spec), params={"params": parameters} if parameters else {}
    )
    return index


def search_parameters(spec: IndexSpec, milvus: Milvus, limit: int, *, filtered: bool) -> dict[str, Any]:
    """Return how wide to look for `limit` items (HNSW with ef below it finds less). What a filter leaves may lie
    anywhere: in any list, at any node of the graph (with 1 of 40 left, 4 times as wide as usual found .58 of them)."""
    if spec.kind == "HNSW":
        wanted = max(_LEAST_EF, limit, milvus.hnsw_ef_per_hit * limit, spec.rows if filtered else 0)
        return {"ef": min(wanted, _MOST_EF)}
    if spec.kind == "IVF_FLAT":
        all_lists = filtered or spec.rows < _ROWS_PER_HIT * limit
        return {"nprobe": spec.nlist if all_lists else min(milvus.ivf_nprobe, spec.nlist)}
    return {}
