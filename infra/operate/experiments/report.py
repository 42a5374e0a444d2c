"""What may be said of an experiment now: by intervals that hold at every look, so anybody may look at any time.

In order of precedence: lists that have expired and a sample ratio that is off (nothing else means anything then), a
guard rail that a variant fails for certain, and the difference in watch seconds. Several variants share the error that
one has.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from infra.operate.experiments.viewers import Viewers
from models.experiments.confidence import (
    LEAST,
    Interval,
    Moments,
    difference,
    mean,
    moments_of,
    predicted_viewers,
)
from models.experiments.sample_ratio import is_off
from streams.messages import Experiment

ALPHA = 0.05
CUT = (
    "its first lists are no longer kept (kafka.retention_h): which list of a viewer was the first cannot be told, so "
    "nothing is concluded and nothing enforced"
)


class Between(msgspec.Struct, frozen=True):
    """An estimate and its interval; all None while too little is known."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


class VariantReport(msgspec.Struct, frozen=True):
    """A variant. `viewers` that have seen a list, `finished` ones whose hours are over: `watch_s` is their mean.
    `better_s`, `slower_ms`, `more_fallbacks` against the control; `verdict`: better, worse, open, or control; `failed`:
    the guard rails that it fails."""

    name: str
    share: float
    viewers: int
    finished: int
    watch_s: float
    took_ms: float
    fallbacks: float
    verdict: str
    better_s: Between = Between()
    slower_ms: Between = Between()
    more_fallbacks: Between = Between()
    failed: tuple[str, ...] = ()


class ExperimentReport(msgspec.Struct, frozen=True):
    """`runs`: it was not stopped; `sample_ratio_off`: viewers are missing from a variant, nothing may be concluded.
    `needed`: viewers of control and the first variant by which an effect of `effect` of the control's seconds is found
    four times out of five. `preferred_s`: of an interleaved one, seconds of the variant's picks per viewer over the
    control's."""

    name: str
    started_ms: int
    stopped_ms: int
    reason: str
    interleaved: bool
    hours: float
    variants: tuple[VariantReport, ...]
    sample_ratio_off: bool
    effect: float
    needed: int | None
    preferred_s: Between = Between()
    verdict: str = ""
    problems: tuple[str, ...] = ()

    @property
    def runs(self) -> bool:
        return not self.stopped_ms

    @property
    def broken(self) -> str:
        """Why it must not go on; empty where it may."""
        if self.sample_ratio_off:
            return "the sample ratio is off"
        return "; ".join(f"{each.name}: {rail}" for each in self.variants for rail in each.failed)


def report_of(experiment: Experiment, viewers: Viewers, effect: float, *, is_cut: bool = False) -> ExperimentReport:
    """Judge what is known of an experiment. `effect`: the share of the control's seconds that would matter; `is_cut`:
    its first lists have expired, so that the oldest one that is left of a viewer need not be the first."""
    report = _judged(experiment, viewers, effect)
    if not is_cut:
        return report
    nothing: Any = {"better_s": Between(), "slower_ms": Between(), "more_fallbacks": Between(), "failed": ()}
    control, *others = report.variants
    if experiment.interleaved:
        control = msgspec.structs.replace(control, verdict="open")
    opened = (control, *(msgspec.structs.replace(each, verdict="open", **nothing) for each in others))
    return msgspec.structs.replace(
        report,
        variants=opened,
        sample_ratio_off=False,
        needed=None,
        preferred_s=Between(),
        verdict="open" if experiment.interleaved else "",
        problems=(CUT,),
    )


def _judged(experiment: Experiment, viewers: Viewers, effect: float) -> ExperimentReport:
    seconds = viewers.finished()
    told = (experiment.name, experiment.started_ms, experiment.stopped_ms, experiment.reason)
    if experiment.interleaved:
        prefers = mean(moments_of(seconds.values()), alpha=ALPHA, planned=experiment.viewers)
        names = [variant.name for variant in experiment.variants]
        verdict = f"{names[1] if prefers.low > 0 else names[0]} is preferred" if prefers.says_different else "open"
        interleaved = VariantReport("", 1.0, len(viewers.first), len(seconds), 0.0, *_first_lists(viewers, ""), verdict)
        return ExperimentReport(
            *told, True, experiment.hours, (interleaved,), False, effect, None, _between(prefers), verdict
        )
    counts = [sum(1 for _ in viewers.firsts_of(variant.name)) for variant in experiment.variants]
    off = is_off(counts, [variant.share for variant in experiment.variants])
    values: dict[str, list[float]] = {variant.name: [] for variant in experiment.variants}
    for user_id, each in seconds.items():
        values.setdefault(viewers.first[user_id].variant, []).append(each)
    moments = {name: moments_of(each) for name, each in values.items()}
    reports = tuple(_variant(experiment, number, viewers, moments) for number in range(len(experiment.variants)))
    if off:  # whatever the intervals say
        reports = (reports[0], *(msgspec.structs.replace(each, verdict="open") for each in reports[1:]))
    needed = _needed(experiment, moments, effect)
    return ExperimentReport(*told, False, experiment.hours, reports, off, effect, needed)


def _variant(experiment: Experiment, number: int, viewers: Viewers, moments: dict[str, Moments]) -> VariantReport:
    control, variant = experiment.variants[0], experiment.variants[number]
    own, theirs = list(viewers.firsts_of(variant.name)), list(viewers.firsts_of(control.name))
    told = (variant.name, variant.share, len(own), moments[variant.name].size, moments[variant.name].mean)
    told_first = _first_lists(viewers, variant.name)
    if number == 0:
        return VariantReport(*told, *told_first, "control")
    how = _how(experiment)
    better = difference(moments[variant.name], moments[control.name], **how)
    slower = difference(moments_of(f.took_ms for f in own), moments_of(f.took_ms for f in theirs), **how)
    more = difference(moments_of(f.degraded for f in own), moments_of(f.degraded for f in theirs), **how)
    failed = []
    if experiment.slower_ms is not None and slower.low > experiment.slower_ms:
        failed.append(f"slower by {slower.value:.0f} ms, {experiment.slower_ms:.0f} allowed")
    if experiment.more_fallbacks is not None and more.low > experiment.more_fallbacks:
        failed.append(f"fallbacks more by {more.value:.1%}, {experiment.more_fallbacks:.1%} allowed")
    verdict = "open" if not better.says_different else "better" if better.low > 0 else "worse"
    between = (_between(better), _between(slower), _between(more))
    return VariantReport(*told, *told_first, verdict, *between, tuple(failed))


def _first_lists(viewers: Viewers, variant: str) -> tuple[float, float]:
    """Mean time and share of fallbacks of the viewers' first lists."""
    firsts = list(viewers.firsts_of(variant))
    size = max(1, len(firsts))
    return sum(first.took_ms for first in firsts) / size, sum(first.degraded for first in firsts) / size


def _needed(experiment: Experiment, moments: dict[str, Moments], effect: float) -> int | None:
    control, variant = experiment.variants[:2]
    of_control = moments[control.name]
    if of_control.size < LEAST or not of_control.mean or not effect:
        return None
    shares = (variant.share, control.share)
    return predicted_viewers(effect * of_control.mean, (of_control.variance,) * 2, shares, **_how(experiment))


def _how(experiment: Experiment) -> Any:
    """The error of each variant's intervals, which is shared, and for how many viewers they are narrowest."""
    return {"alpha": ALPHA / (len(experiment.variants) - 1), "planned": experiment.viewers}


def _between(interval: Interval) -> Between:
    return Between() if math.isnan(interval.value) else Between(*interval)
