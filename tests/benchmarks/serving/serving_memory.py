"""What a serving worker takes in memory, by how many items there are, beside the arrays that it cannot do without.

A process of its own for each size imports what a worker imports and takes over what a worker takes over: the items and
statistics as their topics tell them, and the release by serving's own loader, mirror included; then a row of the live
trainer comes. Neither broker nor Milvus is there: the collection is a stand-in that answers from the mirror and holds
nothing, so that a million items fit into a small machine. What counts is what the process grows by since it had
imported everything: anonymous memory, and pages of mapped files, which the kernel takes back when it must.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.rollout import WHOLE
from infra.simulation.world import NOTICE
from models.catalogue.catalogue import Catalogue
from models.ranking.item_statistics import ItemStatistics
from models.release.bundle import Bundle, newest_version
from serving.state.mirror import Mirror
from serving.state.release import LiveRelease
from streams.bundles.source import BundleSource
from streams.messages import ItemVector, StatisticsRow, encode
from tests.benchmarks.ranking.ranking_ground import NOW_MS, scratch
from tests.benchmarks.report import Report, memory_bytes, say
from tests.benchmarks.serving.large import enlarged
from tests.benchmarks.serving.serving_ground import items_of, note_of, small_release
from tests.benchmarks.serving.serving_service import memory_of

SIZES, QUICK_SIZES = (10_000, 100_000, 1_000_000), (10_000, 50_000)
PARTITIONS, HALF_LIFE_H, FRESH_H = 4, 168.0, 72.0
MIRROR_ITEMS = 10_000_000
MB = 1e6


def measure(report: Report, quick: bool) -> None:
    """Resident memory of a serving worker by the size of the catalogue, beside the raw arrays."""
    sizes = QUICK_SIZES if quick else SIZES
    small = small_release(quick)
    report.title = "serving memory: what a worker grows by with a release, its mirror, catalogue and statistics"
    report.note(f"{NOTICE}; {note_of(small)}")
    report.note(
        "raw arrays: vectors of the mirror, rows of the users' side, columns of the catalogue, statistics of each item"
    )
    report.note("without broker and Milvus: loaded in a process of its own, the collection answers from the mirror")
    grown = {0: 0.0}
    for items in sizes:
        say(f"{items:,} items")
        found = in_a_child(small, items)
        grown[items] = found["all"]
        add_row(report, items, found)
    slopes = [(grown[b] - grown[a]) / (b - a) for a, b in zip((0, *sizes), sizes, strict=False)]
    report.bar(
        f"growth by item up to {sizes[-1]:,} over that up to {sizes[-2]:,}", slopes[-1] / slopes[-2], at_most=1.2
    )


def add_row(report: Report, items: int, found: dict[str, float]) -> None:
    raw = sum(value for name, value in found.items() if name.startswith("raw "))
    row = {"raw arrays, MB": raw / MB, "anonymous, MB": found["anonymous"], "mapped, MB": found["mapped"]}
    row |= {"all of raw": MB * found["all"] / raw, "anonymous of raw": MB * found["anonymous"] / raw}
    report.add(items=items, **row, **{"peak while it loads, MB": found["peak"]})
    parts = ", ".join(
        f"{name.removeprefix('raw ')} {v / MB:,.1f}" for name, v in found.items() if name.startswith("raw ")
    )
    report.note(f"{items:,} items, raw arrays in MB: {parts}")
    report.bar(f"{items:,} items: memory over the raw arrays", MB * found["all"] / raw, at_most=1.5)
    report.bar(f"{items:,} items: anonymous memory over the raw arrays", MB * found["anonymous"] / raw, at_most=1.5)


def in_a_child(small: Bundle, items: int) -> dict[str, float]:
    directory = scratch()
    enlarged(small, directory, items)
    command = [sys.executable, "-m", "tests.benchmarks.serving.serving_memory", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


class FromMirror:
    """A collection that is whole and holds nothing."""

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self.mirror: Mirror | None = None

    def mark_of(self, version: str, timeout_s: float | None = None) -> str:
        return WHOLE

    def dim(self, version: str) -> int:
        return self._dim

    def load(self, version: str) -> None:
        """It is."""

    def search(self, version: str, vectors: NDArray[np.float32], limit: int, **_: Any) -> Any:
        assert self.mirror is not None
        return self.mirror.search(vectors, limit)


def memory_of_release(bundles_dir: Path) -> dict[str, float]:
    """Load what a worker holds; megabytes that were needed, and the raw arrays' bytes."""
    import serving.worker.worker  # noqa: F401  all that a worker imports
    from models.release.bundle import read_manifest
    from serving.state.release import load_release, match_mirror, warm_up, write_row
    from serving.state.views import CatalogueView, StatisticsView

    before, peak_before = memory_of(os.getpid()), memory_bytes("VmHWM")
    version = newest_version(bundles_dir)
    catalogue, statistics = CatalogueView(FRESH_H * 3_600_000), StatisticsView(PARTITIONS, HALF_LIFE_H)
    index = FromMirror(read_manifest(bundles_dir / version).dim)
    live = load_release(BundleSource(bundles_dir), version, index, mirror_items=MIRROR_ITEMS)
    index.mirror = live.mirror
    for item in items_of(live.catalogue):
        catalogue.apply(item.item_id.encode(), encode(item), NOW_MS)
        row = StatisticsRow("item", item.item_id, 0, NOW_MS, 10.0, 5.0, 100.0, 3.0, 0.0, (0, 0))
        statistics.apply(b"", encode(row))
    catalogue.describe_all(live.catalogue)
    match_mirror(live, catalogue)
    warm_up(live)
    assert live.mirror is not None
    first = live.mirror.item_ids[0]
    query_row, vector = live.model.query_row(first), live.mirror.vectors(np.array([0]))[0]
    assert query_row is not None
    write_row(first, ItemVector(version, 1, vector.tobytes(), query_row.tobytes(), 0), live, catalogue)
    after = memory_of(os.getpid())
    grown = {name: after[name] - before[name] for name in after}
    return grown | {"peak": (memory_bytes("VmHWM") - peak_before) / MB} | raw_arrays(live, statistics.statistics)


def raw_arrays(live: LiveRelease, statistics: ItemStatistics) -> dict[str, float]:
    """Bytes of the rows in use."""
    return {
        "raw mirror": 0 if live.mirror is None else 4 * live.mirror.dim * len(live.mirror),
        "raw query rows": live.model.query_rows.nbytes,
        "raw catalogue": catalogue_bytes(live.catalogue),
        "raw statistics": statistics.nbytes,
    }


def catalogue_bytes(catalogue: Catalogue) -> int:
    lists = [*catalogue._ids.values(), catalogue._languages]
    columns = [catalogue._columns, *(part for each in lists for part in (each._rows, each._flat))]
    return sum(array.nbytes for table in columns for array in columns_of(table))


def columns_of(table: Any) -> list[NDArray[Any]]:
    return [table[name] for name in table._arrays]


if __name__ == "__main__":
    print(json.dumps(memory_of_release(Path(sys.argv[1]))))
