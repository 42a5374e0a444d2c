"""Whether a log is streamed to the ranker or held: how much memory features and training take, by the log's length.

A child process for each length opens a stored log (simulated, repeated over time), builds the features and trains.
Counted is what its memory grew by since it had imported everything: anonymous memory is what it needs, pages of mapped
files (which the kernel takes back when it must) are told beside it, as is what the features take on disk.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from infra.platform.settings import Settings
from infra.simulation.world import NOTICE, World
from models.logs.stored_log import store_frame
from tests.benchmarks.ranking.ranking_ground import DAY_MS, LENGTH, NOW_MS
from tests.benchmarks.report import Report, memory_bytes, say
from tests.harness.beside import beside

ROWS, QUICK_ROWS = (200_000, 2_000_000), (20_000, 100_000)
DAYS = 5  # of one repetition


def measure(report: Report, quick: bool) -> None:
    """Growth of memory while features are built and a small ranker is trained, by the length of the log."""
    sizes = QUICK_ROWS if quick else ROWS
    report.title = "ranking memory: features and training of one small network, one epoch, by exposures in the log"
    report.note(f"{NOTICE}; the longer log is the shorter one repeated, with later times")
    world = World(seed=1, start_ms=NOW_MS)
    shown = world.past_exposures(NOW_MS - DAYS * DAY_MS, NOW_MS, sizes[0] // LENGTH, LENGTH)
    log, items = shown.drop("request_id", "position", "true_s"), world.items_frame(NOW_MS)
    grown = {}
    for size in sizes:
        say(f"{size:,} rows")
        with TemporaryDirectory(prefix="nextwatch-") as directory:
            found = _in_a_child(log, items, -(-size // len(log)), Path(directory))
        grown[size] = found["needed_mb"]
        report.add(
            exposures=found["rows"],
            **{
                "memory, MB": found["needed_mb"],
                "with pages of files, MB": found["all_mb"],
                "features on disk, MB": found["disk_mb"],
                "features, rows/s": found["rows"] / found["features_s"],
                "training, rows/s": found["rows"] / found["training_s"],
            },
        )
    report.bar(f"memory at {sizes[1]:,} rows over memory at {sizes[0]:,}", grown[sizes[1]] / grown[sizes[0]], at_most=2)


def _in_a_child(log: pl.DataFrame, items: pl.DataFrame, times: int, directory: Path) -> dict[str, float]:
    completed_s = Settings.model_construct().history.completed_s
    later = [log.with_columns(event_ms=pl.col("event_ms") + number * DAYS * DAY_MS) for number in range(times)]
    store_frame(pl.concat(later), directory / "log", completed_s=completed_s)
    items.write_parquet(directory / "items.parquet")
    command = [sys.executable, "-m", "tests.benchmarks.ranking.ranking_memory", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def child(directory: Path) -> None:
    import time

    import torch

    from models.logs.log import read_items
    from models.logs.stored_log import open_log
    from models.logs.training_set import prepare
    from models.ranking.impression_log import Delays, ImpressionLog
    from models.ranking.ranker_training import train_ranker

    torch.set_num_threads(1)
    settings = Settings.model_construct().ranker.model_copy(update={"hidden": (64, 32), "members": 1, "epochs": 1})
    before = most = _memory()

    def look(stop: threading.Event) -> None:
        nonlocal most
        while not stop.wait(0.02):
            most = tuple(map(max, most, _memory()))

    with beside(look, "memory"):
        log = open_log(directory / "log")
        source = prepare(log, read_items(directory / "items.parquet"))
        began_s = time.perf_counter()
        exposures = ImpressionLog(log, source, directory / "exposures", Delays())
        examples = exposures.examples("all")
        features_s = time.perf_counter() - began_s
        disk = sum(file.stat().st_size for file in (directory / "exposures" / "all").iterdir())
        train_ranker(examples, directory / "fit", settings=settings)
        training_s = time.perf_counter() - began_s - features_s
    told = {
        "rows": len(examples),
        "needed_mb": (most[0] - before[0]) / 1e6,
        "all_mb": (most[1] - before[1]) / 1e6,
        "disk_mb": disk / 1e6,
        "features_s": features_s,
        "training_s": training_s,
    }
    print(json.dumps(told))


def _memory() -> tuple[int, ...]:
    """Bytes of this process: anonymous memory, and all of it."""
    return memory_bytes("RssAnon"), memory_bytes("VmRSS")


if __name__ == "__main__":
    child(Path(sys.argv[1]))
