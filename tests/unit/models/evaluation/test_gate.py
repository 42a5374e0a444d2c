"""The verdict of the gate: refused is what is certainly worse, by any one of the metrics, and luck alone seldom is."""

import numpy as np
import pytest

from models.evaluation.comparison import Ratio
from models.evaluation.gate import (
    CHANCE,
    LEAST_DIFFERING,
    LEAST_USERS,
    Comparison,
    Floor,
    bootstrap,
    decide,
    is_telling,
)

USERS, TRIALS = 150, 120


def hits(share: float, rng: np.random.Generator, users: int = USERS) -> Ratio:
    return Ratio((rng.random(users) < share).astype(np.float64), np.ones(users))


def exactly(hit: int, users: int = USERS) -> Ratio:
    return Ratio((np.arange(users) < hit).astype(np.float64), np.ones(users))


def test_what_is_certainly_worse_is_refused_with_by_how_much_and_what_may_be_equal_passes():
    verdict = decide([Comparison("recall@10", "live", exactly(30), exactly(75))])
    (finding,) = verdict.findings
    assert verdict.outcome == "refused" and finding.worse
    assert (finding.ours, finding.theirs, finding.better) == (0.2, 0.5, pytest.approx(-0.3))
    assert finding.low < -0.3 < finding.high < 0
    assert decide([Comparison("recall@10", "live", exactly(72), exactly(75))]).outcome == "passed", "3 of 150 users"
    assert decide([Comparison("recall@10", "live", exactly(75), exactly(30))]).outcome == "passed", "better is no sin"


def test_one_metric_that_is_worse_refuses_whatever_the_others_say():
    good = Comparison("recall@100", "live", exactly(140), exactly(30))
    loss = Comparison("loss", "live", exactly(90), exactly(30), "less")
    verdict = decide([good, loss])
    assert verdict.outcome == "refused" and [each.worse for each in verdict.findings] == [False, True]
    assert decide([good, Comparison("loss", "live", exactly(30), exactly(90), "less")]).outcome == "passed"


@pytest.mark.parametrize(("share", "alike"), [(0.03, 0.0), (0.2, 0.8), (0.6, 0.0)])
def test_an_equal_release_is_refused_in_five_of_a_hundred_trials_at_most(share: float, alike: float):
    """A/A: two releases, equally good by four metrics, that hit the same for a share of the users or for none."""
    refused = 0
    for trial in range(TRIALS):
        rng = np.random.default_rng([trial, int(100 * share)])
        comparisons = []
        for metric in range(4):
            theirs = hits(share, rng)
            same = rng.random(USERS) < alike
            ours = Ratio(np.where(same, theirs.above, hits(share, rng).above), theirs.below)
            comparisons.append(Comparison(f"metric {metric}", "live", ours, theirs))
        refused += decide(comparisons, seed=trial).outcome == "refused"
    allowed = CHANCE * TRIALS + 2 * (TRIALS * CHANCE * (1 - CHANCE)) ** 0.5
    assert refused <= allowed, f"{refused} of {TRIALS}"


def test_a_release_that_is_half_as_good_is_nearly_always_refused():
    refused = 0
    for trial in range(30):
        rng = np.random.default_rng(trial)
        refused += decide([Comparison("recall@10", "live", hits(0.2, rng), hits(0.4, rng))]).outcome == "refused"
    assert refused >= 27


def test_more_metrics_make_the_gate_no_stricter():
    one = Comparison("recall@10", "live", exactly(30), exactly(40))
    alone = decide([one]).findings[0]
    among = decide([one] + [Comparison(f"m{n}", "live", exactly(40), exactly(40)) for n in range(9)]).findings[0]
    assert among.low < alone.low < alone.high < among.high


def test_too_few_users_tell_nothing():
    few = Comparison("recall@10", "live", exactly(0, LEAST_USERS - 1), exactly(50, LEAST_USERS - 1))
    verdict = decide([few], ["why"])
    assert not is_telling(few) and verdict.outcome == "not judged" and verdict.notes == ("why",)
    assert verdict.findings[0].low is None and not verdict.findings[0].worse
    enough = Comparison("recall@10", "live", exactly(0, LEAST_USERS), exactly(50, LEAST_USERS))
    assert decide([enough]).outcome == "refused"


def test_two_that_differ_for_a_handful_of_users_are_no_different():
    """A bootstrap in which nine of nine speak for one side is surer than nine tosses of a coin are."""
    ours = exactly(0, 1000)
    few, more = (Comparison("recall@10", "live", ours, exactly(count, 1000)) for count in (LEAST_DIFFERING - 1, 30))
    assert decide([few]).outcome == "passed" and decide([more]).outcome == "refused"


def test_a_calibration_is_worse_where_it_is_farther_from_one_and_harmful():
    watched = np.full(USERS, 10.0)
    good, low, high = (Ratio(share * watched, watched) for share in (1.0, 0.5, 1.9))

    def verdict(ours: Ratio, theirs: Ratio) -> str:
        return decide([Comparison("calibration", "live", ours, theirs, "one", (0.7, 1.4))]).outcome

    assert verdict(high, good) == verdict(low, good) == "refused"
    assert verdict(high, low) == "passed", "it promises too much by less than the other promises too little"
    assert verdict(Ratio(1.3 * watched, watched), good) == "passed", "that is corrected as it goes"


def test_a_collapse_of_coverage_refuses_and_a_change_does_not():
    recall = Comparison("recall@10", "live", exactly(40), exactly(40))
    assert decide([recall, Floor("coverage", "live", 0.04, 0.5, 0.5)]).outcome == "refused"
    assert decide([recall, Floor("coverage", "live", 0.3, 0.5, 0.5)]).outcome == "passed"


def test_users_are_drawn_once_for_both_so_that_what_they_share_cancels():
    rng = np.random.default_rng(1)
    watched = rng.uniform(1, 100, USERS)
    ours, theirs = Ratio(watched * 0.9, np.ones(USERS)), Ratio(watched, np.ones(USERS))
    (drawn,) = bootstrap([Comparison("seconds", "live", ours, theirs)], seed=1)
    apart = np.sqrt(2) * watched.std() / np.sqrt(USERS)
    assert drawn.std() == pytest.approx(0.1 * watched.std() / np.sqrt(USERS), rel=0.1) and drawn.std() < apart / 5


def test_the_same_seed_gives_the_same_verdict():
    rng = np.random.default_rng(1)
    comparison = Comparison("recall@10", "live", hits(0.3, rng), hits(0.3, rng))
    assert decide([comparison], seed=3) == decide([comparison], seed=3) != decide([comparison], seed=4)
