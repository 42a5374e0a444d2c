"""The paper's Figure 4 in the SIMULATED world: the share of watches that a model predicts for items of an age, and the
real one. (KuaiRand-Pure cannot show it: its items were all published within a few days.)

Two models without the popularity coordinate, one with example age as an input and one without, and the default, which
has live popularity in its place. Each model's softmax over the whole catalogue is averaged over the users of the test,
and summed by the age of the items at the cut. The plot goes to docs/example-age.svg.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from infra.backtest.recommenders import Released
from infra.simulation.world import NOTICE, World
from models.evaluation.backtest import rows_at_once
from models.retrieval.candidate_learning import Training
from models.retrieval.hyper_parameters import CandidateParameters
from tests.benchmarks.quality.ablated import NoPopularity, train
from tests.benchmarks.quality.ablations import BASE
from tests.benchmarks.quality.judged import Ground, ground_of
from tests.benchmarks.report import Report

PLOT = Path(__file__).resolve().parents[3] / "docs" / "example-age.svg"
DAY_MS = 24 * 3_600_000
EDGES = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 100)  # days
MODELS = (
    ("without example age", {}, NoPopularity),
    ("with example age", {"example_age": True}, NoPopularity),
    ("live popularity (default)", {}, Training),
)


def measure(report: Report, quick: bool) -> None:
    """Predicted and real share of watches by the age of the item."""
    torch.set_num_threads(1)
    report.title = "share of watches by the age of the item at the cut, simulated world"
    report.note(NOTICE)
    now_ms = 1_700_000_000_000
    world = World(seed=1, start_ms=now_ms, catalogue_days=20)
    log = world.past_log(now_ms - 20 * DAY_MS, now_ms, 6_000 if quick else 60_000)
    ground = ground_of(log, world.items_frame(now_ms))
    cut = int(0.95 * len(ground.source.dataset))
    items = ground.source.known_at(cut)
    age_days = (ground.source.dataset.event_ms[cut] - ground.source.born_ms[:items]) / DAY_MS
    bins = np.clip(np.searchsorted(EDGES, age_days, side="right") - 1, 0, len(EDGES) - 2)
    watched = ground.source.dataset.items[cut:]
    shares = {"watched after the cut": np.bincount(bins[watched[watched < items]], minlength=len(EDGES) - 1)}
    for name, settings, training in MODELS:
        base = BASE.model_copy(update={"age_window_h": 480.0} | ({"epochs": 1} if quick else {}))
        shares[name] = _predicted(ground, cut, items, bins, base.model_copy(update=settings), training)
    shares = {name: share / share.sum() for name, share in shares.items()}
    for place in range(len(EDGES) - 1):
        span = f"{EDGES[place]} to {EDGES[place + 1]}" if place < len(EDGES) - 2 else f"over {EDGES[place]}"
        report.add(days=span, **{name: round(float(share[place]), 4) for name, share in shares.items()})
    real = shares["watched after the cut"]
    report.note(
        "distance to what was watched (half the sum of differences): "
        + ", ".join(
            f"{name} {np.abs(share - real).sum() / 2:.3f}" for name, share in shares.items() if share is not real
        )
    )
    if not quick:
        _plot(shares)
        report.note(f"plot: docs/{PLOT.name}")


def _predicted(
    ground: Ground, cut: int, items: int, bins: np.ndarray, settings: CandidateParameters, training: type[Training]
) -> np.ndarray:
    """float64 [bins]: the mean softmax over the test's users, by bin."""
    released = Released(train(training, ground.source, settings, until=cut, items=items), ground.source, ground.history)
    asked = ground.history.next_unseen(cut)
    total = np.zeros(len(EDGES) - 1)
    for start in range(0, len(asked), rows_at_once(items)):
        scores = torch.from_numpy(released.scores(ground.history.queries(asked[start : start + rows_at_once(items)])))
        total += np.bincount(bins, torch.softmax(scores, dim=1).sum(dim=0).numpy(), minlength=len(total))
    return total


def _plot(shares: dict[str, np.ndarray]) -> None:
    plt.rcParams["svg.hashsalt"] = "nextwatch"
    figure, axes = plt.subplots(figsize=(7, 3.6))
    for name, share in shares.items():
        axes.plot(share, marker="o", label=name, linestyle="--" if name == "watched after the cut" else "-")
    labels = [f"{low}-{high}" for low, high in pairwise(EDGES[:-1])] + [f">{EDGES[-2]}"]
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlabel("age of the item at the cut, days")
    axes.set_ylabel("share of watches")
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(PLOT, metadata={"Date": None})
