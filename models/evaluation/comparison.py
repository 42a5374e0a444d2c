"""Numbers with their errors, and differences that were measured on the same queries.

Two recommenders judged on the same queries share most of their luck, so a difference is taken query by query. Queries
of one user are not independent: where a user has several (the live walk), errors are those of users, not of queries
(cluster-robust). Intervals are 95 %, by Student's t with users minus one degrees of freedom.

Ratios of sums have no such formula: users are drawn (bootstrap, seeded), and two rankers are compared on the same
draws, so that what they share cancels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from models.arrays import Array, Doubles, Rows

CONFIDENCE = 0.95
RESAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` queries and its standard error (0 queries: both NaN)."""

    value: float
    se: float
    n: int

    def __str__(self) -> str:
        return f"{short(self.value)} ({short(self.se)})"


@dataclass(frozen=True)
class Interval:
    """A value or a difference and its standard error; it lies between `low` and `high` with CONFIDENCE."""

    value: float
    se: float
    low: float
    high: float

    @property
    def is_significant(self) -> bool:
        """Return whether 0 is outside the interval of a difference."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{signed(self.value)} [{signed(self.low)}, {signed(self.high)}]"


@dataclass(frozen=True)
class Difference(Interval):
    """`ours` minus `theirs` in recall@k, over the same queries. `won` and `lost` count the queries that only one of the
    two hit; `z` is McNemar's (won - lost) / sqrt(won + lost) where each query is its own cluster, and the difference
    over its cluster-robust error in general."""

    ours: str
    theirs: str
    k: int
    z: float
    n: int
    clusters: int
    won: int
    lost: int


def mean(values: npt.ArrayLike, clusters: Rows | None = None) -> Estimate:
    """Mean and its standard error; `clusters` int64 [n] says which values belong together."""
    sample = np.asarray(values, np.float64)
    if not len(sample):
        return Estimate(np.nan, np.nan, 0)
    return Estimate(float(sample.mean()), _error(sample, clusters)[0], len(sample))


def hits(ranks: Rows, k: int) -> Doubles:
    """float64 [n]: 1 where the rank (from 0, negative for a miss) is among the first k."""
    return ((ranks >= 0) & (ranks < k)).astype(np.float64)


def recall(ranks: Rows, k: int, clusters: Rows | None = None) -> Estimate:
    return mean(hits(ranks, k), clusters)


def reciprocal_rank(ranks: Rows, clusters: Rows | None = None) -> Estimate:
    """Mean of 1 / rank from 1, 0 for a miss."""
    return mean(np.where(ranks >= 0, 1 / (np.maximum(ranks, 0) + 1.0), 0.0), clusters)


def log_rank(ranks: Rows, clusters: Rows | None = None) -> Estimate:
    """Mean of log2 of the rank from 1, over the items that could be ranked. Every query counts, not only those near
    some k."""
    known = ranks >= 0
    return mean(np.log2(ranks[known] + 1.0), None if clusters is None else clusters[known])


def paired(ours: tuple[str, Rows], theirs: tuple[str, Rows], k: int, clusters: Rows | None = None) -> Difference:
    """The difference of two (name, ranks) in recall@k. Raises ValueError when they are not of the same queries."""
    (our_name, our_ranks), (their_name, their_ranks) = ours, theirs
    if len(our_ranks) != len(their_ranks):
        raise ValueError(f"{our_name} has {len(our_ranks)} queries and {their_name} {len(their_ranks)}")
    each = hits(our_ranks, k) - hits(their_ranks, k)
    won, lost = int((each > 0).sum()), int((each < 0).sum())
    estimate = mean(each, clusters)
    groups = _error(each, clusters)[1] if len(each) else 0
    reach = float(stdtrit(groups - 1, (1 + CONFIDENCE) / 2)) * estimate.se if groups > 1 else np.nan
    z = estimate.value / estimate.se if estimate.se > 0 else 0.0
    if clusters is None and won + lost:
        z = (won - lost) / (won + lost) ** 0.5
    interval = (estimate.value, estimate.se, estimate.value - reach, estimate.value + reach)
    return Difference(*interval, our_name, their_name, k, z, len(each), groups, won, lost)


def mean_interval(values: npt.ArrayLike) -> Interval:
    """The mean of one value a user, as an interval."""
    estimate = mean(values)
    reach = float(stdtrit(estimate.n - 1, (1 + CONFIDENCE) / 2)) * estimate.se if estimate.n > 1 else np.nan
    return Interval(estimate.value, estimate.se, estimate.value - reach, estimate.value + reach)


@dataclass(frozen=True)
class Slice:
    """One point of a curve: the queries with low <= value < high."""

    low: float
    high: float
    estimate: Estimate


def recall_within(
    ranks: Rows, k: int, by: npt.ArrayLike, edges: Sequence[float], clusters: Rows | None = None
) -> list[Slice]:
    """recall@k in each bin of `by` [n] between neighbouring edges (the last bin includes its end); empty ones are left
    out."""
    places = bins(np.asarray(by, np.float64), edges)
    points = []
    for place in range(len(edges) - 1):
        mine = places == place
        if mine.any():
            part = None if clusters is None else clusters[mine]
            points.append(Slice(edges[place], edges[place + 1], recall(ranks[mine], k, part)))
    return points


def bins(values: Doubles, edges: Sequence[float]) -> Rows:
    """int64 [n]: the bin of each value, -1 for those outside or NaN."""
    if len(edges) < 2:
        return np.full(len(values), -1)
    places = np.searchsorted(edges, values, side="right") - 1
    places = np.where(values == edges[-1], len(edges) - 2, places)
    return np.where(np.isnan(values) | (places > len(edges) - 2), -1, places)


def even_edges(values: Doubles, most: int) -> list[float]:
    """At most `most` bins with about as many values in each; fewer where values are equal or there are none."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return []
    edges = np.unique(np.quantile(finite, np.linspace(0, 1, most + 1), method="nearest"))
    return edges.tolist() if len(edges) > 1 else [float(edges[0]), float(np.nextafter(edges[0], np.inf))]


