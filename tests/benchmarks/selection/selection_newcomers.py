"""What it costs and brings to explore new items alone: a month in which new items come every day, each way of exploring
in its own copy of the simulated world."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from infra.platform.settings import Selection
from infra.simulation.browsing_model import without_repeats
from infra.simulation.world import NOTICE
from models.arrays import Doubles
from models.evaluation.comparison import mean_interval
from tests.benchmarks.report import Report
from tests.benchmarks.selection.counting_service import (
    DAY_MS,
    OPTIMISM,
    Arm,
    CountingService,
    Lists,
    Stock,
    thompson_of_new,
    ucb_of_new,
)
from tests.benchmarks.selection.selection_scene import NOW_MS
from tests.benchmarks.selection.selection_service import SELDOM, TOGETHER, K

DRAWN = Selection(explore=0.1)
ARMS: Mapping[str, Arm] = {
    "off": Arm(),
    "drawn .1, little shown": Arm(DRAWN),
    "drawn .1, new only": Arm(DRAWN, new_only=True),
    "drawn .1, new only, from place 11": Arm(Selection(explore=0.1, explore_from=11), new_only=True),
    "Thompson, new only": Arm(belief=thompson_of_new),
    "UCB, new only": Arm(belief=ucb_of_new),
}
STOCKS = (Stock(1000, 40), Stock(500, 10))  # few lists for each new item, and four times as many
BEFORE = Arm(Selection(explore=0.3, explore_pool=1000))  # how the days before were served
GOOD = 0.2  # share of the new items that counts as good
IN_DAYS = 14  # in which a good one is to be found
SURE = 0.9  # found: more than was expected, as sure as this


@dataclass(frozen=True)
class Size:
    seeds: Sequence[int]
    before: int  # days that all share
    days: int
    lists: int  # a day


FULL, QUICK = Size((1, 2, 3, 4), 5, 30, 200), Size((1, 2, 3), 2, 8, 60)


@dataclass(frozen=True)
class Month:
    """What one way of exploring came to: by day [D], and by new item [M] in order of publication."""

    value_s: Doubles
    given: Doubles
    shown: Doubles  # times
    found: Doubles  # days after publication; inf: never
    quality: Doubles


def measure(report: Report, quick: bool) -> None:
    size = QUICK if quick else FULL
    report.title = (
        f"selection newcomers: SIMULATED, {len(size.seeds)} worlds, {size.days} days of {size.lists} lists of {K}"
    )
    report.note(f"{NOTICE}; s/list: true expected seconds watched out of a list")
    report.note("a model of counts takes the ranker's place (tests/benchmarks/selection/counting_service.py)")
    report.note("of off: mean of the worlds' changes, and its interval of 95 % over worlds; last: of the last third")
    report.note("given away: share of the places whose item is not among the best by what is expected of it")
    report.note(f"new shown: share of the new items that was shown {SELDOM} times")
    report.note(f"good: the best {GOOD:.0%} of the new items by quality, which is drawn apart from channel and length")
    report.note(
        f"found: within {IN_DAYS} days its counts say with {SURE:.0%} that it brings more than an average item of its "
        "channel and length; p50: of those found"
    )
    report.note(f"UCB: the {OPTIMISM:.0%} quantile")
    shown = []
    for stock in STOCKS:
        months = months_of(stock, size)
        for name, ours in months.items():
            report.add(**{"new items": f"{stock.new_a_day} a day beside {stock.old}"}, **row(name, ours, months["off"]))
            shown.append(sum(int((each.shown > 0).sum()) for each in ours))
    report.note(f"new items shown, by row, all worlds: {', '.join(f'{count:,}' for count in shown)}")
    report.bar("new items shown, fewest", min(shown), at_least=1)


def months_of(stock: Stock, size: Size) -> dict[str, list[Month]]:
    """By arm, a month of each seed."""
    months: dict[str, list[Month]] = {name: [] for name in ARMS}
    for seed in size.seeds:
        scene = CountingService(seed, stock, size.days)
        for day in range(-size.before, 0):
            serve_day(scene, BEFORE, day, size.lists)
        scene.fit_prior()
        for name, arm in ARMS.items():
            months[name].append(live(copy.deepcopy(scene), arm, size))
    return months


def live(service: CountingService, arm: Arm, size: Size) -> Month:
    """Serve the month, looking every evening for what was found."""
    new, days = slice(service.stock.old, None), []
    published, quality = service.videos.published_ms[new], service.videos.quality[new].astype(np.float64)
    found = np.full(len(published), np.inf)
    for day in range(size.days):
        days.append(serve_day(service, arm, day, size.lists))
        evening_ms = NOW_MS + (day + 1) * DAY_MS
        known = (service.posterior().above(1.0)[new] >= SURE) & np.isinf(found)
        found[known] = (evening_ms - published[known]) / DAY_MS
    value_s, given = (np.array([getattr(each, name).mean() for each in days]) for name in Lists._fields)
    return Month(value_s, given, service.shown[new], found, quality)


def serve_day(service: CountingService, arm: Arm, day: int, lists: int) -> Lists:
    """So many lists, to people drawn by how active they are: the same ones whatever the arm."""
    population = service.videos.population
    rng = np.random.default_rng([population.seed, 100 + day])
    users = rng.choice(len(population.user_activity), lists, p=population.user_activity)
    parts = [
        service.serve(users[block], NOW_MS + day * DAY_MS + block.start * DAY_MS // lists, arm)
        for block in without_repeats(users, TOGETHER)
    ]
    return Lists(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def row(name: str, ours: Sequence[Month], base: Sequence[Month]) -> dict[str, str]:
    late = -(-len(ours[0].value_s) // 3)
    found = np.concatenate([found_in_time(each) for each in ours])
    return {
        "option": name,
        "given away": f"{np.mean([each.given.mean() for each in ours]):.1%}",
        "s/list": f"{np.mean([each.value_s.mean() for each in ours]):.1f}",
        "of off": "" if ours is base else _change(ours, base, slice(None)),
        "last, of off": "" if ours is base else _change(ours, base, slice(-late, None)),
        "new shown": f"{np.mean([(each.shown >= SELDOM).mean() for each in ours]):.1%}",
        "good found": f"{np.isfinite(found).mean():.1%}",
        "more than off": "" if ours is base else _more_found(ours, base),
        "after days p50": f"{np.median(found[np.isfinite(found)]):.1f}" if np.isfinite(found).any() else "",
    }


def found_in_time(month: Month) -> Doubles:
    """After how many days each good item was found; inf: not within IN_DAYS. Those that had fewer days are left out."""
    days = len(month.value_s)
    whole = slice(len(month.quality) * max(1, days - IN_DAYS) // days)
    quality, found = month.quality[whole], month.found[whole]
    good = found[quality >= np.quantile(quality, 1 - GOOD)]
    return np.where(good <= IN_DAYS, good, np.inf)


def _change(ours: Sequence[Month], base: Sequence[Month], days: slice) -> str:
    changes = mean_interval([_mean_s(mine, days) / _mean_s(theirs, days) - 1 for mine, theirs in _pairs(ours, base)])
    return f"{changes.value:+.1%} [{changes.low:+.1%}, {changes.high:+.1%}]"


def _more_found(ours: Sequence[Month], base: Sequence[Month]) -> str:
    shares = [[float(np.isfinite(found_in_time(each)).mean()) for each in pair] for pair in _pairs(ours, base)]
    more = mean_interval([100 * (mine - theirs) for mine, theirs in shares])
    return f"{more.value:+.1f} [{more.low:+.1f}, {more.high:+.1f}] points"


def _mean_s(month: Month, days: slice) -> float:
    return float(month.value_s[days].mean())


def _pairs(ours: Sequence[Month], base: Sequence[Month]) -> list[tuple[Month, Month]]:
    return list(zip(ours, base, strict=True))
