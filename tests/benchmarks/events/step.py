"""The cost of a training step by the size of the catalogue and of the batch, at the width that is served: a tower of 64
numbers that reads 20 skips and the linear part; negatives and the largest batch as `trainer` has them, one thread.

Beside each, in the same run, a hand-tuned loop over raw tensors that does only the gathers and the three matrix
products of the step (logits, their gradient to the users, their gradient to the items): no softmax, no update. And the
step of a tower that reads no skips, in turns with the one that does.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
import torch
import torch.nn.functional as F

from infra.platform.settings import Trainer
from models.catalogue.catalogue import Catalogue
from models.catalogue.context import ContextVocabulary
from models.logs.array_file import mapped
from models.logs.examples import Examples, queries_of
from models.retrieval.candidates import CandidateModel, UserEncoder
from models.retrieval.incremental import IncrementalTrainer
from models.retrieval.popularity import Popularity
from models.retrieval.table import Table, write_table
from models.retrieval.tower import TowerShape, UserTowers
from tests.benchmarks.report import Report, memory_bytes, say

DEFAULT = Trainer()
BATCH, NEGATIVES, HISTORY = DEFAULT.batch, DEFAULT.negatives, 50
SHAPE = TowerShape(64, linear=64, skips=20)
DIM = SHAPE.members * SHAPE.dim + SHAPE.linear
BATCHES = (12, 60, BATCH)  # the first two: a tenth of a second and half a second of 120 examples/s
SIZES = (10_000, 100_000, 1_000_000)
QUICK_SIZES = (10_000, 100_000)
STEPS = 60
TURNS = 5


def measure(report: Report, quick: bool) -> None:
    """Median CPU time of the bare step at 10 thousand to a million items, against a hand-tuned loop; and its memory."""
    torch.set_num_threads(1)
    read = f"histories of {HISTORY} and {SHAPE.skips} skips"
    report.title = f"step: B {BATCH}, S {NEGATIVES}, D {DIM}, {read}, median CPU of {STEPS}"
    sizes = QUICK_SIZES if quick else SIZES
    found: dict[tuple[str, int], float] = {}
    for size in sizes:
        say(f"{size:,} items")
        with TemporaryDirectory(prefix="nextwatch-") as directory:
            found |= _at(size, report, Path(directory))
    largest, base = sizes[-1], 100_000
    for examples in BATCHES:
        _by_batch(examples, sizes[0], report)
    report.bar("examples/s of a step with skips over one without", _without_skips(sizes[0], report), at_least=0.9)
    growth = found["step", largest] / found["step", base]
    report.bar(f"step at {largest:,} over step at {base:,}", growth, at_most=1.35)
    report.bar(f"of the hand-tuned loop at {base:,}", found["hand", base] / found["step", base], at_least=0.7)


def _at(size: int, report: Report, directory: Path) -> dict[tuple[str, int], float]:
    rng = np.random.default_rng(1)
    batches = [_examples(size, rng) for _ in range(8)]
    found = {("hand", size): _median(_hand_loop(size, rng), batches)}
    gc.collect()
    before = memory_bytes("RssAnon")  # ids are counted, facts of a catalogue are not
    trainer = _trainer(size, rng, directory)
    found["step", size] = _median(trainer.learn, batches)
    tables = size * (2 * (DIM + 1) * 4 + 8 + 24)  # two tables with accumulators, bias, what was told, popularity
    memory = (memory_bytes("RssAnon") - before) / tables
    del trainer
    milliseconds = found["step", size]
    report.add(
        items=f"{size:,}",
        batch=BATCH,
        step_ms=milliseconds,
        examples_per_s=1000 * BATCH / milliseconds,
        hand_ms=found["hand", size],
        of_hand=found["hand", size] / milliseconds,
        memory_over_tables=memory,
    )
    if size >= 1_000_000:
        report.bar(f"memory (item ids included) over what is learnt, at {size:,} items", memory, at_most=1.3)
    return found


def _by_batch(examples: int, size: int, report: Report) -> None:
    """The step with fewer examples: what it costs each of them."""
    rng = np.random.default_rng(1)
    with TemporaryDirectory(prefix="nextwatch-") as directory:
        trainer = _trainer(size, rng, Path(directory))
        batches = [_examples(size, rng).take(slice(examples)) for _ in range(8)]
        milliseconds = _median(trainer.learn, batches)
    report.add(items=f"{size:,}", batch=examples, step_ms=milliseconds, examples_per_s=1000 * examples / milliseconds)


def _without_skips(size: int, report: Report) -> float:
    """The step of a tower that reads none, in turns with the one that is served; its CPU over the other's."""
    rng = np.random.default_rng(1)
    read = [_examples(size, rng) for _ in range(8)]
    plain = [Examples(replace(each.queries, skips=each.queries.skips[:, :0]), each.targets) for each in read]
    times_ms: dict[int, list[float]] = {}
    with TemporaryDirectory(prefix="nextwatch-") as directory:
        shapes = (SHAPE, msgspec.structs.replace(SHAPE, skips=0))
        trainers = {shape.skips: _trainer(size, rng, Path(directory), shape) for shape in shapes}
        for _ in range(TURNS):
            for skips, trainer in trainers.items():
                times_ms.setdefault(skips, []).append(_median(trainer.learn, read if skips else plain))
    with_ms, without_ms = median(times_ms[SHAPE.skips]), median(times_ms[0])
    for name, milliseconds in ((f"{BATCH}, in turns", with_ms), (f"{BATCH}, without skips", without_ms)):
        rate = 1000 * BATCH / milliseconds
        report.add(items=f"{size:,}", batch=name, step_ms=milliseconds, examples_per_s=rate)
    return without_ms / with_ms


