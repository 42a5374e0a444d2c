"""A small world for the tests of serving: a log, a bundle trained on it, and an index held in memory.

The index in memory is no stand-in for a service in a system test; it answers exactly, so that a unit test can say what
the pipeline must do with an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl

from indexer.errors import IndexMissing, IndexUnavailable
from infra.platform.settings import Model, Ranker, Selection, Serving
from models.logs.stored_log import store_frame
from models.release.bundle import Bundle, Manifest, read_bundle, write_bundle
from models.release.training import train_with_trial
from serving.request.pipeline import Pipeline
from serving.request.ranking import LatencyEstimate
from serving.request.response_draft import Answered, RequestContext
from serving.request.retrieval import Retrieval
from serving.state.release import LiveRelease
from serving.state.trending_view import TrendingView
from serving.state.views import CatalogueView, HistoryView, StatisticsView, Views
from streams.messages import Item, UserHistory, Watch, encode
from tests.harness.system import wait_until

CREATED_MS = 1_700_000_000_000
ITEMS = [f"item-{number}" for number in range(40)]
until = partial(wait_until, what="what the test waits for", timeout_s=10.0, every_s=0.005)


def train_small(bundles_dir: Path, seed: int = 1) -> Manifest:
    """A bundle of 40 items, trained in about a second; each seed gives another version."""
    rng = np.random.default_rng(seed)
    frame = pl.DataFrame(
        {
            "user_id": [f"u{number}" for number in rng.integers(0, 50, 800)],
            "item_id": [ITEMS[number] for number in rng.zipf(1.5, 800) % len(ITEMS)],
            "event_ms": CREATED_MS - 1000 * np.arange(800)[::-1],
            "watch_s": rng.uniform(0, 60, 800),
            "duration_s": np.full(800, 60.0),
        }
    )
    settings = Model(dim=8, hidden=(16,), members=1, linear_dim=0, negatives=64, batch=256, epochs=1)
    with TemporaryDirectory() as scratch:
        return train_with_trial(
            store_frame(frame, Path(scratch), completed_s=18.0),
            None,
            settings=settings,
            ranker=Ranker(hidden=(8,), members=1, epochs=1),
            bundles_dir=bundles_dir,
            created_ms=CREATED_MS + 1000 * seed,
            offsets={},
            measure=False,
        ).manifest


def rank_anew(bundles_dir: Path, base: Manifest, ranker_of: Manifest, seconds: int = 9) -> Manifest:
    """A release with the candidates of `base` and the ranker of another one, made so many seconds after the first."""
    candidates, other = load(bundles_dir, base), load(bundles_dir, ranker_of)
    return write_bundle(
        bundles_dir,
        model=candidates.model,
        ranker=other.ranker,
        catalogue=candidates.catalogue,
        statistics=other.statistics,
        created_ms=CREATED_MS + 1000 * seconds,
        completed_s=base.completed_s,
        seed=1,
        metrics={},
        offsets={},
    )


def history(user_id: str, *item_ids: str, event_ms: int = CREATED_MS) -> UserHistory:
    """A user who completed these items, a minute apart, the last one at `event_ms`."""
    first_ms = event_ms - 60_000 * (len(item_ids) - 1)
    return UserHistory(
        user_id,
        tuple(
            Watch(item_id, first_ms + 60_000 * at, 50.0, 60.0, True, f"{user_id}-{at}", at)
            for at, item_id in enumerate(item_ids)
        ),
    )


def no_views() -> Views:
    """Views that have read nothing yet."""
    catalogue = CatalogueView(fresh_ms=72 * 3_600_000)
    return Views(HistoryView(), catalogue, TrendingView(), StatisticsView(1, half_life_h=24.0))


def views_of_ann() -> Views:
    """One user with a history, and the catalogue."""
    views = no_views()
    views.histories.apply(0, b"ann", encode(history("ann", "item-1", "item-2", "item-3")))
    for item_id in ITEMS:
        views.catalogue.apply(item_id.encode(), encode(Item(item_id, duration_s=60.0)))
    return views


def pipeline_of(views: Views, settings: Serving, latency: LatencyEstimate | None = None, **selection: Any) -> Pipeline:
    """As in a worker; the index and the ranker are not known to have done badly."""
    retrieval, latency = Retrieval(settings, seed=1), latency or LatencyEstimate()
    return Pipeline(views, retrieval, settings, Selection(**selection), "test", latency=latency)


def answer(
    contexts: Sequence[RequestContext], live: LiveRelease | None, pipeline: Pipeline, *, now_ms: int
) -> list[Answered]:
    """Both halves of the pipeline, one after the other."""
    return pipeline.finish(pipeline.begin(contexts, live, now_ms))


class ExactIndex:
    """Collections in memory. `failure` is raised by the next searches while it is set."""

    def __init__(self, *bundles: Bundle) -> None:
        self.collections: dict[str, tuple[list[str], np.ndarray]] = {}
        self.marks: dict[str, str] = {}
        self.failure: Exception | None = None
        self.searched: list[str] = []  # versions, one entry per call
        self.expressions: list[str] = []  # the filters of these calls; they are not applied here
        for bundle in bundles:
            self.fill(bundle)

    def fill(self, bundle: Bundle, mark: str = "whole") -> None:
        version = bundle.manifest.version
        self.collections[version] = (list(bundle.model.item_ids), bundle.model.item_vectors())
        self.marks[version] = mark

    def mark_of(self, version: str, timeout_s: float | None = None) -> str:
        self._check(version)
        return self.marks[version]

    def dim(self, version: str) -> int:
        self._check(version)
        return self.collections[version][1].shape[1]

    def load(self, version: str) -> None:
        self._check(version)

    def search(
        self, version: str, vectors: np.ndarray, limit: int, *, timeout_s: float | None = None, expression: str = ""
    ) -> list[tuple[list[str], np.ndarray]]:
        if self.failure is not None:
            raise self.failure
        self._check(version)
        self.searched.append(version)
        self.expressions.append(expression)
        item_ids, rows = self.collections[version]
        answers = []
        for scores in vectors @ rows.T:
            order = np.argsort(-scores, kind="stable")[:limit]
            answers.append(([item_ids[i] for i in order], scores[order].astype(np.float32)))
        return answers

    def _check(self, version: str) -> None:
        if version not in self.collections:
            raise IndexMissing(f"no collection of {version}")


def unavailable() -> IndexUnavailable:
    return IndexUnavailable("Milvus: search: connection refused")


def load(bundles_dir: Path, manifest: Manifest) -> Bundle:
    return read_bundle(bundles_dir / manifest.version)
