"""How fast the ranker trains, beside a loop that does only what torch must do: forward, loss, backward, optimizer.

Both train the same network on batches of the same size, in turns; the bare loop's tensors are ready in memory, while
`fit` reads shuffled rows from files, gathers their queries and translates ids.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from infra.platform.settings import Ranker, Settings
from models.ranking.quantiles import fit_quantiles
from models.ranking.ranker_net import RankerNet
from models.ranking.ranker_training import Prepared, fit, fit_spaces, prepare, shape_of
from models.ranking.ranking_examples import SCOPES, RankingExamples
from models.retrieval.losses import watch_time_logistic
from tests.benchmarks.ranking.ranking_ground import QUICK_LISTS, scratch, world_ground
from tests.benchmarks.report import Report

SIZES = ((64, 32), (256, 128), (512, 256), (1024, 512, 256))
ROUNDS, STEPS, READY = 12, 20, 64
ENDLESS = 1_000  # epochs


def measure(report: Report, quick: bool) -> None:
    """Examples a second of `fit` and of a bare torch loop over ready tensors, in turns, one thread."""
    torch.set_num_threads(1)
    settings = Settings.model_construct().ranker
    rounds = 3 if quick else ROUNDS
    report.title = (
        f"ranking speed: training, batches of {settings.batch}, one thread, median of {rounds} x {STEPS} steps"
    )
    examples = world_ground(QUICK_LISTS).examples
    for hidden in SIZES:
        wanted = settings.model_copy(update={"hidden": hidden, "members": 1, "epochs": ENDLESS, "completion": False})
        prepared = prepared_for(examples, wanted)
        ours, bare = fitting(prepared, wanted), bare_loop(prepared, wanted)
        times = np.array([(_seconds(ours), _seconds(bare)) for _ in range(rounds + 1)])[1:]  # the first is a warm-up
        ours_s, bare_s = np.median(times, axis=0)
        ratio = float(np.median(times[:, 1] / times[:, 0]))
        name = "-".join(map(str, hidden))
        report.add(
            hidden=name,
            **{"fit, examples/s": STEPS * settings.batch / ours_s, "bare, examples/s": STEPS * settings.batch / bare_s},
            ratio=ratio,
        )
        report.bar(f"{name}: fit over the bare loop", ratio, at_least=0.7)


def prepared_for(examples: RankingExamples, settings: Ranker) -> Prepared:
    rows = np.arange(len(examples))
    spaces = fit_spaces(examples, rows, settings)
    shape = shape_of(spaces, len(rows), settings)
    quantiles = {scope: fit_quantiles(np.asarray(examples.numbers[scope])[:, shape.used(scope)[1]]) for scope in SCOPES}
    # As many steps are asked for as batches of the full size allow, whatever the number of examples.
    repeated = np.tile(rows, -(-400 * settings.batch // len(rows)))
    return prepare(examples, repeated, scratch(), spaces, shape, quantiles, None)


def fitting(prepared: Prepared, settings: Ranker) -> Callable[[], object]:
    torch.manual_seed(1)
    steps = fit(RankerNet(prepared.shape), prepared, settings, seed=1)
    return lambda: next(steps)


def bare_loop(prepared: Prepared, settings: Ranker) -> Callable[[], object]:
    torch.manual_seed(1)
    net = RankerNet(prepared.shape).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=settings.rate, weight_decay=settings.weight_decay, fused=True)
    rng, ready = np.random.default_rng(1), []
    for _ in range(READY):
        rows = rng.choice(prepared.rows, settings.batch)
        ready.append((*prepared.batch(rows, torch.device("cpu")), torch.from_numpy(prepared.targets[rows])))
    turn = iter(range(1_000_000))

    def step() -> None:
        x, codes, target = ready[next(turn) % READY]
        logits = net(net.query_part(x["query"], codes["query"]), x["impression"], codes["impression"])
        loss = watch_time_logistic(logits[:, 0], target).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _seconds(step: Callable[[], object]) -> float:
    began = time.perf_counter()
    for _ in range(STEPS):
        step()
    return time.perf_counter() - began