def _trainer(size: int, rng: np.random.Generator, directory: Path, shape: TowerShape = SHAPE) -> IncrementalTrainer:
    """Over `size` items that have no catalogue entries; rows are small noise."""
    torch.manual_seed(1)
    reader = UserEncoder(UserTowers(shape), np.empty((0, 0), np.float32), ContextVocabulary())
    write_table(directory / "rows.npy", _noise(size, rng))
    rows = mapped(directory / "rows.npy", "c")  # as read_bundle maps it
    model = CandidateModel(
        [f"{item:08d}" for item in range(size)],
        reader,
        vectors=rows,
        bias=np.zeros(size, np.float32),
        query_rows=rows,
        popularity=Popularity.empty(size, 8000),
    )
    return IncrementalTrainer(model, Catalogue(), DEFAULT, seed=1)


def _noise(size: int, rng: np.random.Generator) -> np.ndarray:
    table = Table(DIM, room=size)
    for start in range(0, size, 100_000):
        table.extend(0.05 * rng.standard_normal((min(100_000, size - start), DIM), dtype=np.float32))
    return table.values.numpy()


def _examples(size: int, rng: np.random.Generator) -> Examples:
    queries = queries_of(rng.integers(0, size, (BATCH, HISTORY)))
    queries = replace(queries, skips=rng.integers(0, size, (BATCH, SHAPE.skips)))
    return Examples(queries, rng.integers(0, size, BATCH))


def _hand_loop(size: int, rng: np.random.Generator) -> Callable[[Examples], None]:
    queries, outputs = torch.from_numpy(_noise(size, rng)), torch.from_numpy(_noise(size, rng))
    starts, skip_starts = (torch.arange(0, BATCH * width, width) for width in (HISTORY, SHAPE.skips))
    logits = torch.empty(BATCH, NEGATIVES)
    d_users, d_others = torch.empty(BATCH, DIM), torch.empty(NEGATIVES, DIM)

    def step(examples: Examples) -> None:
        histories = torch.from_numpy(examples.queries.histories).reshape(-1)
        users = F.embedding_bag(histories, queries, starts, mode="mean")
        F.embedding_bag(torch.from_numpy(examples.queries.skips).reshape(-1), queries, skip_starts, mode="mean")
        outputs.index_select(0, torch.from_numpy(examples.targets))
        others = outputs.index_select(0, torch.randint(size, (NEGATIVES,)))
        torch.mm(users, others.T, out=logits)
        torch.mm(logits, others, out=d_users)
        torch.mm(logits.T, users, out=d_others)

    return step


def _median(step: Callable[[Examples], object], batches: list[Examples]) -> float:
    """Milliseconds of this thread's CPU: a machine that others use says less by the clock."""
    times = []
    for number in range(STEPS + 10):
        began = time.thread_time()
        step(batches[number % len(batches)])
        times.append(time.thread_time() - began)
    return float(np.median(times[10:]) * 1000)
