"""Small viewers, logs and settings for the tests of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl

from infra.platform.settings import Model, Ranker
from models.logs.stored_log import StoredLog, store_frame
from models.logs.training_set import TrainingSet, prepare
from models.ranking.features import ids_of, numbers_of
from models.ranking.impression_log import Delays, ImpressionLog
from models.ranking.ranking_batch import Codes
from models.ranking.ranking_examples import SCOPES, WIDTHS, RankingExamples

SETTINGS = Model(
    dim=8,
    hidden=(16,),
    members=1,
    linear_dim=0,
    tied=False,
    skips=0,
    dropout=0.0,
    history_dropout=0.0,
    negatives=64,
    batch=128,
    epochs=12,
    half_life_events=500,
)
RANKER = Ranker(hidden=(16,), members=1, epochs=6, rate=3e-3, dropout=0.0, completion=False)
START_MS = 1_700_000_000_000
CHANNELS = 4
NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Watch:
    item_id: str
    event_ms: int = START_MS
    watch_s: float = 30.0
    duration_s: float | None = 60.0
    completed: bool = True


@dataclass(frozen=True)
class ShownList:
    at_ms: int
    item_ids: Sequence[str]


@dataclass(frozen=True)
class Viewer:
    watches: Sequence[Watch] = ()
    searches: tuple[object, ...] = ()
    context: object = None
    impressions: Sequence[ShownList] = ()


@dataclass(frozen=True)
class Example(Viewer):
    item_id: str = ""
    event_ms: int = START_MS
    watch_s: float = 30.0
    duration_s: float | None = field(default=60.0)
    weight: float = 1.0


def watched(*item_ids: str) -> Viewer:
    """A viewer who completed these, oldest first, a minute apart."""
    return Viewer([Watch(item_id, START_MS + 60_000 * n) for n, item_id in enumerate(item_ids)])


def example(item_id: str, *before: str) -> Example:
    return Example(watched(*before).watches, item_id=item_id)


def small_log(rows: int = 3000, users: int = 80, items: int = 60, seed: int = 3, step_ms: int = 1000) -> pl.DataFrame:
    """Each user likes one channel: its items are watched for 40 s, others mostly skipped after 3 s."""
    rng = np.random.default_rng(seed)
    user = rng.integers(0, users, rows)
    item = (items * rng.random(rows) ** 1.5).astype(np.int64)
    liked = item % CHANNELS == user % CHANNELS
    watch_s = np.where(liked | (rng.random(rows) < 0.1), 40.0, 3.0) * rng.uniform(0.8, 1.2, rows)
    return pl.DataFrame(
        {
            "user_id": [f"u{n}" for n in user],
            "item_id": [f"i{n}" for n in item],
            "event_ms": START_MS + step_ms * np.arange(rows),
            "watch_s": watch_s,
            "duration_s": 60.0 + item,
        }
    )


def taste_log(rows: int, users: int, items: int, seed: int = 3, first_ms: int = START_MS) -> pl.DataFrame:
    """Each user mostly watches the videos of one channel, to their end, and skips those of another."""
    rng = np.random.default_rng(seed)
    user = rng.integers(0, users, rows)
    liked = rng.random(rows) < 0.8
    place = (items // CHANNELS * rng.random(rows) ** 1.5).astype(np.int64)
    item = CHANNELS * place + np.where(liked, user, user + 1) % CHANNELS
    return pl.DataFrame(
        {
            "user_id": [f"u{n}" for n in user],
            "item_id": [f"i{n}" for n in item],
            "event_ms": first_ms + 1000 * np.arange(rows),
            "watch_s": np.where(liked, 40.0, 3.0) * rng.uniform(0.8, 1.2, rows),
            "duration_s": np.full(rows, 60.0),
        }
    )


def small_items(items: int = 60) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "item_id": [f"i{n}" for n in range(items)],
            "channel": [f"c{n % CHANNELS}" for n in range(items)],
            "topics": [[f"t{n % 3}", f"t{n % 5 + 3}"] for n in range(items)],
            "duration_s": [60.0 + n for n in range(items)],
            "published_ms": [START_MS - 3_600_000 * (items - n) for n in range(items)],
        }
    )


_SCRATCH = TemporaryDirectory(prefix="nextwatch-tests-")


def stored(frame: pl.DataFrame | None = None) -> StoredLog:
    """A log as training takes it; its files go with the test run."""
    directory = Path(mkdtemp(dir=_SCRATCH.name))
    return store_frame(small_log() if frame is None else frame, directory, completed_s=18.0)


def small_source(
    frame: pl.DataFrame | None = None, items: pl.DataFrame | None = None, *, skips: int = 0
) -> TrainingSet:
    return prepare(stored(frame), small_items() if items is None else items, skips=skips)


def small_exposures(
    frame: pl.DataFrame, items: pl.DataFrame | None = None, delays: Delays = Delays(), completed_s: float = 18.0
) -> ImpressionLog:
    """A log as the ranker learns from it, over the small catalogue or over `items`."""
    directory = Path(mkdtemp(dir=_SCRATCH.name))
    log = store_frame(frame, directory, completed_s=completed_s)
    return ImpressionLog(log, prepare(log, small_items() if items is None else items), directory / "exposures", delays)


def scratch() -> Path:
    """A directory that goes with the test run."""
    return Path(mkdtemp(dir=_SCRATCH.name))


def made_examples(
    target_s: Sequence[float] | np.ndarray,
    completed: Sequence[bool] | np.ndarray,
    *,
    ids: Mapping[str, Sequence[Sequence[str]]] = NOTHING,
    numbers: Mapping[str, Sequence[float] | np.ndarray] = NOTHING,
    position: Sequence[int] | np.ndarray | None = None,
    duration_s: float = np.nan,
) -> RankingExamples:
    """Examples with these ids and numbers by feature and nothing else; each is a request of its own."""
    size = len(target_s)
    vocabularies: dict[str, list[str]] = {}
    of_scope = {}
    named = {}
    for scope in SCOPES:
        columns = [numbers.get(f.name, np.full(size, np.nan)) for f in numbers_of(scope)]
        of_scope[scope] = np.stack(columns, axis=1).astype(np.float32)
        for feature in ids_of(scope):
            names = vocabularies.setdefault(str(feature.space), [""])
            codes = np.zeros((size, WIDTHS.get(feature.name, 1)), np.int32)
            for row, known in enumerate(ids.get(feature.name, ())):
                names += [name for name in known if name not in names]
                codes[row, : len(known)] = [names.index(name) for name in known]
            named[feature.name] = Codes(codes, names)
    return RankingExamples(
        of_scope,
        named,
        request=np.arange(size),
        target_s=np.asarray(target_s, np.float32),
        duration_s=np.full(size, duration_s, np.float32),
        completed=np.asarray(completed, np.bool_),
        position=np.zeros(size, np.int32) if position is None else np.asarray(position, np.int32),
        user=np.arange(size) % 10,
        at_ms=START_MS + 1000 * np.arange(size),
    )
