"""A release with as many items as wanted: what the towers and the ranker have learnt in the simulated world, and its
items many times over, each a little different. Training a million items would say no more of serving's speed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models.catalogue.catalogue import Catalogue
from models.release.bundle import Bundle, Manifest, write_bundle
from models.retrieval.candidates import CandidateModel
from models.retrieval.popularity import Popularity
from tests.benchmarks.serving.serving_ground import items_of

NOISE = 0.1  # of the vectors' own spread


def enlarged(bundle: Bundle, bundles_dir: Path, items: int, seed: int = 1) -> Manifest:
    """Write the bundle with `items` items; the first ones are its own."""
    rng = np.random.default_rng(seed)
    known = len(bundle.model.item_ids)
    rows = np.r_[np.arange(known), rng.integers(0, known, max(0, items - known))][:items]
    item_ids = bundle.model.item_ids[:items] + [f"copy-{at:07d}" for at in range(known, items)]
    model, popularity = bundle.model, bundle.model.popularity.arrays()
    larger = CandidateModel(
        item_ids,
        model.encoder,
        vectors=_varied(model.vectors, rows, known, rng),
        bias=np.asarray(model.bias[rows]),
        query_rows=_varied(model.query_rows, rows, known, rng),
        popularity=Popularity(
            model.popularity.half_life_events,
            *(np.asarray(popularity[name][rows]) for name in ("count", "total", "touched")),
            clock=model.popularity.clock,
        ),
    )
    return write_bundle(
        bundles_dir,
        model=larger,
        ranker=bundle.ranker,
        catalogue=_catalogue(bundle.catalogue, rows, item_ids),
        created_ms=bundle.manifest.created_ms + 1000,
        completed_s=bundle.manifest.completed_s,
        statistics=bundle.statistics,
        seed=seed,
        metrics={},
        offsets={},
    )


def _varied(table: np.ndarray, rows: np.ndarray, known: int, rng: np.random.Generator) -> np.ndarray:
    """[items, D]: rows of the table, with noise on the copies."""
    larger = np.array(table[rows], np.float32)
    copies = larger[known:]
    copies += NOISE * float(np.std(table)) * rng.standard_normal(copies.shape, dtype=np.float32)
    return larger


def _catalogue(catalogue: Catalogue, rows: np.ndarray, item_ids: list[str]) -> Catalogue:
    larger = Catalogue()
    for item in items_of(catalogue, rows, item_ids):
        facts = {name: getattr(item, name) for name in ("channel", "topics", "duration_s", "published_ms")}
        larger.upsert(item.item_id, **facts)
    return larger
