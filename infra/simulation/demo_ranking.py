"""The demo's scene about ranking: what the ranker's lists are worth, by the world's own truth.

That is the expected seconds of a video that is shown and looked at, which nobody but a simulated world can know.

Beside it, of the same candidates of the same people at the same moment: retrieval order, which knows nothing of
seconds, and retrieval order times the video's duration, which is what anybody would try first.

Nobody is shown these lists, so nothing may count them as shown: a ranker that sinks what was shown and left alone would
be judged on candidates it was told nobody wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from infra.operate.progress import progress_bars
from infra.simulation.demo_context import CANDIDATES, SHOWN, Claims, DemoContext, retrieved
from infra.simulation.simulated_traffic import now_ms
from models.arrays import Doubles
from models.evaluation.comparison import Ratio, estimate
from nextwatch_client import Recommended

VIEWERS = 120  # that the ranker is measured on
TOGETHER = 10  # requests under way while measuring


@dataclass(frozen=True)
class Measured:
    """True seconds per shown video of a viewer's list: as ranked, in retrieval order, and that times duration."""

    ranked_s: float
    retrieved_s: float
    longest_s: float


@dataclass(frozen=True)
class Gain:
    """Worth of one kind of lists over another, as a share, with its 95 % interval over `viewers`."""

    ours_s: float
    theirs_s: float
    low: float
    high: float
    viewers: int

    @property
    def value(self) -> float:
        return self.ours_s / self.theirs_s - 1

    def __str__(self) -> str:
        return (
            f"{self.ours_s:.2f} s against {self.theirs_s:.2f} s, "
            f"{self.value:+.0%} [{self.low:+.0%}, {self.high:+.0%}], {self.viewers} viewers"
        )


def the_ranker_is_worth_seconds(demo: DemoContext, claims: Claims) -> None:
    """Claim that its lists beat both other orders."""
    console = claims.console
    console.rule("3. what the ranker is worth", align="left")
    viewers = list(dict.fromkeys(demo.world.visitors(10 * VIEWERS)))[:VIEWERS]
    with progress_bars() as step:
        measured = measure(demo, viewers, lambda done: step("lists", done, VIEWERS)).values()
    console.print(f"true expected seconds per shown video, the top {SHOWN} of the same {CANDIDATES} candidates:")
    ranked_s = [each.ranked_s for each in measured]
    orders = {
        "retrieval order": [each.retrieved_s for each in measured],
        "retrieval order times duration": [each.longest_s for each in measured],
    }
    for name, theirs_s in orders.items():
        gain = gain_of(ranked_s, theirs_s)
        claims.check(gain.low > 0, f"the ranker's lists against {name}: {gain}")


def measure(demo: DemoContext, viewers: Sequence[str], tell: Callable[[int], None]) -> dict[str, Measured]:
    """Measure for each viewer what the live ranker's list and the other orders are worth, by the world's truth. Those
    whose answer was not ranked are left out. `tell` hears how many are done."""
    measured, durations_s = {}, demo.durations_s()
    for start in range(0, len(viewers), TOGETHER):
        asked = viewers[start : start + TOGETHER]
        for viewer, reply in zip(asked, demo.ask_many(asked, CANDIDATES), strict=True):
            ranked = retrieved(reply)
            if len(ranked) > SHOWN:
                item_ids = [item.item_id for item in ranked]
                true_s = demo.world.expected_seconds(viewer, item_ids, now_ms())
                measured[viewer] = three_orders(ranked, durations_s, true_s)
        tell(start + len(asked))
    return measured


def three_orders(items: Sequence[Recommended], durations_s: Mapping[str, float], true_s: Doubles) -> Measured:
    """The first SHOWN of one viewer's C candidates: as ranked, by retrieval score, and by it (as a chance) times
    duration. true_s [C]"""
    scores = np.array([-np.inf if item.score is None else item.score for item in items], np.float64)
    duration_s = np.array([durations_s.get(item.item_id, 0.0) for item in items], np.float64)
    by_score = np.argsort(-scores, kind="stable")
    by_both = np.argsort(-np.exp(scores - scores.max()) * duration_s, kind="stable")
    tops = (true_s[:SHOWN], true_s[by_score[:SHOWN]], true_s[by_both[:SHOWN]])
    return Measured(*(float(top.mean()) for top in tops))


def gain_of(ours_s: Sequence[float], theirs_s: Sequence[float]) -> Gain:
    """The gain over V viewers' numbers. Its interval is a bootstrap over viewers, both numbers of a viewer together.

    Raises ValueError when there are none."""
    if not ours_s:
        raise ValueError("no viewer's answer was ranked: `nextwatch status` says whether a server is behind")
    ours, theirs = np.array(ours_s), np.array(theirs_s)
    ratio = estimate(Ratio(ours, theirs))
    return Gain(float(ours.mean()), float(theirs.mean()), ratio.low - 1, ratio.high - 1, len(ours))
