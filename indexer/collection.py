"""The index: one Milvus collection per version, known by the alias `items_<version>` (`milvus.collection_prefix`).

Milvus Lite and a Milvus server want opposite things. Lite searches its memtable row by row in Python, so it is flushed
every few thousand rows, a new collection at the end of its fill; a server makes a segment of each flush, so only the
end of a fill flushes it. Lite finds with the next search what was upserted; so does a server that is asked for strong
consistency, but it waits for its time tick then, some 200 ms: users' searches take `milvus.consistency`. After a
restart collections are not loaded; a call that fails for it (code 101) loads and tries once more.

Beside its vector a row has the item's attributes, for filters (indexer/item_attributes.py).

Milvus Lite writes a log before anything else, and reads it after a crash up to the first torn record. A write that
fails (a full disk) may have torn it, and what is acknowledged behind would be gone with the next crash: so the first
write after a failure, or of a process, is flushed, which begins a new log.

Another collection takes a version's place by taking over its alias, which is one step for whoever searches. A
collection without an alias is nobody's, and goes with the next drop.

How the vectors are held (indexer/index_spec.py) is no matter of callers: they give vectors and get inner products.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymilvus import MilvusClient
from pymilvus.client.types import LoadState
from pymilvus.exceptions import MilvusException

from indexer.errors import IndexFailure, IndexMissing, IndexRefused
from indexer.index_spec import IndexSpec
from indexer.item_attributes import UNKNOWN, ItemAttributes
from indexer.milvus import connect, is_lite, is_missing, is_not_loaded, refusal, translated
from indexer.mips_to_l2 import inner_products, lift, lift_queries
from indexer.schema import SHADOW, collection_name, is_one_of, is_stored_name, rows_of, schema_of, stored_name
from infra.platform.settings import Milvus

Floats = NDArray[np.float32]

MOST_HITS = 16384  # Milvus' own bound on a search's limit
_MARK = "nextwatch.mark"  # a collection's property, see Index.mark
_MMAP = "mmap.enabled"  # Milvus' own
LITE_MEMTABLE_ROWS = 2000  # a search pays about 15 ms per thousand of them, the writer 100 to 400 ms per flush
_SLOW_S = 60.0  # for calls that build something: create, flush, load, drop


@dataclass
class _Log:
    """The state of what a collection has written, as far as Milvus Lite makes it our business."""

    unflushed: int = 0  # rows in the memtable
    is_filling: bool = False  # it was made here and is not searched yet
    is_sound: bool = False  # it is known not to be torn


class Index:
    """One connection to Milvus, made at the first call. May be used from several threads; one writer per collection.

    Every method raises the errors of indexer/errors.py; `version` is always a release's version. With the `suffix`
    SHADOW it is the collection that is to take the place of the version's own.
    """

    def __init__(self, milvus: Milvus, suffix: str = "") -> None:
        if not milvus.uri:
            raise IndexRefused("setting milvus.uri is empty: give a Milvus server's http(s)://host:port")
        self._milvus = milvus
        self.suffix = suffix
        self._connected: MilvusClient | None = None
        self._lock = threading.Lock()
        self._is_lite = False
        self._refusal = ""  # of settings for new collections, by this Milvus
        self._logs: defaultdict[str, _Log] = defaultdict(_Log)  # by version
        self._specs: dict[str, IndexSpec] = {}  # by version, as far as known

    # --- collections -------------------------------------------------------------------------------------------------

    def versions(self) -> list[str]:
        """Versions that have a collection, complete or not, oldest name first."""
        with translated("list collections"):
            names = self._aliases()
        return sorted(name.removeprefix(self._milvus.collection_prefix) for name in names if not name.endswith(SHADOW))

    def check(self) -> None:
        """Raises IndexRefused when this Milvus cannot make collections as the settings want them."""
        self._client()
        if self._refusal:
            raise IndexRefused(f"Milvus at {self._milvus.uri}: {self._refusal}")

    def create(self, version: str, dim: int, *, longest: float = 16.0, rows: int = 0) -> None:
        """An empty, loaded collection of vectors of length `dim`, the longest of which has the norm `longest`, for
        about `rows` of them.

        Vectors of more than twice `longest` are found a little too far, unless the index is FLAT.
        """
        self.check()
        milvus, client = self._milvus, self._client()
        spec = IndexSpec.of_new(milvus, longest=longest, rows=rows)
        name = stored_name(milvus.collection_prefix, version + self.suffix)
        with translated("create", version):
            client.create_collection(
                name,
                schema=schema_of(dim + bool(spec.radius)),
                consistency_level="Strong",
                num_shards=milvus.shards,
                properties=spec.properties() | ({_MMAP: "true"} if milvus.mmap else {}),
                timeout=_SLOW_S,
            )
            client.create_index(name, spec.description(milvus), timeout=_SLOW_S)
        self._load(name, version)
        with translated("create", version):
            client.create_alias(name, self._name(version), timeout=milvus.timeout_s)
        self._logs[version] = _Log(is_filling=True, is_sound=True)
        self._specs[version] = spec

    def drop(self, version: str) -> None:
        """Remove a collection, and all that have no alias any more; nothing happens when there is none."""
        client, name = self._client(), self._name(version)
        with translated("drop", version):
            if name in self._aliases():
                client.drop_alias(name, timeout=self._milvus.timeout_s)
            client.drop_collection(name, timeout=_SLOW_S)  # of an older nextwatch; and the client forgets its fields
            for stored in self._stored():
                if not self._aliases_of(stored):
                    client.drop_collection(stored, timeout=_SLOW_S)
        self._forget(version)

    def replace(self, version: str) -> None:
        """Let the version's shadow be its collection too, from the next search on."""
        client, timeout = self._client(), self._milvus.timeout_s
        with translated("replace", version):
            shadow = collection_name(self._milvus.collection_prefix, version + SHADOW)
            stored = next((name for name in self._stored() if shadow in self._aliases_of(name)), None)
            if stored is None:
                raise IndexMissing(f"Milvus: replace of version {version}: there is no {shadow}")
            client.alter_alias(stored, self._name(version), timeout=timeout)
        self._forget(version)

    def spec(self, version: str) -> IndexSpec:
        """Return how the collection holds its vectors: who can search one can search another of the same."""
        return IndexSpec.of(self._describe(version)[0])

    def mark(self, version: str, mark: str) -> None:
        """Write a word on the collection that outlives us: how far its making has come (see indexer/rollout.py)."""
        with translated("mark", version):
            name, timeout = self._name(version), self._milvus.timeout_s
            self._client().alter_collection_properties(name, {_MARK: mark}, timeout=timeout)

    def mark_of(self, version: str, timeout_s: float | None = None) -> str:
        """The collection's mark, empty when it has none."""
        return self._describe(version, timeout_s)[0].get(_MARK, "")

    def dim(self, version: str) -> int:
        """The length of the vectors that it takes."""
        properties, dim = self._describe(version)
        return dim - bool(IndexSpec.of(properties).radius)

    def load(self, version: str) -> None:
        """Make it searchable; needed after a restart of Milvus, harmless when it is."""
        self._load(self._name(version), version)

    def flush(self, version: str) -> None:
        """Move what was written into segments. For the end of a fill; Milvus Lite flushes itself in between."""
        with translated("flush", version):
            self._client().flush(self._name(version), timeout=_SLOW_S)
        self._logs[version] = _Log(is_sound=True)

    def count(self, version: str) -> int:
        """Rows in the collection, exactly."""
        return int(self._query(version, "", ["count(*)"])[0]["count(*)"])

    # --- rows --------------------------------------------------------------------------------------------------------

    def upsert(
        self,
        version: str,
        item_ids: Sequence[str],
        vectors: Floats,
        steps: Sequence[int],
        attributes: Sequence[ItemAttributes] | None = None,
    ) -> None:
        """Write or replace rows; vectors float32 [N, dim], the items' attributes (none: nothing is known of them).
        Raises ValueError for a non-finite vector.

        When it returns, the next search finds them.
        """
        known = [UNKNOWN] * len(item_ids) if attributes is None else attributes
        radius = self._spec_of(version).radius
        rows = rows_of(item_ids, lift(vectors, radius) if radius else vectors, steps, known)
        client = self._client()
        # On Milvus Lite an insert replaces a row too; its upsert reads the old one first, to keep what is not named.
        write = client.insert if self._is_lite else client.upsert
        with self._writing("upsert", version):
            write(self._name(version), rows, timeout=self._milvus.timeout_s)
        self._keep_memtable_small(version, len(rows))

    def delete(self, version: str, item_ids: Sequence[str]) -> None:
        """Remove rows; ids that are not there are passed over."""
        with self._writing("delete", version):
            self._client().delete(self._name(version), filter=is_one_of(item_ids), timeout=self._milvus.timeout_s)
        self._keep_memtable_small(version, len(item_ids))

    def vectors(self, version: str, item_ids: Sequence[str]) -> dict[str, tuple[int, Floats]]:
        """Step and vector float32 [dim] of those of these items that are there."""
        found = self._query(version, is_one_of(item_ids), ["item_id", "vector", "step"])
        lifted = bool(self._spec_of(version).radius)
        vectors = [np.asarray(row["vector"], np.float32) for row in found]
        return {
            row["item_id"]: (int(row["step"]), vector[:-1] if lifted else vector)
            for row, vector in zip(found, vectors, strict=True)
        }

    def search(
        self,
        version: str,
        vectors: Floats,
        limit: int,
        *,
        expression: str = "",
        strong: bool = False,
        timeout_s: float | None = None,
    ) -> list[tuple[list[str], Floats]]:
        """The `limit` (at most 16384) items with the largest inner product for each of vectors float32 [B, dim], among
        those that a Milvus filter `expression` is true of; `strong`: what was upserted before is found, at any price.

        Per query: ids and inner products float32 [up to limit], best first.
        """
        if not np.isfinite(vectors).all():
            raise ValueError("query vectors must be finite")
        limit, spec, client = min(limit, MOST_HITS), self._spec_of(version), self._client()
        parameters = spec.search_parameters(self._milvus, limit, filtered=bool(expression))
        queries = lift_queries(vectors) if spec.radius else vectors
        run = partial(
            client.search,
            self._name(version),
            data=list(np.ascontiguousarray(queries, np.float32)),
            anns_field="vector",
            filter=expression,
            limit=limit,
            search_params={"metric_type": spec.metric, "params": parameters},
            output_fields=["item_id"] if self._is_lite else [],  # Lite answers "no fields" with all, vectors too
            consistency_level="Strong" if strong or self._is_lite else self._milvus.consistency,
            timeout=timeout_s or self._milvus.timeout_s,
        )
        # The columns behind the hits: one list each, where hit by hit would be a dictionary for every candidate.
        found = [(list(hits.ids), np.array(hits.distances, np.float32)) for hits in self._reading(version, run)]
        if not spec.radius:
            return found
        pairs = zip(found, vectors, strict=True)
        return [(ids, inner_products(far, query, spec.radius)) for (ids, far), query in pairs]

    # --- connection --------------------------------------------------------------------------------------------------

    def is_ready(self) -> bool:
        """Return whether Milvus answers a real request."""
        try:
            self.versions()
        except IndexFailure:
            return False
        return True

    def close(self) -> None:
        with self._lock:
            if self._connected is not None:
                self._connected.close()
            self._connected = None

    def _forget(self, version: str) -> None:
        self._logs.pop(version, None)
        self._specs.pop(version, None)

    def _name(self, version: str) -> str:
        return collection_name(self._milvus.collection_prefix, version + self.suffix)

    def _client(self) -> MilvusClient:
        with self._lock:
            if self._connected is None:
                self._connected, version = connect(self._milvus)
                self._is_lite, self._refusal = is_lite(version), refusal(self._milvus, version)
            return self._connected

    def _load(self, name: str, version: str) -> None:
        """One that is loaded stays as it is: a server refuses to load it once more with another number of replicas."""
        client, replicas = self._client(), self._milvus.replicas
        with translated(f"load (milvus.replicas is {replicas})" if replicas > 1 else "load", version):
            if client.get_load_state(name, timeout=self._milvus.timeout_s)["state"] != LoadState.Loaded:
                client.load_collection(name, replica_number=replicas, timeout=_SLOW_S)

    def _stored(self) -> list[str]:
        """Our collections by their own names, those without an alias too."""
        names = self._client().list_collections(timeout=self._milvus.timeout_s)
        return [name for name in names if is_stored_name(self._milvus.collection_prefix, name)]

    def _aliases(self) -> list[str]:
        """Ours. Asked of each collection: for all at once a server of 2.3 gives those of other databases too."""
        return [alias for stored in self._stored() for alias in self._aliases_of(stored)]

    def _aliases_of(self, stored: str) -> set[str]:
        """Ours of one collection; none when it was dropped meanwhile.

        Asked in both ways that there are, since what has none is dropped: a server of 2.3 lists them in its default
        database only, and Milvus Lite does not describe a collection with them.
        """
        client, timeout, names = self._client(), self._milvus.timeout_s, set[str]()
        for ask in (client.list_aliases, client.describe_collection):
            try:
                names.update(ask(stored, timeout=timeout)["aliases"])
            except MilvusException as error:
                if not is_missing(error):
                    raise
        return {name for name in names if name.startswith(self._milvus.collection_prefix)}

    def _describe(self, version: str, timeout_s: float | None = None) -> tuple[dict[str, str], int]:
        """A collection's properties and the dimension of what it stores."""
        with translated("describe", version):
            timeout_s = timeout_s or self._milvus.timeout_s
            about = self._client().describe_collection(self._name(version), timeout=timeout_s)
        dim = next(int(field["params"]["dim"]) for field in about["fields"] if field["name"] == "vector")
        return {str(name): str(value) for name, value in dict(about.get("properties") or {}).items()}, dim

    def _spec_of(self, version: str) -> IndexSpec:
        if version not in self._specs:
            self._specs[version] = self.spec(version)
        return self._specs[version]

    def _query(self, version: str, expression: str, fields: list[str]) -> list[dict[str, Any]]:
        run = partial(
            self._client().query,
            self._name(version),
            filter=expression,
            output_fields=fields,
            consistency_level="Strong",
            timeout=self._milvus.timeout_s,
        )
        return list(self._reading(version, run))

    def _reading(self, version: str, run: Any) -> Any:
        """The answer of `run`; a collection that is not loaded (after a restart of Milvus) is loaded first."""
        with translated("read", version):
            try:
                return run()
            except MilvusException as error:
                if not is_not_loaded(error):
                    raise
            self.load(version)
            return run()

    @contextmanager
    def _writing(self, call: str, version: str) -> Iterator[None]:
        try:
            with translated(call, version):
                yield
        except IndexFailure:
            self._logs[version].is_sound = False
            raise

    def _keep_memtable_small(self, version: str, rows: int) -> None:
        log = self._logs[version]
        if not self._is_lite or (log.is_filling and log.is_sound):
            return
        log.unflushed += rows
        if log.unflushed >= LITE_MEMTABLE_ROWS or not log.is_sound:
            self.flush(version)
