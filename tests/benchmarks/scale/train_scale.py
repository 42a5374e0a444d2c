"""What training costs for each example, by the rows of the log: the same for twenty million as for a million?

A process of its own for each size reads a generated log as `nextwatch train` does, trains towers, linear part and
ranker for one epoch, and writes the bundle. A stage's seconds are CPU time, one thread; what it costs is told by what
it goes through: rows of the log, completed watches (first ones of their item by their user), or those that the towers
learn, of which an epoch has a bounded number. The ranker's widths are those of the default for a million rows at every
size, so that a row is the same work.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.benchmarks.report import Report, say
from tests.benchmarks.scale.budget import Budget
from tests.benchmarks.scale.generated_log import ITEMS, ROWS_OF_USER, items_frame, write_log
from tests.benchmarks.scale.stopwatch import Stopwatch, most_memory

SIZES, QUICK_SIZES = (100_000, 300_000, 1_000_000, 10_000_000, 20_000_000), (20_000, 100_000)
REFERENCE = 1_000_000  # rows; what the largest size is compared with
BUDGET_S = 6 * 3600.0  # of all sizes; SCALE_BUDGET_S sets another one
FIRST_S = 120.0  # that the first size is thought to take
BY = {  # stage: what it goes through
    "reading": "rows",
    "data set": "rows",
    "choice": "examples",
    "linear part": "examples",
    "towers": "learnt",
    "features": "rows",
    "ranker": "rows",
    "writing": "rows",
    "rest": "rows",
}


def measure(report: Report, quick: bool) -> None:
    """CPU of a training by stage and example, its memory and its bundle, by the rows of the log."""
    report.title = "train-scale: one epoch of everything by the rows of the log, CPU seconds, one thread"
    report.note(f"generated log: {ITEMS:,} items by a Zipf law, {ROWS_OF_USER} watches a user in 30 days")
    report.note("us each: of what a stage goes through; an example: all stages together; wall: with making the log up")
    costs = dict(measured_sizes(report, QUICK_SIZES if quick else SIZES))
    if REFERENCE in costs and max(costs) > REFERENCE:
        ratio = costs[max(costs)] / costs[REFERENCE]
        report.bar(f"an example at {max(costs):,} rows over one at {REFERENCE:,}", ratio, at_most=1.2)
    elif len(costs) > 1:
        first, last = min(costs), max(costs)
        report.note(f"an example at {last:,} rows over one at {first:,}: {costs[last] / costs[first]:.2f} (no bar)")


def measured_sizes(report: Report, sizes: tuple[int, ...]) -> Any:
    """Rows and microseconds an example of each size for which there is time."""
    budget = Budget(BUDGET_S, FIRST_S)
    for rows in sizes:
        if lack := budget.lack(rows):
            report.note(f"{rows:,} rows: left out {lack}")
            return
        say(f"{rows:,} rows")
        found = in_a_child(rows)
        budget.took(rows, found["wall"])
        yield rows, add_row(report, rows, found)


def in_a_child(rows: int) -> dict[str, float]:
    began_s = time.monotonic()
    with TemporaryDirectory(prefix="nextwatch-") as directory:
        write_log(Path(directory) / "log.parquet", rows)
        items_frame().write_parquet(Path(directory) / "items.parquet")
        command = [sys.executable, "-m", "tests.benchmarks.scale.train_scale", directory]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    if not (found["examples"] and found["learnt"] and found["ranked"]):
        raise RuntimeError(f"{rows:,} rows: no example was made: {found}")
    return found | {"wall": time.monotonic() - began_s}


def add_row(report: Report, rows: int, found: dict[str, float]) -> float:
    """A line for each stage and one for all; microseconds an example."""
    cost_us = {stage: 1e6 * found[stage] / found[unit] for stage, unit in BY.items()}
    in_all = sum(cost_us.values())
    for stage, unit in BY.items():
        told = {"of": unit, "number": int(found[unit]), "CPU s": found[stage], "us each": cost_us[stage]}
        report.add(rows=rows, stage=stage, **told)
    size = {"peak anonymous, MB": found["anonymous"], "peak, MB": found["all"], "bundle, MB": found["bundle_mb"]}
    cpu_s = sum(found[stage] for stage in BY)
    report.add(rows=rows, stage="all", **{"CPU s": cpu_s, "us each": in_all, "wall s": found["wall"]}, **size)
    return in_all


def child(directory: Path) -> None:
    from infra.operate.ranker_stage import delays_of
    from infra.platform.settings import Settings
    from models.logs.log import read_items
    from models.logs.stored_log import store_log
    from models.ranking import ranker_release
    from models.ranking.ranker_training import default_hidden
    from models.release import training
    from models.retrieval import candidate_learning
    from models.retrieval.candidate_training import EPOCH_EXAMPLES
    from models.threads import limit_threads

    settings = Settings.model_construct()
    limit_threads(settings.model.threads)
    watch = Stopwatch(time.process_time)
    watch.watch(training, "prepare", "data set")
    watch.watch(training, "write_bundle", "writing")
    watch.watch(candidate_learning, "TrainingData", "choice", lambda data: len(data.rows))
    watch.watch(candidate_learning, "item_factors", "linear part")
    watch.watch(candidate_learning.Training, "run_epoch", "towers")
    for method in ("__init__", "statistics", "examples"):
        told = len if method == "examples" else None
        watch.watch(ranker_release.ImpressionLog, method, "features", told)
    watch.watch(ranker_release, "train_ranker", "ranker")

    def train() -> None:
        completed_s = settings.history.completed_s
        log = watch.run("reading", store_log, directory / "log.parquet", directory / "stored", completed_s=completed_s)
        watch.told["rows"] = len(log)
        training.train_with_trial(
            log,
            read_items(directory / "items.parquet"),
            settings=settings.model.model_copy(update={"epochs": 1}),
            ranker=settings.ranker.model_copy(update={"epochs": 1, "hidden": default_hidden(REFERENCE)}),
            bundles_dir=directory / "bundles",
            created_ms=int(log.event_ms[-1]),
            offsets={},
            delays=delays_of(settings),
            measure=False,
        )

    began_s = time.process_time()
    memory = most_memory(train)
    rest_s = time.process_time() - began_s - sum(watch.seconds.values())
    bundle = sum(file.stat().st_size for file in (directory / "bundles").glob("*/*"))
    counts = {"rows": watch.told["rows"], "examples": watch.told["choice"], "ranked": watch.told["features"]}
    learnt = min(counts["examples"], EPOCH_EXAMPLES)
    told = counts | {"learnt": learnt, "rest": rest_s, "bundle_mb": bundle / 1e6}
    print(json.dumps(watch.seconds | told | memory))


if __name__ == "__main__":
    child(Path(sys.argv[1]))
