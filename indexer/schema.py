"""The words of what stands in Milvus: the names of collections, the fields of a row, and ids as Milvus reads them.

Rows are always written whole: Milvus Lite's upsert keeps what an old row has and the new one does not name, a server's
does not.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymilvus import DataType, MilvusClient

from indexer.item_attributes import ItemAttributes, add_fields, as_row

Floats = NDArray[np.float32]

SHADOW = "__beside"  # after the version, in the name of what is to take its place
_ID_BYTES = 1024
_STORED = re.compile(".+__[0-9a-f]{16}")
_UNWRITABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")  # control characters, halves of surrogate pairs


def collection_name(prefix: str, version: str) -> str:
    """By which everybody finds the collection of a version: an alias of the collection that it is at the time."""
    return prefix + version


def stored_name(prefix: str, version: str) -> str:
    """A collection's own name, a new one each time: in Milvus Lite a search that meets a drop or a rename can leave a
    directory behind, under whose name no collection can be made again."""
    return f"{collection_name(prefix, version)}__{secrets.token_hex(8)}"


def is_stored_name(prefix: str, name: str) -> bool:
    """Return whether it is one of the deployment with this `milvus.collection_prefix`: no prefix is the beginning of
    another."""
    return name.startswith(prefix) and _STORED.fullmatch(name.removeprefix(prefix)) is not None


def is_indexable(item_id: str) -> bool:
    """Return whether Milvus can hold this id and find it again: at most 1024 bytes, no control characters."""
    return bool(item_id) and _UNWRITABLE.search(item_id) is None and len(item_id.encode()) <= _ID_BYTES


def schema_of(stored_dim: int) -> Any:
    """Return the schema of a collection whose vectors are stored with this length."""
    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("item_id", DataType.VARCHAR, max_length=_ID_BYTES, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=stored_dim)
    schema.add_field("step", DataType.INT64)
    add_fields(schema)
    return schema


def rows_of(
    item_ids: Sequence[str], vectors: Floats, steps: Sequence[int], attributes: Sequence[ItemAttributes]
) -> list[dict[str, Any]]:
    """pymilvus' rows. Milvus would take a NaN without a word and rank it anywhere."""
    if not np.isfinite(vectors).all():
        bad = int(np.count_nonzero(~np.isfinite(vectors).all(axis=1)))
        raise ValueError(f"{bad} of {len(vectors)} vectors are not finite")
    return [
        {"item_id": item_id, "vector": vector, "step": int(step)} | as_row(known)
        for item_id, vector, step, known in zip(item_ids, vectors, steps, attributes, strict=True)
    ]


def is_one_of(item_ids: Sequence[str]) -> str:
    """pymilvus quotes ids as Python does, which Milvus reads otherwise (it's); JSON's strings are Milvus' own."""
    return f"item_id in {json.dumps(list(item_ids), ensure_ascii=False)}"
