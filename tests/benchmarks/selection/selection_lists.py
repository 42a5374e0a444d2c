"""What each option of the selection is worth on the same requests, by the simulated world's truth: the watch seconds of
a list now, how diverse it is, who gets the impressions, and what choosing costs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from infra.platform.settings import Selection
from infra.simulation.world import NOTICE
from models.arrays import Doubles, Rows
from serving.request.exploration import seed_of
from serving.request.reranking import Options, choose
from tests.benchmarks.report import Report
from tests.benchmarks.selection.selection_scene import NOW_MS, Scene, make_scene
from tests.benchmarks.selection.selection_service import (
    OFF,
    ROUND_MS,
    SELDOM,
    K,
    Service,
    most_active,
    serve_round,
    together,
)

SEEDS, QUICK_SEEDS = (1, 2, 3, 4, 5, 6), (1, 2)
LISTS, QUICK_LISTS = 400, 150
VIEWERS, QUICK_VIEWERS = 400, 60
PINNED_PLACE = 100  # of retrieval: the candidate that is pinned, where one is

OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "off": {},
    "at most 3 of a channel": {"channel_cap": 3},
    "at most 1 of a channel": {"channel_cap": 1},
    "MMR, weight .3": {"diversity": "mmr"},
    "MMR, weight .6": {"diversity": "mmr", "diversity_weight": 0.6},
    "DPP, weight .1": {"diversity": "dpp", "diversity_weight": 0.1},
    "DPP, weight .3": {"diversity": "dpp"},
    "drawn .1, little shown": {"explore": 0.1},
    "drawn .1, little shown, among all": {"explore": 0.1, "explore_pool": 1000},
    "drawn .1, little shown, last places": {"explore": 0.1, "explore_from": 19},
    "drawn .1, uncertainty": {"explore": 0.1, "explore_by": "uncertainty"},
    "a pin (the 100th candidate)": {},
    "all but pins": {"channel_cap": 3, "diversity": "mmr", "explore": 0.1},
}


def measure(report: Report, quick: bool) -> None:
    """Each option on the same requests, after one round of lists and a training on them."""
    torch.set_num_threads(1)
    seeds = QUICK_SEEDS if quick else SEEDS
    viewers = QUICK_VIEWERS if quick else VIEWERS
    found: dict[str, list[Doubles]] = {name: [] for name in OPTIONS}
    for seed in seeds:
        with TemporaryDirectory(prefix="nextwatch-") as scratch:
            service = Service(make_scene(seed, Path(scratch)), OFF)
            serve_round(service, 0, QUICK_LISTS if quick else LISTS)
            service.learn(Path(scratch) / "ranker", seed)
        asked = ask(service, viewers)
        for name, changes in OPTIONS.items():
            found[name].append(lists_of(service, asked, Selection(**changes), pin="pin" in name))
    report.title = f"selection lists: SIMULATED, {viewers} viewers, {len(seeds)} worlds"
    report.note(f"{NOTICE}; s/list: true expected seconds watched out of a list of {K}")
    report.note("of off: paired over the same requests, mean and standard error")
    report.note(f"little shown: share of the places whose item had been shown less than {SELDOM} times")
    report.note("likeness: mean cosine of two items of a list, without popularity")
    base = np.concatenate(found["off"])
    for name, parts in found.items():
        report.add(**lists_row(name, np.concatenate(parts), base))


def lists_row(name: str, ours: Doubles, base: Doubles) -> dict[str, Any]:
    """ours, base [V, 6]: what lists_of gives."""
    seconds, channels, topics, likeness, seldom, _ = ours.mean(axis=0)
    change = (ours[:, 0] - base[:, 0]) / base[:, 0].mean()
    return {
        "option": name,
        "s/list": f"{seconds:.1f}",
        "of off": "" if name == "off" else f"{change.mean():+.1%} ±{change.std() / len(change) ** 0.5:.1%}",
        "channels": f"{channels:.1f}",
        "topics": f"{topics:.1f}",
        "likeness": f"{likeness:.3f}",
        "little shown": f"{seldom:.1%}",
        "ms p50": f"{np.median(ours[:, 5]):.2f}",
    }


def ask(service: Service, viewers: int) -> list[tuple[str, Rows, Options, int]]:
    """The viewers' candidates, as ranked now: user, rows [C], options, moment."""
    now_ms, found = NOW_MS + 2 * ROUND_MS, []
    for users in together(most_active(service, viewers)):
        lists, rows, _ = service.make_lists(users, now_ms, OFF, service.ranker)
        found += [(user, own, each.options, now_ms) for user, own, each in zip(users, rows, lists, strict=True)]
    return found


def lists_of(service: Service, asked: list[tuple[str, Rows, Options, int]], settings: Selection, pin: bool) -> Doubles:
    """[V, 6]: seconds, channels, topics, likeness, share of little shown items, ms that choosing took."""
    found = []
    for user, own, candidates, now_ms in asked:
        options = candidates._replace(pinned=(PINNED_PLACE - 1,) if pin else ())
        seed = seed_of(f"{user}/{now_ms}", settings.seed)
        began = time.perf_counter()
        choice = choose(options, K, settings, seed)
        took_ms = 1000 * (time.perf_counter() - began)
        rows = own[[each.row for each in choice.items]]
        seldom = float((service.shown[rows] < SELDOM).mean())
        found.append((service.value_s(user, rows, now_ms), *diversity_of(service.scene, rows), seldom, took_ms))
    return np.array(found)


def diversity_of(scene: Scene, rows: Rows) -> tuple[float, float, float]:
    """Distinct channels and topics (the main ones) of a list, and the mean cosine of two of its items."""
    catalogue, vectors = scene.bundle.catalogue, scene.vectors[rows, :-1]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = unit @ unit.T
    likeness = (pairs.sum() - len(rows)) / (len(rows) * (len(rows) - 1))
    channels, topics = np.unique(catalogue.channel_codes(rows)), np.unique(catalogue.topic_codes(rows))
    return float(len(channels)), float(len(topics)), float(likeness)
