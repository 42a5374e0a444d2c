"""The exact mirror's search in its two ways, by items and by queries at once: in int8 with few rows scored, and all
rows in float32.

Vectors and queries are those of towers that were trained in the simulated world, items many times over with noise. Both
ways are asked in turns on the same mirror, without broker, Milvus and ranker. A list is the same when its items, their
order and their scores are; both are scored one by one before they are compared, since the sums of BLAS differ in their
last bit by where a row stands. One list that differs ends the benchmark.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from infra.platform.settings import Settings
from infra.simulation.world import NOTICE
from models.release.bundle import Bundle
from models.threads import limit_threads
from serving.state import mirror as mirror_module
from serving.state.best_rows import best_rows
from serving.state.mirror import LEAST_SCORE, Mirror
from tests.benchmarks.ranking.ranking_ground import NOW_MS
from tests.benchmarks.report import Report, say
from tests.benchmarks.serving.large import NOISE
from tests.benchmarks.serving.serving_ground import note_of, small_release, viewers_of

Floats = NDArray[np.float32]

SIZES, QUICK_SIZES = (10_000, 20_000, 100_000, 1_000_000), (10_000, 50_000)
QUERIES = (1, 2, 32)
CALLS, QUICK_CALLS = 12, 6  # of a way; four beyond 100,000 items
VIEWERS = 64
SPARE = 100  # items beyond the limit that float32 is asked for, so that equal ones are all there
WAYS = {"float32": 10**9, "int8": 0}  # rows from which int8 is used


class Spent(NamedTuple):
    wall_ms: float
    cpu_ms: float


def measure(report: Report, quick: bool) -> None:
    """Milliseconds of a search by both ways, and how many of the lists are the same."""
    serving = Settings.model_construct().serving
    limit_threads(serving.threads)
    small = small_release(True)  # trained in little time: both ways compare the same vectors
    report.title = f"serving scan: {serving.candidates} items of a mirror, p50 and processor time of a call"
    report.note(f"{NOTICE}; {note_of(small)}")
    for items in QUICK_SIZES if quick else SIZES:
        say(f"{items:,} items")
        mirror = mirror_of(small, items)
        if mirror._int8 is None:
            raise RuntimeError("this machine has no int8 product: there is nothing to compare")
        asked = queries_of(small)
        for count in QUERIES:
            add_row(report, mirror, asked, count, serving.candidates, quick)


def add_row(report: Report, mirror: Mirror, asked: Floats, count: int, limit: int, quick: bool) -> None:
    calls = 4 if len(mirror) > 100_000 else QUICK_CALLS if quick else CALLS
    batches = [np.roll(asked, -count * number, axis=0)[:count] for number in range(calls)]
    spent: dict[str, list[Spent]] = {way: [] for way in WAYS}
    same = lists = 0
    for number, batch in enumerate(batches):
        for way in sorted(WAYS, reverse=bool(number % 2)):
            with by(way):
                spent[way].append(timed(mirror, batch, limit))
        found = same_lists(mirror, batch, limit)
        same, lists = same + sum(found), lists + len(found)
    if not lists or same < lists:
        raise RuntimeError(f"{lists - same} of {lists} lists differ")
    row: dict[str, float | int | str] = {"items": len(mirror), "queries": count}
    for way, each in spent.items():
        row |= {f"{way} ms": median(s.wall_ms for s in each), f"{way} CPU ms": median(s.cpu_ms for s in each)}
    row["of float32, CPU"] = float(row["int8 CPU ms"]) / float(row["float32 CPU ms"])
    is_few = count <= mirror_module.FEW_QUERIES and len(mirror) >= mirror_module.MANY_ROWS
    report.add(**row, **{"served by": "int8" if is_few else "float32", "same lists": same / lists, "lists": lists})


@contextmanager
def by(way: str) -> Iterator[None]:
    known = mirror_module.MANY_ROWS, mirror_module.FEW_QUERIES
    mirror_module.MANY_ROWS, mirror_module.FEW_QUERIES = WAYS[way], 10**9
    try:
        yield
    finally:
        mirror_module.MANY_ROWS, mirror_module.FEW_QUERIES = known


def timed(mirror: Mirror, batch: Floats, limit: int) -> Spent:
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    found = mirror.search(batch, limit)
    spent = Spent(1000 * (time.perf_counter() - began_s), 1000 * (time.process_time() - began_cpu_s))
    if any(len(item_ids) < limit for item_ids, _ in found):
        raise RuntimeError("a list is short: nothing was measured")
    return spent


def same_lists(mirror: Mirror, batch: Floats, limit: int) -> list[bool]:
    """Of each query, whether int8 finds what float32 does."""
    with by("float32"):
        exact = mirror.search(batch, limit + SPARE)
    with by("int8"):
        found = mirror.search(batch, limit)
    return [
        is_same(mirror, query, ours, theirs, limit) for query, ours, theirs in zip(batch, found, exact, strict=True)
    ]


def is_same(
    mirror: Mirror, query: Floats, ours: tuple[list[str], Floats], theirs: tuple[list[str], Floats], limit: int
) -> bool:
    rows = np.sort(mirror.rows(theirs[0]))
    best, scores = best_rows(mirror._scores(query, rows), limit, LEAST_SCORE)
    return ours[0] == [mirror.item_ids[row] for row in rows[best].tolist()] and ours[1].tolist() == scores.tolist()


def mirror_of(small: Bundle, items: int) -> Mirror:
    """A mirror of so many items: those of the bundle, and copies of them with noise."""
    rng = np.random.default_rng(1)
    known = small.model.item_vectors()
    vectors = known[np.r_[np.arange(len(known)), rng.integers(0, len(known), max(0, items - len(known)))][:items]]
    vectors[len(known) :, :-1] += NOISE * float(np.std(known[:, :-1])) * noise(rng, items - len(known), known.shape[1])
    return Mirror([f"i{at}" for at in range(items)], vectors)


def noise(rng: np.random.Generator, rows: int, dim: int) -> Floats:
    return rng.standard_normal((max(0, rows), dim - 1), dtype=np.float32)


def queries_of(small: Bundle) -> Floats:
    return small.model.user_vectors(viewers_of(small.model.item_ids, VIEWERS, NOW_MS), NOW_MS)
