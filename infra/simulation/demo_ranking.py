"""The demo's scene about ranking: what was shown and not watched teaches the ranker, and the lists get better.

The first release has learnt from watches only, so its ranker has never seen a video that was shown and left alone. Now
people are shown lists, the join makes examples of them, and a ranker trained on these takes the place of the first one,
with the towers as they were. What it is worth is measured against the same candidates in retrieval order, of the same
people at the same moment, and by the world's own truth: the expected seconds of a video that is shown and looked at,
which nobody but a simulated world can know.

The same people are asked before and after the swap. Nobody is shown these lists, so nothing may count them as shown: a
ranker that sinks what was shown and left alone would be judged on candidates it was told nobody wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from infra.operate.progress import Step, progress_bars
from infra.operate.training import retrain_ranker
from infra.platform.settings import Kafka
from infra.simulation.demo_context import Claims, DemoContext, go_live, retrieved
from infra.simulation.simulated_traffic import now_ms, wait_for
from models.arrays import Doubles
from models.evaluation.comparison import Ratio, estimate
from nextwatch_client import Recommended
from streams import topics
from streams.kafka.follow import TopicFollower

WINDOW_S = 8.0  # an impression waits so long for its watches in the demo; people answer at once here
CANDIDATES = 500  # asked for, so that both orders are exact
SHOWN = 20  # of these people are shown so many
BUSY_PER_S = 15.0  # requests while lists are collected
CHOSEN_PER_S = 20.0  # self-chosen watches in this scene: two cores have enough to do
ENOUGH_LISTS, LISTS_WITHIN_S = 600, 60.0
VIEWERS = 120  # that the rankers are measured on
TOGETHER = 10  # requests under way while measuring


@dataclass(frozen=True)
class Measured:
    """True seconds per shown video of a viewer's list, as ranked and in retrieval order."""

    ranked_s: float
    retrieved_s: float


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


def impressions_teach_the_ranker(demo: DemoContext, claims: Claims) -> None:
    """Collect impressions, train a ranker on them, swap it in, and measure both against retrieval order."""
    console = claims.console
    console.rule("5. what was shown and not watched teaches the ranker", align="left")
    viewers = list(dict.fromkeys(demo.world.visitors(10 * VIEWERS)))[:VIEWERS]
    with progress_bars() as step, _calmer(demo):
        lists = _collect_lists(demo, step)
        manifest = retrain_ranker(demo.settings, step)
        first = measure(demo, viewers, lambda done: step("lists of the first ranker", done, VIEWERS))
        go_live(demo.settings, manifest)
        second = measure(demo, viewers, lambda done: step("lists of the re-trained ranker", done, VIEWERS))
    console.print(f"{lists} lists were shown; {WINDOW_S:g} s after each it became an example (join.window_s).")
    console.print(f"true expected seconds per shown video, the top {SHOWN} of the same {CANDIDATES} candidates:")
    against_order, over_first = over_retrieval(second), over_other(second, first)
    for what, gain in (
        ("trained on watches only, against retrieval order", over_retrieval(first)),
        ("trained on impressions, against retrieval order", against_order),
        ("trained on impressions, against the first ranker", over_first),
    ):
        console.print(f"  {what}: {gain}", highlight=False)
    claims.check(
        against_order.low > 0, f"the re-trained ranker's lists beat retrieval order ({against_order.value:+.0%})"
    )


def measure(demo: DemoContext, viewers: Sequence[str], tell: Callable[[int], None]) -> dict[str, Measured]:
    """Measure for each viewer what the live ranker's list and that of retrieval order are worth, by the world's truth.
    Those whose answer was not ranked are left out. `tell` hears how many are done."""
    measured = {}
    for start in range(0, len(viewers), TOGETHER):
        asked = viewers[start : start + TOGETHER]
        for viewer, reply in zip(asked, demo.ask_many(asked, CANDIDATES), strict=True):
            ranked = retrieved(reply)
            if len(ranked) > SHOWN:
                item_ids = [item.item_id for item in ranked]
                measured[viewer] = two_orders(ranked, demo.world.expected_seconds(viewer, item_ids, now_ms()))
        tell(start + len(asked))
    return measured


def two_orders(items: Sequence[Recommended], true_s: Doubles) -> Measured:
    """The first SHOWN of one viewer's candidates, as ranked and by retrieval score. [C], [C]"""
    scores = np.array([item.score for item in items], np.float64)
    by_score = np.argsort(-scores, kind="stable")
    return Measured(float(true_s[:SHOWN].mean()), float(true_s[by_score[:SHOWN]].mean()))


def over_retrieval(measured: dict[str, Measured]) -> Gain:
    """A ranker's lists against retrieval order."""
    return gain_of([each.ranked_s for each in measured.values()], [each.retrieved_s for each in measured.values()])


def over_other(ours: dict[str, Measured], theirs: dict[str, Measured]) -> Gain:
    """A ranker's lists against another's, of the viewers that both answered."""
    both = [viewer for viewer in ours if viewer in theirs]
    return gain_of([ours[viewer].ranked_s for viewer in both], [theirs[viewer].ranked_s for viewer in both])


def gain_of(ours_s: Sequence[float], theirs_s: Sequence[float]) -> Gain:
    """The gain over V viewers' numbers. Its interval is a bootstrap over viewers, both numbers of a viewer together.

    Raises ValueError when there are none."""
    if not ours_s:
        raise ValueError("no viewer's answer was ranked: `nextwatch status` says whether a server is behind")
    ours, theirs = np.array(ours_s), np.array(theirs_s)
    ratio = estimate(Ratio(ours, theirs))
    return Gain(float(ours.mean()), float(theirs.mean()), ratio.low - 1, ratio.high - 1, len(ours))


def _collect_lists(demo: DemoContext, step: Step) -> int:
    """Let people ask more often until enough lists have become examples; how many did. Raises TimeoutError for none."""
    before, asked = _examples(demo.settings.kafka), demo.traffic.requests_per_s

    def closed() -> int:
        lists = _examples(demo.settings.kafka) - before
        step("lists shown and closed", min(lists, ENOUGH_LISTS), ENOUGH_LISTS)
        return lists

    demo.traffic.requests_per_s = BUSY_PER_S
    try:
        wait_for(lambda: closed() >= ENOUGH_LISTS, LISTS_WITHIN_S, every_s=1.0)
    finally:
        demo.traffic.requests_per_s = asked
    if not (lists := closed()):
        raise TimeoutError(f"no impression became an example in {LISTS_WITHIN_S:.0f} s: is the join worker running?")
    return lists


def _examples(kafka: Kafka) -> int:
    """Number of ranking examples that there have been."""
    with TopicFollower(kafka, topics.RANKING_EXAMPLES) as follower:
        return sum(follower.ends().values())


@contextmanager
def _calmer(demo: DemoContext) -> Iterator[None]:
    """Fewer self-chosen watches meanwhile."""
    usual, demo.world.events_per_s = demo.world.events_per_s, CHOSEN_PER_S
    try:
        yield
    finally:
        demo.world.events_per_s = usual
