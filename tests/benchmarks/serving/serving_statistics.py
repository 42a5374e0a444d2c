"""Statistics of items on a server by the partitions of the stream: bytes of an item, and the CPU time of taking rows
over and of reading them, beside a place for each partition, which is how they were kept before, on the same rows.

An item has a row of each partition one of whose users it was shown to. `Zipf`: impressions by a power law of the items'
places, ten to each on average, dealt to the partitions by chance.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any

import numpy as np

from models.arrays import Doubles, Rows
from models.catalogue.columns import Columns
from models.ranking.item_statistics import ItemStatistics
from models.ranking.ranking_batch import COLUMNS
from tests.benchmarks.report import Report, say

ITEMS, QUICK_ITEMS = 5_000, 1_000
ASKED = 500  # items read together, as the candidates of a request
READINGS = 50
HALF_LIFE_MS = 168 * 3_600_000.0
IMPRESSIONS = 10.0  # of an item, on average

Row = tuple[str, int, int, tuple[float, ...]]  # item, partition, time, sums


class PlaceForEach:
    """A place for each item in each partition."""

    def __init__(self, parts: int) -> None:
        self._parts = parts
        self._row_of: dict[str, int] = {}
        self._rows = Columns(sums=np.zeros((0, parts, COLUMNS)), as_of_ms=np.zeros((0, parts), np.int64))

    def set(self, scope: str, name: str, part: int, as_of_ms: int, sums: Sequence[float]) -> None:
        row = self._row_of.get(name)
        if row is None:
            row = self._row_of[name] = self._rows.append(sums=0.0, as_of_ms=0)
        self._rows["sums"][row, part], self._rows["as_of_ms"][row, part] = sums, as_of_ms

    def at(self, scope: str, names: Sequence[str], now_ms: Rows) -> Doubles:
        at = np.fromiter(map(self._row_of.get, names, repeat(-1)), np.int64, len(now_ms))
        sums, as_of_ms = self._rows["sums"][at], self._rows["as_of_ms"][at]  # [N, P, 4], [N, P]
        decay = np.exp2(-(now_ms[:, None] - as_of_ms) / HALF_LIFE_MS)
        total = np.zeros((len(now_ms), COLUMNS))
        for part in range(self._parts):
            total += sums[:, part] * decay[:, part, None]
        return np.where((at >= 0)[:, None], total, 0.0)

    @property
    def nbytes(self) -> int:
        return self._rows["sums"].nbytes + self._rows["as_of_ms"].nbytes


def measure(report: Report, quick: bool) -> None:
    items = QUICK_ITEMS if quick else ITEMS
    report.title = f"statistics of {items:,} items on a server, by partitions and by those in which an item is known"
    report.note(f"read: {ASKED} items at once; CPU time, both forms in turns in this process")
    rng = np.random.default_rng(0)
    for parts in (1, 4, 64):
        for what, known in {"one": one, "Zipf": by_popularity, "all": everywhere}.items():
            if parts == 1 and what != "all":
                continue
            say(f"{parts} partitions, {what}")
            rows = rows_of(known(items, parts, rng), rng)
            before, after = (
                measured(form, rows) for form in (PlaceForEach(parts), ItemStatistics(HALF_LIFE_MS, parts))
            )
            report.add(
                partitions=parts,
                **{"rows of an item": f"{what}, {len(rows) / items:.1f}"},
                **{"bytes an item, before": before["bytes"] / items, "bytes an item": after["bytes"] / items},
                **{"us a new row, before": before["new"], "us a new row": after["new"]},
                **{"us a row again, before": before["again"], "us a row again": after["again"]},
                **{"ms a reading, before": before["read"], "ms a reading": after["read"]},
            )
            different = float(np.count_nonzero(before["numbers"] != after["numbers"]))
            report.bar(f"{parts} partitions, {what}: numbers that differ", different, at_most=0)


def one(items: int, parts: int, rng: np.random.Generator) -> Any:
    """bool [N, P]: the partitions in which each item is known."""
    return np.arange(parts) == rng.integers(parts, size=(items, 1))


def everywhere(items: int, parts: int, rng: np.random.Generator) -> Any:
    return np.ones((items, parts), np.bool_)


def by_popularity(items: int, parts: int, rng: np.random.Generator) -> Any:
    shares = 1.0 / np.arange(1, items + 1)
    shown = np.maximum(1, rng.poisson(IMPRESSIONS * items * shares / shares.sum()))
    return rng.random((items, parts)) < 1 - (1 - 1 / parts) ** shown[:, None]


def rows_of(known: Any, rng: np.random.Generator) -> list[Row]:
    """A row of each item and partition in which it is known, in no order."""
    places = rng.permutation(np.argwhere(known))
    sums, times = rng.random((len(places), COLUMNS)), rng.integers(1, int(HALF_LIFE_MS), len(places))
    return [
        (f"item-{item}", part, as_of_ms, tuple(own))
        for (item, part), as_of_ms, own in zip(places.tolist(), times.tolist(), sums.tolist(), strict=True)
    ]


def measured(form: Any, rows: Sequence[Row]) -> dict[str, Any]:
    def take_over() -> None:
        for row in rows:
            form.set("item", *row)

    names, now_ms = [f"item-{number}" for number in range(ASKED)], np.full(ASKED, 2 * int(HALF_LIFE_MS))
    new, again = (1e6 * cpu_s(take_over) / len(rows) for _ in range(2))
    read = 1000 * cpu_s(lambda: [form.at("item", names, now_ms) for _ in range(READINGS)]) / READINGS
    numbers = form.at("item", names, now_ms)
    return {"bytes": float(form.nbytes), "new": new, "again": again, "read": read, "numbers": numbers}


def cpu_s(work: Callable[[], object]) -> float:
    began = time.thread_time()
    work()
    return time.thread_time() - began
