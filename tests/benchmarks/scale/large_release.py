"""Releases of a million items and of ten: how long to write, to check and to take over, and what a server holds.

Each size is written, then taken over in a process of its own as a server does that has just started: records of the
topics `items` and `item-statistics` for every item, the release by serving's own loader, its catalogue from the topic,
the mirror where the product's own limit has room for it, a pass of warming up. Then come two requests and a row of the
live trainer, for which the rows of the users' side are copied from their file: memory is told as it is then. Neither
broker nor Milvus is there: the collection is a stand-in, so what it takes to fill and to search it is not in the
figures; `index lag` has it. Sizes for which there is not enough memory, disk or time are left out, and said to be.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

from infra.platform.memory import available_bytes
from infra.simulation.world import NOTICE
from models.release.bundle import Bundle, write_bundle
from tests.benchmarks.ranking.ranking_ground import scratch
from tests.benchmarks.report import Report, memory_bytes, say
from tests.benchmarks.scale.budget import Budget
from tests.benchmarks.scale.stopwatch import Stopwatch
from tests.benchmarks.serving import large
from tests.benchmarks.serving.serving_ground import note_of, small_release

SIZES, QUICK_SIZES = (1_000_000, 10_000_000), (100_000,)
BUDGET_S, FIRST_S = 3600.0, 150.0  # of all sizes, or SCALE_BUDGET_S; that the first is thought to take
ASKED = 1_000_000  # items of the server that has a minute
MOST_S, MOST_MEMORY = 60.0, 1.3
BYTES_OF_ITEM = 1_500  # in memory, without the mirror
TABLES = 2  # of `dim` numbers each, that are on disk twice while a bundle is written
READY = ("items topic", "statistics topic", "load", "describe", "match mirror", "warm-up")


def measure(report: Report, quick: bool) -> None:
    """Seconds by stage from a bundle to a server that is ready, and its memory beside the raw arrays."""
    small = small_release(quick)
    report.title = "large: a server takes over a release, seconds by stage, one process, one thread"
    report.note(f"{NOTICE}; {note_of(small)}")
    report.note("ready: " + ", ".join(READY) + "; load includes a check of all files, the mirror and its int8 rows")
    report.note("without broker and Milvus: neither network nor index are in these figures; bundles are in page cache")
    budget = Budget(BUDGET_S, FIRST_S)
    for items in QUICK_SIZES if quick else SIZES:
        if lack := what_lacks(items, small.manifest.dim) or budget.lack(items):
            report.note(f"{items:,} items: left out {lack}")
            return
        say(f"{items:,} items")
        began_s = time.monotonic()
        add_row(report, items, taken_over(small, items))
        budget.took(items, time.monotonic() - began_s)


def what_lacks(items: int, dim: int) -> str:
    """Say what the machine has too little of for so many items; nothing where it has enough."""
    needed = {"memory": BYTES_OF_ITEM * items, "disk": 2 * TABLES * 4 * dim * items}
    there = {"memory": available_bytes(), "disk": shutil.disk_usage(scratch()).free}
    return " and ".join(
        f"for want of {name}: {size / 1e9:,.0f} GB are needed and {there[name] / 1e9:,.0f} GB there"
        for name, size in needed.items()
        if size > there[name]
    )


def taken_over(small: Bundle, items: int) -> dict[str, float]:
    directory, watch = scratch(), Stopwatch(time.perf_counter)
    with mock.patch.object(large, "write_bundle", watch.measured(write_bundle, "write")):
        manifest = large.enlarged(small, directory, items)
    size = sum(file.stat().st_size for file in (directory / manifest.version).iterdir())
    command = [sys.executable, "-m", "tests.benchmarks.scale.large_release", str(directory)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    shutil.rmtree(directory)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found | watch.seconds | {"bundle": size / 1e6}


def add_row(report: Report, items: int, found: dict[str, float]) -> None:
    raw = sum(value for name, value in found.items() if name.startswith("raw ")) / 1e6
    ready_s = sum(found[stage] for stage in READY)
    report.add(
        items=items,
        mirror="yes" if found["mirror"] else "no",
        **{"write s": found["write"], "check s": found["check"], "load s": found["load"], "ready s": ready_s},
        **{"first request ms": 1000 * found["first request"], "next ms": 1000 * found["next request"]},
        **{"first row ms": 1000 * found["first row"]},
        **{"bundle MB": found["bundle"], "raw MB": raw, "anonymous MB": found["anonymous"]},
        **{"mapped MB": found["mapped"], "peak MB": found["peak"], "all of raw": found["all"] / raw},
    )
    report.note(f"{items:,} items, s: " + ", ".join(f"{stage} {found[stage]:.2f}" for stage in READY))
    if items >= ASKED:
        report.bar(f"{items:,} items: memory over the raw arrays", found["all"] / raw, at_most=MOST_MEMORY)
    if items == ASKED:
        report.bar(f"{items:,} items: seconds until a server is ready", ready_s, at_most=MOST_S)


def child(directory: Path) -> None:
    import numpy as np

    from models.release.bundle import check_bundle, newest_version
    from models.threads import limit_threads
    from serving.state.release import warm_up
    from serving.state.views import CatalogueView, StatisticsView
    from serving.worker.worker import MIRROR_PARTS
    from tests.benchmarks.serving import serving_pipeline
    from tests.benchmarks.serving.serving_memory import raw_arrays
    from tests.benchmarks.serving.serving_service import memory_of

    limit_threads(1)
    watch, everything = Stopwatch(time.perf_counter), sys.maxsize
    watch.run("check", check_bundle, directory / newest_version(directory))
    for owner, name, stage in (
        (serving_pipeline, "load_release", "load"),
        (serving_pipeline, "match_mirror", "match mirror"),
        (CatalogueView, "apply", "items topic"),
        (CatalogueView, "describe_all", "describe"),
        (StatisticsView, "apply", "statistics topic"),
    ):
        watch.watch(owner, name, stage)
    before, peak_before = memory_of(os.getpid()), memory_bytes("VmHWM")
    room = available_bytes() // MIRROR_PARTS
    server = serving_pipeline.Server(directory, everything, mirror_items=None, mirror_bytes=room)
    watch.run("warm-up", warm_up, server.live)
    rng = np.random.default_rng(1)
    for stage in ("first request", "next request"):
        watch.run(stage, server.serve, server.records(1, rng))
    watch.run("first row", write_own_row, server)
    after = memory_of(os.getpid())
    if server.sent.messages["replies"] != 2:
        raise RuntimeError(f"requests were not answered: {server.sent.messages}")
    grown = {name: after[name] - before[name] for name in after}
    peak = (memory_bytes("VmHWM") - peak_before) / 1e6
    raw = raw_arrays(server.live, server.views.statistics.statistics)
    print(json.dumps(watch.seconds | grown | raw | {"peak": peak, "mirror": float(server.live.mirror is not None)}))


def write_own_row(server: Any) -> None:
    """A row of the trainer that says what is known already."""
    from serving.state.release import write_row
    from streams.messages import ItemVector

    live, item_id = server.live, server.live.model.item_ids[0]
    vector, query_row = live.model.item_vectors(slice(0, 1))[0], live.model.query_row(item_id)
    write_row(
        item_id, ItemVector(live.version, 1, vector.tobytes(), query_row.tobytes(), 0), live, server.views.catalogue
    )


if __name__ == "__main__":
    child(Path(sys.argv[1]))
