"""The verdict on a new release before it goes live: is it certainly worse than what is there?

Both were asked on the same newest watches, which neither has learnt. Users are drawn anew many times (paired bootstrap,
seeded), the same draws for both, so that what they share cancels. A metric is worse where the interval of its
difference lies wholly on the wrong side; all metrics of a verdict share one chance of CHANCE to refuse a release that
is as good as the other (Bonferroni), so that a further metric makes the gate no stricter by luck.

Refused is what is certainly worse, not what is not certainly better: a release that learns the newest days is worth
having as long as nothing speaks against it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np

from models.arrays import Doubles
from models.evaluation.comparison import Ratio

CHANCE = 0.05  # of refusing an equal release, all metrics together
DRAWS = 4000
DRAWN_AT_ONCE = 100
LEAST_USERS = 100  # fewer tell nothing of the next ones
LEAST_DIFFERING = 12  # users that two differ for; of fewer the bootstrap is too sure

Favours = Literal["more", "less", "one"]  # which values of a metric are good
Outcome = Literal["passed", "refused", "not judged"]


@dataclass(frozen=True)
class Comparison:
    """A metric of the new release and of another one, on the same users. A value of ours within `harmless` is never
    called worse."""

    metric: str
    against: str
    ours: Ratio
    theirs: Ratio
    favours: Favours = "more"
    harmless: tuple[float, float] | None = None


@dataclass(frozen=True)
class Floor:
    """A value that must not fall below a share of the other's, whatever the chance."""

    metric: str
    against: str
    ours: float
    theirs: float
    least_share: float


class Finding(msgspec.Struct, frozen=True):
    """What was found of one metric. `better` is by how much ours is better, in its own units (of a calibration: how
    much nearer to 1, in logs), and lies between `low` and `high`. None: not known, or known of too few users."""

    metric: str
    against: str
    ours: float | None
    theirs: float | None
    better: float | None
    low: float | None
    high: float | None
    users: int
    worse: bool


class Verdict(msgspec.Struct, frozen=True):
    """`notes`: what could not be compared, and why."""

    outcome: Outcome
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()


def decide(comparisons: Sequence[Comparison | Floor], notes: Sequence[str] = (), *, seed: int = 0) -> Verdict:
    """Refuse where a metric is certainly worse; "not judged" where none tells anything."""
    measured = [each for each in comparisons if isinstance(each, Comparison)]
    telling = [each for each in measured if is_telling(each)]
    chance = CHANCE / max(1, len(telling))
    drawn = dict(zip(map(id, telling), bootstrap(telling, seed), strict=True))
    findings = tuple(
        _of_floor(each) if isinstance(each, Floor) else _finding(each, drawn.get(id(each)), chance)
        for each in comparisons
    )
    if not telling:
        return Verdict("not judged", findings, tuple(notes))
    return Verdict("refused" if any(each.worse for each in findings) else "passed", findings, tuple(notes))


def is_telling(comparison: Comparison) -> bool:
    """Return whether there are users enough, and values of both."""
    users = min(comparison.ours.users, comparison.theirs.users)
    return users >= LEAST_USERS and bool(
        np.isfinite(_better(comparison, comparison.ours.value, comparison.theirs.value))
    )


def bootstrap(comparisons: Sequence[Comparison], seed: int) -> list[Doubles]:
    """Return for each comparison by how much ours is better over drawn users [R]; those of equally many users are drawn
    together."""
    found: dict[int, Doubles] = {}
    for size in {len(each.ours.below) for each in comparisons}:
        mine = [each for each in comparisons if len(each.ours.below) == size]
        sums = np.stack(
            [part for each in mine for ratio in (each.ours, each.theirs) for part in (ratio.above, ratio.below)], axis=1
        )  # [U, 4 M]
        drawn = np.concatenate([times @ sums for times in _draws(size, seed)])  # [R, 4 M]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = drawn[:, 0::2] / drawn[:, 1::2]  # [R, 2 M]
            for place, each in enumerate(mine):
                found[id(each)] = _better(each, ratios[:, 2 * place], ratios[:, 2 * place + 1])
    return [found[id(each)] for each in comparisons]


def _draws(users: int, seed: int) -> Iterator[Doubles]:
    """How often each user is drawn [R, U], some draws at a time."""
    rng = np.random.default_rng([seed, users])
    rows = np.arange(DRAWN_AT_ONCE)[:, None] * users
    for _ in range(DRAWS // DRAWN_AT_ONCE):
        chosen = rows + rng.integers(0, users, (DRAWN_AT_ONCE, users))
        counts = np.bincount(chosen.ravel(), minlength=DRAWN_AT_ONCE * users)
        yield counts.reshape(DRAWN_AT_ONCE, users).astype(np.float64)


def _better(comparison: Comparison, ours: Doubles | float, theirs: Doubles | float) -> Doubles:
    mine, other = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    match comparison.favours:
        case "more":
            return np.subtract(mine, other)
        case "less":
            return np.subtract(other, mine)
        case "one":
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.subtract(np.abs(np.log(other)), np.abs(np.log(mine)))


def _finding(comparison: Comparison, drawn: Doubles | None, chance: float) -> Finding:
    ours, theirs = comparison.ours, comparison.theirs
    about = (comparison.metric, comparison.against, _known(ours.value), _known(theirs.value))
    known = np.zeros(0) if drawn is None else drawn[np.isfinite(drawn)]
    if not len(known):
        return Finding(*about, None, None, None, ours.users, worse=False)
    low, high = (float(each) for each in np.quantile(known, (chance, 1 - chance)))
    better = float(_better(comparison, ours.value, theirs.value))
    return Finding(*about, better, low, high, ours.users, worse=high < 0 and _may_be_worse(comparison))


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None  # JSON has no NaN


def _may_be_worse(comparison: Comparison) -> bool:
    ours, theirs, harmless = comparison.ours, comparison.theirs, comparison.harmless
    differing = int(np.count_nonzero(ours.above * theirs.below != theirs.above * ours.below))
    return differing >= LEAST_DIFFERING and not (harmless and harmless[0] <= ours.value <= harmless[1])


def _of_floor(floor: Floor) -> Finding:
    worse = floor.ours < floor.least_share * floor.theirs
    return Finding(
        floor.metric, floor.against, floor.ours, floor.theirs, floor.ours - floor.theirs, None, None, 0, worse
    )
