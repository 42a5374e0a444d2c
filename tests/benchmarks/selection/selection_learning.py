"""What exploring costs and brings: services that explore beside one that does not, each in its own copy of the
simulated world, their rankers trained again and again on what they served.

A service that shows the best first has used them up sooner: people have watched or passed over what it would show next,
and its next lists look poor beside those of a service that explored, whatever the two rankers know. So what was learnt
is also judged where it was not used: on the people as they were before, by each service's ranker and item statistics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from infra.platform.settings import Selection
from infra.simulation.world import NOTICE
from models.ranking.ranker import Ranker
from serving.request.reranking import DRAWN
from tests.benchmarks.report import Report
from tests.benchmarks.selection.selection_scene import HOUR_MS, NOW_MS, Scene, make_scene
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

NEW_MS = 48 * HOUR_MS

OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "off": {},
    "drawn .1, little shown": {"explore": 0.1},
    "drawn .1, uncertainty": {"explore": 0.1, "explore_by": "uncertainty"},
    "drawn .3, little shown, among all": {"explore": 0.3, "explore_pool": 1000},
}
QUICK_OPTIONS = ("off", "drawn .1, little shown", "drawn .1, uncertainty")


@dataclass(frozen=True)
class Size:
    seeds: Sequence[int]
    rounds: int
    lists: int  # in a round
    viewers: int  # that are asked at the end


FULL = Size((1, 2, 3, 4, 5, 6), 4, 400, 400)
QUICK = Size((1, 2), 2, 150, 60)


def measure(report: Report, quick: bool) -> None:
    """Rounds of serving and learning, by each way of exploring; then all are asked for lists without drawing."""
    torch.set_num_threads(1)
    size = QUICK if quick else FULL
    options = {name: OPTIONS[name] for name in (QUICK_OPTIONS if quick else OPTIONS)}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in options}
    for seed in size.seeds:
        with TemporaryDirectory(prefix="nextwatch-") as scratch:
            scene = make_scene(seed, Path(scratch) / "scene")
            for name, changes in options.items():
                found[name].append(live(scene, Selection(**changes), size, Path(scratch) / name, seed))
    report.title = (
        f"selection learning: SIMULATED, {len(size.seeds)} worlds, {size.rounds} rounds of {size.lists} lists, "
        "the ranker trained anew after each"
    )
    report.note(f"{NOTICE}; s/list: true expected seconds watched out of a list of {K}")
    report.note(
        "served: lists as they were shown, what was drawn included; those of the first round by the watches-only ranker"
    )
    report.note(
        f"next: lists of the last ranker, nothing drawn, to {size.viewers} people as this service has left them"
    )
    report.note(
        "knows: the same to these people as they were before the first list; the first ranker there: over first"
    )
    report.note("of off: mean and standard error over worlds of the paired difference")
    report.note(f"new shown: of the items of the last {NEW_MS // HOUR_MS} h, the share that was shown {SELDOM} times")
    for name, parts in found.items():
        report.add(**learning_row(name, parts, found["off"]))


def live(scene: Scene, selection: Selection, size: Size, directory: Path, seed: int) -> dict[str, float]:
    """Serve and learn for some rounds; what the lists were worth, and what they are worth then."""
    service, first = Service(scene, selection), scene.bundle.ranker
    served, drawn = [], []
    for number in range(size.rounds):
        lists = serve_round(service, number, size.lists)
        served.append(float(np.mean([each.value_s for each in lists])))
        drawn.append(np.mean([sum(c.reason == DRAWN for c in each.choice.items) for each in lists]))
        service.learn(directory / str(number), seed)
    viewers = most_active(service, size.viewers)
    now_ms = NOW_MS + size.rounds * ROUND_MS
    before = Service(scene, OFF)
    seen = service.shown >= SELDOM
    is_new = scene.bundle.catalogue.published_ms(np.arange(len(seen))) > NOW_MS - NEW_MS
    return {
        "served": float(np.mean(served)),
        "next": worth(service, viewers, now_ms, service.ranker),
        "first": worth(before, viewers, now_ms, first),
        "knows": worth(before.told(service), viewers, now_ms, service.ranker),
        "known": float(seen.mean()),
        "new": float(seen[is_new].mean()),
        "drawn": float(np.mean(drawn)),
    }


def worth(service: Service, viewers: list[str], now_ms: int, ranker: Ranker) -> float:
    """True expected seconds per list, nothing drawn."""
    made = [service.make_lists(users, now_ms, OFF, ranker)[0] for users in together(viewers)]
    return float(np.mean([each.value_s for lists in made for each in lists]))


def learning_row(name: str, ours: list[dict[str, float]], base: list[dict[str, float]]) -> dict[str, Any]:
    def mean(key: str) -> float:
        return float(np.mean([each[key] for each in ours]))

    def of_off(key: str) -> str:
        return "" if ours is base else _change(ours, base, key)

    first = [{"knows": each["first"]} for each in ours]
    return {
        "option": name,
        "drawn": f"{mean('drawn'):.1f}",
        "served s/list": f"{mean('served'):.1f}",
        "of off": of_off("served"),
        "next s/list": f"{mean('next'):.1f}",
        "next of off": of_off("next"),
        "knows s/list": f"{mean('knows'):.1f}",
        "knows of off": of_off("knows"),
        "knows over first": _change(ours, first, "knows"),
        "items shown": f"{mean('known'):.1%}",
        "new shown": f"{mean('new'):.1%}",
    }


def _change(ours: Sequence[Mapping[str, float]], base: Sequence[Mapping[str, float]], key: str) -> str:
    """Mean of the seeds' changes, and its standard error."""
    changes = np.array([mine[key] / theirs[key] - 1 for mine, theirs in zip(ours, base, strict=True)])
    return f"{changes.mean():+.1%} ±{changes.std(ddof=1) / len(changes) ** 0.5:.1%}"
