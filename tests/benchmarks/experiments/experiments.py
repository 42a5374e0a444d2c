"""What experiments say where the truth is known: of variants that are alike, of one that is 3 % better, and of two
rankers that share each list. Looked at again and again, as people do.

Viewers of an experiment are drawn with replacement from those that were simulated, so the truth is these viewers' own
mean; who is in which variant says the salted hash, as in a server.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import ndtri

from infra.simulation.world import NOTICE
from models.arrays import Doubles, Flags
from models.experiments.assignment import variant_of
from models.experiments.confidence import Interval, Moments, boundary, difference, mean, moments_of, predicted_viewers
from models.experiments.sample_ratio import is_off
from tests.benchmarks.experiments.experiments_viewers import Viewers, make_viewers
from tests.benchmarks.report import Report, say

ALPHA, POWER, EFFECT = 0.05, 0.8, 0.03
VIEWERS, QUICK_VIEWERS = 30_000, 4_000
ALIKE, QUICK_ALIKE = 200, 40
TIMES, QUICK_TIMES = 100, 20
PLANNED_ALIKE, LOOKS = 10_000, 100


def measure(report: Report, quick: bool) -> None:
    viewers = make_viewers(1, QUICK_VIEWERS if quick else VIEWERS, EFFECT)
    alike, times = (QUICK_ALIKE, QUICK_TIMES) if quick else (ALIKE, TIMES)
    report.title = f"experiments: SIMULATED, {len(viewers.worse_s):,} viewers of the world, looked at {LOOKS} times"
    report.note(f"{NOTICE}; viewers of an experiment are drawn from these with replacement: their mean is the truth")
    rng = np.random.default_rng(2)
    _add_alike(report, viewers.worse_s, alike, rng)
    needed = _add_better(report, viewers, times, rng)
    _add_interleaved(report, viewers, times, needed, rng)


def _add_alike(report: Report, seconds: Doubles, times: int, rng: np.random.Generator) -> None:
    """Experiments whose variants are the same: intervals for every look, beside those for one."""
    found, naive, off = 0, 0, 0
    say(f"{times} experiments with variants that are alike")
    for number in range(times):
        drawn, variant = rng.choice(seconds, PLANNED_ALIKE), _split(f"alike/{number}", PLANNED_ALIKE)
        looks = _looks(drawn, variant, PLANNED_ALIKE)
        found += any(interval.says_different for _, interval in looks)
        naive += any(abs(interval.value) > 1.96 * _error(interval, size, PLANNED_ALIKE) for size, interval in looks)
        counts = np.cumsum(variant)
        off += any(is_off([int(size - counts[size - 1]), int(counts[size - 1])], [1, 1]) for size, _ in looks)
    about = {"experiments": times, "true": "0 %", "viewers": PLANNED_ALIKE}
    report.add(of="alike, always valid", **about, says_different=f"{found / times:.1%}")
    report.add(of="alike, intervals for one look", **about, says_different=f"{naive / times:.1%}")
    report.add(of="alike, sample ratio", **about, says_different=f"{off / times:.1%}")
    report.bar("share of experiments with variants alike that ever say different", found / times, at_most=ALPHA)


def _add_better(report: Report, viewers: Viewers, times: int, rng: np.random.Generator) -> int:
    """A/B tests of the two rankers with the number of viewers that was predicted; that number."""
    worse, better = moments_of(viewers.worse_s), moments_of(viewers.better_s)
    effect = better.mean - worse.mean
    needed = predicted_viewers(effect, (better.variance, worse.variance), (0.5, 0.5), alpha=ALPHA, power=POWER)
    stops = []
    say(f"{times} experiments of {needed:,} viewers with a better ranker")
    for number in range(times):
        at, variant = rng.integers(0, len(viewers.worse_s), needed), _split(f"better/{number}", needed)
        drawn = np.where(variant, viewers.better_s[at], viewers.worse_s[at])
        stops.append(_first(_looks(drawn, variant, needed)))
    truth = f"{effect / worse.mean:+.1%}"
    _add_stops(report, "A/B, always valid", truth, needed, stops)
    one_look = 2 * (better.variance + worse.variance) * ((ndtri(1 - ALPHA / 2) + ndtri(POWER)) / effect) ** 2
    report.add(of="A/B, one look at its end", true=truth, viewers=math.ceil(one_look))
    report.bar("share found with the predicted viewers", _share(stops), at_least=POWER)
    report.note(f"seconds per viewer {worse.mean:.1f}, their deviation {math.sqrt(worse.variance):.1f}")
    return needed


def _add_interleaved(report: Report, viewers: Viewers, times: int, needed: int, rng: np.random.Generator) -> None:
    """The same two rankers in one list: the viewers that this needs, by the same reckoning, beside the A/B test's."""
    of = moments_of(viewers.preferred_s)
    widths = boundary(1, ALPHA, 1) + float(ndtri(POWER))
    own = max(200, math.ceil(of.variance * (widths / of.mean) ** 2))
    stops = []
    for _ in range(times):
        drawn = rng.choice(viewers.preferred_s, own)
        looks = [(size, mean(moments_of(drawn[:size]), alpha=ALPHA, planned=own)) for size in _sizes(own)]
        stops.append(_first(looks))
    _add_stops(report, "interleaved, always valid", f"{of.mean:+.1f} s preferred", own, stops)
    report.bar("share found interleaved with its predicted viewers", _share(stops), at_least=POWER)
    report.note(f"interleaving needs {own:,} viewers where the A/B test needs {needed:,}: one in {needed / own:.1f}")
    report.bar("viewers of interleaving, of the A/B test's", own / needed, at_most=1.0)


def _add_stops(report: Report, what: str, truth: str, viewers: int, stops: list[int | None]) -> None:
    found = [stop for stop in stops if stop is not None]
    at = f"{np.median(found):,.0f}" if found else ""
    report.add(
        of=what,
        experiments=len(stops),
        true=truth,
        viewers=viewers,
        says_different=f"{_share(stops):.1%}",
        found_after=at,
    )


def _share(stops: list[int | None]) -> float:
    return sum(stop is not None for stop in stops) / len(stops)


def _split(salt: str, viewers: int) -> Flags:
    return np.array([variant_of(salt, str(number), (0.5, 0.5)) for number in range(viewers)], np.bool_)


def _sizes(viewers: int) -> list[int]:
    return np.unique(np.linspace(viewers / LOOKS, viewers, LOOKS).astype(int)).tolist()


def _looks(drawn: Doubles, variant: Flags, planned: int) -> list[tuple[int, Interval]]:
    """The interval at growing numbers of viewers."""
    return [
        (
            size,
            difference(
                *(_moments(drawn[:size][of[:size]]) for of in (variant, ~variant)), alpha=ALPHA, planned=planned
            ),
        )
        for size in _sizes(len(drawn))
    ]


def _moments(values: Doubles) -> Moments:
    return (
        Moments(len(values), float(values.mean()), float(values.var(ddof=1))) if len(values) > 1 else Moments(0, 0, 0)
    )


def _error(interval: Interval, size: int, planned: int) -> float:
    """The standard error that an interval was made of."""
    return (interval.high - interval.value) / boundary(size, ALPHA, planned)


def _first(looks: list[tuple[int, Interval]]) -> int | None:
    return next((size for size, interval in looks if interval.says_different), None)
