"""What `nextwatch load` takes beyond training, beside the same rows sent as watches (`nextwatch replay`).

From the stored log until the history worker has committed all of it, with catalogue and trending lists, on a broker and
one worker of their own. The replay, of a part of the log, is what a log was told to the system with before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from infra.local.broker import Broker, start_broker
from infra.operate.loading import load_log
from infra.operate.replay import replay
from infra.platform.guarded_process import GuardedProcess
from infra.platform.settings import Settings
from models.logs.stored_log import store_log
from streams.topics import TRAINING_EXAMPLES, WATCH_EVENTS
from tests.benchmarks.report import Report, say
from tests.harness.system import (
    Cluster,
    cli,
    cpu_s,
    own_settings,
    process,
    stopping,
    temporary_settings,
    wait_for_health,
    wait_until,
)

ROWS, QUICK_ROWS = 1_000_000, 50_000
REPLAYED, QUICK_REPLAYED = 100_000, 10_000
A_USER, ITEMS = 50, 10_000  # rows of a user on average; items
BAR_S = 180.0
PATIENCE_S = 420.0


class Spent(NamedTuple):
    """Seconds by the wall, and of CPU: here, of the worker, of the broker."""

    wall_s: float
    here_s: float
    worker_s: float
    broker_s: float


def measure(report: Report, quick: bool) -> None:
    """Seconds and CPU for the rows of a log, loaded and replayed."""
    rows = QUICK_ROWS if quick else ROWS
    report.title = f"load: a log of {rows:,} rows told to the system, beyond training; one history worker"
    with temporary_settings() as own, stopping(start_broker(own)) as broker:
        log, items = write_log(own.data_dir, rows)
        part = pl.read_parquet(log).head(QUICK_REPLAYED if quick else REPLAYED)
        say("loading")
        loaded = _loaded(own, broker, log, items)
        say("replaying")
        replayed = _replayed(own, broker, part)
    for what, count, spent in (("load", rows, loaded), ("replay", part.height, replayed)):
        report.add(**row_of(what, count, spent))
    report.note(f"{rows // A_USER:,} users, {ITEMS:,} items; broker: {broker.kind}; until the worker has committed all")
    ratio = (replayed.worker_s / part.height) / (loaded.worker_s / rows)
    report.note(f"the worker's CPU for a row: {ratio:.1f} times as much when it is replayed")
    report.bar("load, seconds", loaded.wall_s, at_most=BAR_S)


def row_of(what: str, rows: int, spent: Spent) -> dict[str, Any]:
    return {
        "what": what,
        "rows": rows,
        "wall s": spent.wall_s,
        "rows/s": rows / spent.wall_s,
        "CPU us a row, here": 1e6 * spent.here_s / rows,
        "worker": 1e6 * spent.worker_s / rows,
        "broker": 1e6 * spent.broker_s / rows,
    }


def write_log(directory: Path, rows: int) -> tuple[Path, Path]:
    """A log of 2013 and its catalogue: some users and items are in it much more often than others."""
    rng = np.random.default_rng(7)
    users = (rows // A_USER * rng.random(rows) ** 1.5).astype(np.int64)
    items = (ITEMS * rng.random(rows) ** 2).astype(np.int64)
    frame = pl.DataFrame(
        {
            "user_id": pl.Series(users).cast(pl.String),
            "item_id": pl.Series(items).cast(pl.String),
            "event_ms": 1_370_000_000_000 + np.cumsum(rng.integers(0, 60_000, rows)),
            "watch_s": rng.exponential(40.0, rows).round(1),
            "duration_s": 60.0,
        }
    )
    frame.write_parquet(directory / "log.parquet")
    titles = pl.DataFrame({"item_id": [str(number) for number in range(ITEMS)], "title": "a film"})
    titles.write_parquet(directory / "items.parquet")
    return directory / "log.parquet", directory / "items.parquet"


def _loaded(own: Settings, broker: Broker, log: Path, items: Path) -> Spent:
    with _worker(own, broker) as (settings, worker), Cluster(settings.kafka) as cluster:
        directory = own.data_dir / "stored"
        stored = store_log(log, directory, completed_s=settings.history.completed_s)
        found = []

        def load() -> None:
            found.append(load_log(settings, stored, items=items, wait_s=PATIENCE_S))

        spent = _spent(load, worker, broker)
        assert found[0].taken and found[0].rows == len(stored) and found[0].users, "all is told"
        assert not cluster.total(TRAINING_EXAMPLES), "nothing is to be learnt"
    return spent


def _replayed(own: Settings, broker: Broker, part: pl.DataFrame) -> Spent:
    with _worker(own, broker) as (settings, worker), Cluster(settings.kafka) as cluster:

        def send() -> None:
            replay(part, settings)
            wait_until(lambda: cluster.behind("history", WATCH_EVENTS) == 0, "the replay", PATIENCE_S)

        return _spent(send, worker, broker)


@contextmanager
def _worker(own: Settings, broker: Broker) -> Iterator[tuple[Settings, GuardedProcess]]:
    """A history worker on topics of its own."""
    settings = own_settings(broker.bootstrap, own.data_dir, kafka={})
    with process(settings, "history", cli("worker", "history")) as worker:
        wait_for_health(settings, worker)
        yield settings, worker


def _spent(work: Callable[[], object], worker: GuardedProcess, broker: Broker) -> Spent:
    pids = worker.pid, broker.process.pid
    before, here_s, began_s = [cpu_s(pid) for pid in pids], time.process_time(), time.monotonic()
    work()
    wall_s, own_s = time.monotonic() - began_s, time.process_time() - here_s
    worker_s, broker_s = (cpu_s(pid) - was for pid, was in zip(pids, before, strict=True))
    return Spent(wall_s, own_s, worker_s, broker_s)
