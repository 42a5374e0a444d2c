"""What each option of the selection costs and brings, in the simulated world, by the world's own truth.

`lists`: every option on the same requests: what a list is worth now, how diverse it is, who gets the impressions, and
what choosing costs. `learning`: services that explore beside one that does not, each in its own copy of the world,
their rankers trained again and again on what they served: what exploring costs meanwhile and what it has brought then.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from infra.exposures import without_repeats
from infra.settings import Selection
from infra.world import NOTICE
from models.ranker import Ranker
from serving.selection import DRAWN, Options, choose, seed_of
from tests.benchmarks.report import Benchmark, Report
from tests.benchmarks.selection_service import HOUR_MS, NOW_MS, TOGETHER, K, Scene, Service, make_scene

Doubles = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

SEEDS, LEARNING_SEEDS, QUICK_SEEDS = (1, 2, 3, 4, 5, 6), (1, 2, 3, 4), (1, 2)
ROUNDS, QUICK_ROUNDS = 4, 2
LISTS, QUICK_LISTS = 400, 150  # in a round
VIEWERS, QUICK_VIEWERS = 400, 60  # that are asked when a comparison is made
ROUND_MS = 3 * HOUR_MS
SELDOM = 3  # an item that was shown less often is little known
NEW_MS = 48 * HOUR_MS
PINNED_PLACE = 100  # of retrieval: the candidate that is pinned, where one is

OFF = Selection()
LIST_OPTIONS: Mapping[str, Mapping[str, Any]] = {
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
LEARNING_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "off": {},
    "drawn .1, little shown": {"explore": 0.1},
    "drawn .1, little shown, last places": {"explore": 0.1, "explore_from": 19},
    "drawn .3, little shown, among all": {"explore": 0.3, "explore_pool": 1000},
    "drawn .1, uncertainty": {"explore": 0.1, "explore_by": "uncertainty"},
    "drawn .3, uncertainty, among all": {"explore": 0.3, "explore_by": "uncertainty", "explore_pool": 1000},
    "MMR, weight .3": {"diversity": "mmr"},
}
QUICK_LEARNING = ("off", "drawn .1, little shown", "drawn .1, uncertainty")


@dataclass(frozen=True)
class Size:
    seeds: Sequence[int]
    rounds: int
    lists: int
    viewers: int


QUICK = Size(QUICK_SEEDS, QUICK_ROUNDS, QUICK_LISTS, QUICK_VIEWERS)


def measure_lists(report: Report, quick: bool) -> None:
    """Each option on the same requests, after one round of lists and a training on them."""
    torch.set_num_threads(1)
    size = QUICK if quick else Size(SEEDS, ROUNDS, LISTS, VIEWERS)
    found: dict[str, list[Doubles]] = {name: [] for name in LIST_OPTIONS}
    for seed in size.seeds:
        with TemporaryDirectory(prefix="nextwatch-") as scratch:
            service = Service(make_scene(seed, Path(scratch)), OFF)
            serve_round(service, 0, size.lists)
            service.learn(Path(scratch) / "ranker", seed)
        asked = ask(service, size.viewers)
        for name, changes in LIST_OPTIONS.items():
            found[name].append(lists_of(service, asked, Selection(**changes), pin="pin" in name))
    report.title = f"selection lists: SIMULATED, {size.viewers} viewers, {len(size.seeds)} worlds"
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
    for users in _together(_distinct(service, viewers)):
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


def measure_learning(report: Report, quick: bool) -> None:
    """Rounds of serving and learning, by each way of exploring; then all are asked for lists without drawing."""
    torch.set_num_threads(1)
    size = QUICK if quick else Size(LEARNING_SEEDS, ROUNDS, LISTS, VIEWERS)
    options = {name: LEARNING_OPTIONS[name] for name in (QUICK_LEARNING if quick else LEARNING_OPTIONS)}
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
    report.note(f"afterwards: lists of the last ranker, nothing drawn, to {size.viewers} viewers")
    report.note("of off: mean and standard error over worlds of the paired difference")
    report.note("over first: afterwards, against the first, watches-only ranker in the same state")
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
    viewers = _distinct(service, size.viewers)
    now_ms = NOW_MS + size.rounds * ROUND_MS
    seen = service.shown >= SELDOM
    is_new = scene.bundle.catalogue.published_ms(np.arange(len(seen))) > NOW_MS - NEW_MS
    return {
        "served": float(np.mean(served)),
        "last": served[-1],
        "after": worth(service, viewers, now_ms, service.ranker),
        "after_first": worth(service, viewers, now_ms, first),
        "known": float(seen.mean()),
        "new": float(seen[is_new].mean()),
        "drawn": float(np.mean(drawn)),
    }


def worth(service: Service, viewers: list[str], now_ms: int, ranker: Ranker) -> float:
    """True expected seconds per list, nothing drawn."""
    made = [service.make_lists(users, now_ms, OFF, ranker)[0] for users in _together(viewers)]
    return float(np.mean([each.value_s for lists in made for each in lists]))


def learning_row(name: str, ours: list[dict[str, float]], base: list[dict[str, float]]) -> dict[str, Any]:
    def mean(key: str) -> float:
        return float(np.mean([each[key] for each in ours]))

    row = {"option": name, "drawn": f"{mean('drawn'):.1f}", "served s/list": f"{mean('served'):.1f}"}
    row["of off"] = "" if ours is base else _change(ours, base, "served")
    row |= {"last round of off": "" if ours is base else _change(ours, base, "last")}
    row |= {"afterwards s/list": f"{mean('after'):.1f}"}
    row["afterwards of off"] = "" if ours is base else _change(ours, base, "after")
    first = [{"after": each["after_first"]} for each in ours]
    row["over first"] = _change(ours, first, "after")
    return row | {"items shown": f"{mean('known'):.1%}", "new shown": f"{mean('new'):.1%}"}


def _change(ours: Sequence[Mapping[str, float]], base: Sequence[Mapping[str, float]], key: str) -> str:
    """Mean of the seeds' changes, and its standard error."""
    changes = np.array([mine[key] / theirs[key] - 1 for mine, theirs in zip(ours, base, strict=True)])
    return f"{changes.mean():+.1%} ±{changes.std(ddof=1) / len(changes) ** 0.5:.1%}"


def serve_round(service: Service, number: int, lists: int) -> list[Any]:
    """Some hours in which so many lists are shown, to people drawn by how active they are."""
    rng = np.random.default_rng([number, 7])
    users = rng.choice(len(service.world.user_ids), lists, p=service.world.population.user_activity)
    found: list[Any] = []
    for block in without_repeats(users, TOGETHER):
        now_ms = NOW_MS + number * ROUND_MS + block.start * ROUND_MS // lists
        found += service.serve([service.world.user_ids[user] for user in users[block]], now_ms)
    return found


def _distinct(service: Service, viewers: int) -> list[str]:
    """The most active people: those who would ask."""
    active = np.argsort(-service.world.population.user_activity, kind="stable")[:viewers]
    return [service.world.user_ids[user] for user in active]


def _together(users: list[str]) -> list[list[str]]:
    rest = iter(users)
    return list(iter(lambda: list(islice(rest, TOGETHER)), []))


PARTS: dict[str, Benchmark] = {"lists": measure_lists, "learning": measure_learning}
