"""The spec of a collection: index type, metric and parameters of its vectors. It is written on the collection, so that
a changed setting leaves existing collections readable, and one of an older version of nextwatch is known as such.

FLAT holds vectors as they are (metric IP). HNSW, the IVFs and SCANN hold them on a sphere (metric L2, see
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
_OF_LISTS = frozenset({"IVF_FLAT", "IVF_SQ8", "SCANN"})
_ROWS_PER_HIT = 8  # with fewer, nearly every list holds some of the hits


class IndexSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """`radius` of the sphere, 0: vectors as they are. `rows` that it was made for."""

    kind: str
    radius: float = 0.0
    nlist: int = 0
    rows: int = 0
    format: int = FORMAT

    @classmethod
    def of_new(cls, milvus: Milvus, *, longest: float, rows: int) -> IndexSpec:
        """Return the spec of a new collection: `rows` vectors, the longest of which has the norm `longest`."""
        kind = milvus.index_type
        if kind == "FLAT":
            return cls(kind, rows=rows)
        return cls(kind, radius_for(longest), milvus.ivf_nlist if kind in _OF_LISTS else 0, rows)

    @classmethod
    def of(cls, properties: Mapping[str, str]) -> IndexSpec:
        """Return what the properties of a collection say."""
        if written := properties.get(_SPEC):
            return msgspec.json.decode(written, type=cls)
        radius = float(properties.get(_RADIUS, 0))
        return cls("HNSW" if radius else "FLAT", radius, format=1)

    def properties(self) -> dict[str, str]:
        """Return what is written on the collection."""
        return {_SPEC: msgspec.json.encode(self).decode()}

    @property
    def metric(self) -> str:
        return "L2" if self.radius else "IP"

    def description(self, milvus: Milvus) -> Any:
        """Return pymilvus' description of the index to build. The parameters stand in a text of their own: Milvus Lite
        passes over those that pymilvus puts beside the type, and a server reads both."""
        parameters: dict[str, Any] = {}
        if self.kind == "HNSW":
            parameters = {"M": milvus.hnsw_m, "efConstruction": milvus.hnsw_ef_construction}
        elif self.kind in _OF_LISTS:
            parameters = {"nlist": self.nlist} | ({"with_raw_data": True} if self.kind == "SCANN" else {})
        index, params = MilvusClient.prepare_index_params(), {"params": parameters} if parameters else {}
        index.add_index("vector", index_type=self.kind, metric_type=self.metric, params=params)
        return index

    def search_parameters(self, milvus: Milvus, limit: int, *, filtered: bool) -> dict[str, Any]:
        """Return how wide to look for `limit` items (HNSW with ef below it finds less). What a filter leaves may lie
        anywhere: in any list, at any node of the graph (with 1 of 40 left, 4 times as wide as usual found .58)."""
        if self.kind == "HNSW":
            wanted = max(_LEAST_EF, limit, milvus.hnsw_ef_per_hit * limit, self.rows if filtered else 0)
            return {"ef": min(wanted, _MOST_EF)}
        if self.kind in _OF_LISTS:
            all_lists = filtered or self.rows < _ROWS_PER_HIT * limit
            found = {"nprobe": self.nlist if all_lists else min(milvus.ivf_nprobe, self.nlist)}
            return found | ({"reorder_k": milvus.scann_reorder_per_hit * limit} if self.kind == "SCANN" else {})
        return {}
