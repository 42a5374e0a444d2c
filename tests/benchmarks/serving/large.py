"""A release with as many items as wanted: what the towers and the ranker have learnt in the simulated world, and its
items many times over, each a little different. Training a million items would say no more of serving's speed.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl

from models.catalogue.catalogue import Catalogue
from models.catalogue.item_frame import catalogue_frame, catalogue_of
from models.release.bundle import Bundle, Manifest, write_bundle
from models.retrieval.candidates import CandidateModel
from models.retrieval.popularity import Popularity

NOISE = 0.1  # of the vectors' own spread
BLOCK = 100_000  # rows that are varied together


def enlarged(bundle: Bundle, bundles_dir: Path, items: int, seed: int = 1) -> Manifest:
    """Write the bundle with `items` items; the first ones are its own."""
    rng = np.random.default_rng(seed)
    known = len(bundle.model.item_ids)
    rows = np.r_[np.arange(known), rng.integers(0, known, max(0, items - known))][:items]
    item_ids = bundle.model.item_ids[:items] + [f"copy-{at:07d}" for at in range(known, items)]
    bundles_dir.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=bundles_dir, prefix=".enlarging-") as scratch:
        model = bundle.model
        vectors = _varied(model.vectors, rows, known, rng, Path(scratch) / "vectors.npy")
        query_rows = _varied(model.query_rows, rows, known, rng, Path(scratch) / "query_rows.npy")
        return write_bundle(
            bundles_dir,
            model=_model(model, rows, item_ids, vectors, query_rows),
            ranker=bundle.ranker,
            catalogue=_catalogue(bundle.catalogue, rows, item_ids),
            created_ms=bundle.manifest.created_ms + 1000,
            completed_s=bundle.manifest.completed_s,
            statistics=bundle.statistics,
            seed=seed,
            metrics={},
            offsets={},
        )


def _model(
    model: CandidateModel, rows: np.ndarray, item_ids: list[str], vectors: np.ndarray, query_rows: np.ndarray
) -> CandidateModel:
    popularity = model.popularity.arrays()
    counts = (np.asarray(popularity[name][rows]) for name in ("count", "total", "touched"))
    return CandidateModel(
        item_ids,
        model.encoder,
        vectors=vectors,
        bias=np.asarray(model.bias[rows]),
        query_rows=query_rows,
        popularity=Popularity(model.popularity.half_life_events, *counts, clock=model.popularity.clock),
    )


def _varied(table: np.ndarray, rows: np.ndarray, known: int, rng: np.random.Generator, path: Path) -> np.ndarray:
    """[items, D]: rows of the table, with noise on the copies; a file, since two of them may not fit into memory."""
    larger = np.lib.format.open_memmap(path, "w+", np.float32, (len(rows), table.shape[1]))
    spread = NOISE * float(np.std(table))
    for start in range(0, len(rows), BLOCK):
        block = np.array(table[rows[start : start + BLOCK]], np.float32)
        copies = block[max(0, known - start) :]
        copies += spread * rng.standard_normal(copies.shape, dtype=np.float32)
        larger[start : start + BLOCK] = block
    return larger


def _catalogue(catalogue: Catalogue, rows: np.ndarray, item_ids: list[str]) -> Catalogue:
    facts = catalogue_frame(catalogue).select("channel", "topics", "duration_s", "published_ms")
    return catalogue_of(facts[rows].with_columns(item_id=pl.Series(item_ids)))