def short(value: float) -> str:
    """.106 for 0.106, as tables of shares are read."""
    text = f"{value:.3f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def signed(value: float) -> str:
    return short(value) if value < 0 else f"+{short(value)}"


def _error(sample: Doubles, clusters: Rows | None) -> tuple[float, int]:
    """Standard error of the mean and the number of clusters; NaN where one cluster is all there is."""
    away = sample - sample.mean()
    if clusters is not None:
        away = np.bincount(np.unique(clusters, return_inverse=True)[1], away)  # [G] sums
    groups = len(away)
    if groups < 2:
        return float("nan"), groups
    return float(np.sqrt(np.square(away).sum() * groups / (groups - 1)) / len(sample)), groups


@dataclass(frozen=True)
class Ratio:
    """above and below float64 [U]: each user's part of the two sums. `scale`: of the error, 2 for shares of pairs, in
    which each pair stands in the sums of both its rows."""

    above: Doubles
    below: Doubles
    scale: float = 1.0

    @property
    def value(self) -> float:
        total = self.below.sum()
        return float(self.above.sum() / total) if total else float("nan")

    @property
    def users(self) -> int:
        """The users that have a part in it."""
        return int(np.count_nonzero(self.below))


def ratio_of(users: int, user: Rows, above: Array, below: Array, scale: float = 1.0) -> Ratio:
    """Sum up parts [N] by user; user int64 [N]: the owner of each, of `users` in all."""
    sums = [np.bincount(user, np.asarray(part, np.float64), minlength=users) for part in (above, below)]
    return Ratio(sums[0].astype(np.float64), sums[1].astype(np.float64), scale)


def estimate(ratio: Ratio, seed: int = 0) -> Interval:
    """Return the ratio with the error of drawing users."""
    return _summed_up(ratio.value, _draws(ratio, seed) - ratio.value, ratio.scale)


def difference(ours: Ratio, theirs: Ratio, seed: int = 0) -> Interval:
    """Ours minus theirs, on the same users. Raises ValueError when they are not of the same users."""
    if len(ours.below) != len(theirs.below):
        raise ValueError(f"{len(ours.below)} users are not the same as {len(theirs.below)}")
    value = ours.value - theirs.value
    return _summed_up(value, _draws(ours, seed) - _draws(theirs, seed) - value, ours.scale)


def _draws(ratio: Ratio, seed: int) -> Doubles:
    """[R]: the ratio over users drawn with replacement."""
    rng = np.random.default_rng(seed)
    size = len(ratio.below)
    found = np.empty(RESAMPLES)
    for draw in range(RESAMPLES):
        times = np.bincount(rng.integers(0, size, size), minlength=size) if size else np.zeros(0)
        below = times @ ratio.below
        found[draw] = times @ ratio.above / below if below else np.nan
    return found


def _summed_up(value: float, away: Doubles, scale: float) -> Interval:
    known = away[np.isfinite(away)] * scale
    if not len(known):
        return Interval(value, float("nan"), float("nan"), float("nan"))
    low, high = np.quantile(known, (0.025, 0.975))
    return Interval(value, float(known.std()), value + float(low), value + float(high))
