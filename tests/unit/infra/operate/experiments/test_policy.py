"""Policies, evaluated on lists as serving and the join write them; refused where nothing was drawn."""

from collections.abc import Sequence

import numpy as np
import pytest

from infra.operate.experiments.parts import ExamplePart, ImpressionPart, ShownPart
from infra.operate.experiments.policy import DrawnLists, PolicyRefused, PolicyReport, report_of
from streams.messages import Outcome, Pool

EXPECTED = np.array([1.0, 2.0, 4.0, 8.0, 3.0, 6.0])  # what the ranker says of the pool
WORTH = EXPECTED * 1.5 + 1  # what it brings
DRAWN = np.array([0.3, 0.2, 0.15, 0.1, 0.15, 0.1])  # given that a place is drawn
CHANCE = 0.2
POOL = Pool(len(EXPECTED), CHANCE, 8.0, float(EXPECTED.sum()), float((EXPECTED**2).sum()))


def shown(
    *items: tuple[float | None, float | None],
    seconds: Sequence[float] = (),
    pool: Pool | None = POOL,
    offset: int = 0,
    revision: int = 0,
    ranked_by: str = "",
) -> ExamplePart:
    parts = tuple(ShownPart("", "", expected, probability) for expected, probability in items)
    outcomes = tuple(Outcome("", each, False) for each in seconds or [0.0] * len(items))
    return ExamplePart(
        ImpressionPart(f"u{offset % 50}", 1, parts, None, pool, ranked_by=ranked_by), outcomes, 0, offset, 0, revision
    )


def world(lists: int = 4000) -> PolicyReport:
    """Lists of one place that was drawn and one that was not."""
    rng, known = np.random.default_rng(1), DrawnLists()
    for offset in range(lists):
        item = rng.choice(len(DRAWN), p=DRAWN)
        seconds = float(rng.normal(WORTH[item], 1.0))
        items = [(float(EXPECTED[item]), float(DRAWN[item] * CHANCE)), (9.0, None)]
        known.add(shown(*items, seconds=[seconds, 1000.0], offset=offset))
    return report_of(known.places(), len(known))


def test_each_policy_is_worth_what_it_is_worth():
    report = world()
    truth = {"uniform": WORTH.mean(), "expected": float(EXPECTED / EXPECTED.sum() @ WORTH), "best": float(WORTH[3])}
    assert (report.lists, report.places, report.viewers) == (4000, 4000, 50)
    assert report.logged.value == pytest.approx(DRAWN @ WORTH, rel=0.05)
    for each in report.policies:
        for estimate in (each.snips, each.doubly_robust):
            assert estimate.value == pytest.approx(truth[each.policy], rel=0.08)
    tried = {each.policy: each.effective_places for each in report.policies}
    assert tried["best"] == pytest.approx(0.1 * 4000, rel=0.1) and tried["uniform"] > 2 * tried["best"]


def test_a_policy_that_was_hardly_tried_says_so():
    assert [each.hardly_tried for each in world(300).policies] == [False, False, True]


def test_of_a_list_that_is_there_again_the_highest_revision_counts_once():
    known = DrawnLists()
    for revision, seconds in ((0, 1.0), (5, 7.0), (0, 1.0)):
        known.add(shown((2.0, 0.1), seconds=[seconds], revision=revision))
    assert [place.watched_s for place in known.places()] == [7.0]


def test_what_a_rival_ranked_is_left_out():
    known = DrawnLists()
    known.add(shown((2.0, 0.1), seconds=[7.0]))
    known.add(shown((9.0, 0.1), seconds=[1.0], offset=1, ranked_by="v2"))
    assert [place.expected_s for place in known.places()] == [2.0] and len(known) == 1


def test_what_was_left_running_counts_for_no_more_than_the_cap_of_the_list():
    known = DrawnLists()
    known.add(shown((2.0, 0.1), seconds=[80_000.0]))
    assert [place.watched_s for place in known.places()] == [600.0]


@pytest.mark.parametrize(
    ("lists", "says"),
    [
        ([], "no ranking example"),
        ([shown((2.0, None)), shown((3.0, None), offset=1)], "exploration was off: of 2 lists no place"),
        (
            [shown((2.0, 0.1), ranked_by="v2")] * 2 + [shown((2.0, 0.1), offset=1, ranked_by="v2")],
            "all 2 lists .* rival",
        ),
        ([shown((2.0, 0.1), pool=None)], "no list says of what"),
        ([shown((None, 0.1))], "no list says of what"),
    ],
)
def test_without_probabilities_it_is_refused_with_the_reason(lists: list[ExamplePart], says: str):
    known = DrawnLists()
    for each in lists:
        known.add(each)
    with pytest.raises(PolicyRefused, match=says):
        known.places()
