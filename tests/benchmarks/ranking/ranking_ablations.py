"""What each choice of the ranker is worth, beside what the paper says of it (its Table 1 and section 4).

KuaiRand: trained on the first 80 % of the exposures, judged on the 10 % of validation, since the test is reported once.
The simulated world, where previous impressions and channels carry signal, where a video stood is known, and so is the
truth: trained on the first 80 %, judged on the rest. One network per variant; every variant differs from the base in
one thing and is compared with it impression by impression. The base with another seed says what is noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from infra.platform.settings import Ranker, Settings
from infra.simulation.world import NOTICE
from models.ranking.features import FEATURES, ids_of
from models.ranking.ranker_training import default_hidden
from tests.benchmarks.ranking.ranking_ground import LISTS, QUICK_LISTS, Ground, Part, kuairand_ground, world_ground
from tests.benchmarks.ranking.ranking_judged import Judged, differences_row, judged, predicted, trained, values_row
from tests.benchmarks.report import Report, say
from tests.harness import kuairand

QUICK_USERS = 0.2
VALUES = ("loss/page %", "loss/user %", "XAUC")
DIFFERENCES = ("loss/page %", "loss/user %", "top-1 s", "XAUC", "GAUC", "true top-5 s")
QUERY_CONTEXT = ("language", "region", "device", "surface")
IDS = tuple(f.name for f in FEATURES if not f.is_number and f.name not in QUERY_CONTEXT)
OF_CHANNEL = ("channel_watches", "channel_watched_s", "since_channel_s")
OF_TOPIC = (
    *("topic_watches", "topic_watched_s", "since_topic_s", "topic_mean_watched_s"),
    *("any_topic_watches", "any_topic_watched_s", "since_any_topic_s"),
)
SHOWN_BEFORE = ("item_shown", "since_item_shown_s", "channel_shown", "since_channel_shown_s", "shown_last_hour")
STATISTICS = (
    *("item_impression_share", "item_watch_share", "item_watch_ratio", "item_completion", "item_mean_s"),
    *("channel_mean_s", "topic_mean_s"),
)
NUMBERS_OF_ITEM = ("candidate", "last_watched")


@dataclass(frozen=True)
class Variant:
    """Settings that differ from the base's."""

    name: str
    paper: str
    settings: Mapping[str, Any] = field(default_factory=dict)


def without(*names: str) -> dict[str, Any]:
    return {"without": names}


BASE = Variant("base: the defaults, one network", "")
VARIANTS = (
    BASE,
    Variant("base, another seed (noise)", "", {"seed": 2}),
    Variant("no hidden layer", "41.6 %", {"hidden": ()}),
    Variant("256", "36.9 %", {"hidden": (256,)}),
    Variant("256-128", "", {"hidden": (256, 128)}),
    Variant("512-256", "35.2 %", {"hidden": (512, 256)}),
    Variant("1024-512-256", "34.6 %", {"hidden": (1024, 512, 256)}),
    Variant("without powers", "+0.2", {"powers": False}),
    Variant("without ids of videos, channels, topics", "", without(*IDS)),
    Variant("without ids of videos", "", without(*NUMBERS_OF_ITEM)),
    Variant("without history with channel and topic", "most important", without(*OF_CHANNEL, *OF_TOPIC)),
    Variant("without previous impressions", "crucial for churn", without(*SHOWN_BEFORE)),
    Variant("without item, channel, topic statistics", "", without(*STATISTICS)),
    Variant("equal weights", "+4.1", {"objective": "equal"}),
    Variant("the paper's watch-time weights", "", {"objective": "paper"}),
    Variant("without the completion head", "", {"completion": False}),
    Variant("with the completion head", "", {"completion": True}),
    Variant("quantiles of watch time (D2Q)", "", {"target": "d2q"}),
)
MAPPED = Variant("the paper's weights with a map", "", {"objective": "paper", "isotonic": True})
POSITION = Variant("position as a side input", "", {"position": True})
QUICK = (BASE.name, "no hidden layer", "equal weights", POSITION.name)


def measure(report: Report, quick: bool) -> None:
    """KuaiRand, validation: each variant and its paired difference to the base."""
    torch.set_num_threads(1)
    if not kuairand.is_there():
        report.note(f"nothing measured: the KuaiRand data is not at {kuairand.DIRECTORY}")
        return
    ground = kuairand_ground(users=QUICK_USERS if quick else 1.0)
    cut = ground.at(0.8)
    part = ground.part(cut, ground.at(0.9))
    report.title = f"ranking ablations: KuaiRand, validation of {len(part):,} exposures, trained on {cut:,}"
    base = compare(report, ground, cut, part, _chosen(VARIANTS, quick), _settings(quick, cut))
    report.note("position: KuaiRand does not tell where a video stood; retrieval features: nor what retrieved it")
    if quick:
        return
    short = kuairand_ground(history=False)
    same = short.part(short.at(0.8), short.at(0.9))
    found = judged(part, predicted(trained(short, short.at(0.8), _settings(quick, cut)), same))
    report.add(**row_of(Variant("without the long watches of before 25 April", ""), found, base))


def measure_world(report: Report, quick: bool) -> None:
    """The simulated world: the same variants, and position; judged also by the true expected seconds."""
    torch.set_num_threads(1)
    ground = world_ground(QUICK_LISTS if quick else LISTS)
    cut = ground.at(0.8)
    part = ground.part(cut, len(ground))
    report.title = f"ranking world: SIMULATED, judged on {len(part):,} exposures, trained on {cut:,}"
    report.note(f"{NOTICE}; true top-5 s: the true expected seconds, if looked at, of the first five of each list")
    compare(report, ground, cut, part, _chosen((*VARIANTS, MAPPED, POSITION), quick), _settings(quick, cut))


def compare(
    report: Report, ground: Ground, cut: int, part: Part, variants: Sequence[Variant], settings: Ranker
) -> Judged:
    """Add a row of each variant; what is found of the first, the base."""
    base: Judged = {}
    for variant in variants:
        if variant is not BASE and all(getattr(settings, name) == value for name, value in variant.settings.items()):
            continue  # what the base is
        say(variant.name)
        ranker = trained(ground, cut, settings.model_copy(update=variant.settings))
        found = judged(part, predicted(ranker, part))
        base = base or found
        report.add(**row_of(variant, found, base))
    report.note("d: paired difference to the base [95 %], a bootstrap over users; * where 0 lies outside")
    widths = "-".join(map(str, settings.hidden or ()))
    report.note(f"base: {widths}, {settings.epochs} epochs, completion head {'on' if settings.completion else 'off'}")
    report.note(f"ids left out: {', '.join(IDS)}; {len(ids_of('query')) + len(ids_of('impression'))} are there")
    return base


def row_of(variant: Variant, found: Judged, base: Judged) -> dict[str, str]:
    row = {"variant": variant.name, "paper": variant.paper, **values_row(found, VALUES)}
    if found is not base:
        row |= {f"d {name}": value for name, value in differences_row(found, base, DIFFERENCES).items()}
    return row


def _settings(quick: bool, examples: int) -> Ranker:
    """The defaults with the widths that so many examples get, and one network."""
    settings = Settings.model_construct().ranker
    one: dict[str, Any] = {"members": 1, "hidden": settings.hidden or default_hidden(examples)}
    return settings.model_copy(update=one | ({"epochs": 1} if quick else {}))


def _chosen(variants: Sequence[Variant], quick: bool) -> list[Variant]:
    return [variant for variant in variants if not quick or variant.name in QUICK]
