"""What is said of an experiment, from the lists that its viewers were shown."""

from typing import Any

import numpy as np
import pytest

from infra.operate.experiments.parts import ExamplePart, ImpressionPart, ShownPart
from infra.operate.experiments.report import Between, ExperimentReport, report_of
from infra.operate.experiments.viewers import HOUR_MS, Viewers
from streams.messages import Assigned, Experiment, Outcome, Variant

HOURS, WINDOW_MS, BEGAN_MS = 2.0, 60_000, 1_000_000
LONG_AFTER_MS = BEGAN_MS + 100 * HOUR_MS


def experiment(**changes: Any) -> Experiment:
    variants = (Variant("control", 0.5), Variant("new", 0.5, {"serving.fresh": 3}))
    return Experiment("one", "salt", BEGAN_MS, **({"variants": variants, "hours": HOURS, "viewers": 1000} | changes))


class World:
    """Shows lists and closes them, as serving and the join write them. `offset` counts the lists."""

    def __init__(self, of: Experiment) -> None:
        self.viewers, self.of, self.offset = Viewers(of, WINDOW_MS), of, 0

    def show(self, user: str, variant: str, *seconds: float, at_ms: int = BEGAN_MS, **more: Any) -> int:
        """A list of as many items as `seconds`; its offset. `more`: took_ms, degraded, revision, offset, teams."""
        offset = more.get("offset", self.offset)
        self.offset = max(self.offset, offset) + 1
        teams = more.get("teams", [""] * len(seconds))
        items = tuple(ShownPart(f"item-{at}", team) for at, team in enumerate(teams))
        assigned = Assigned(more.get("of", "one"), variant, more.get("took_ms", 10.0), more.get("degraded", False))
        impression = ImpressionPart(user, at_ms, items, assigned)
        outcomes = tuple(Outcome(item.item_id, each, False) for item, each in zip(items, seconds, strict=True))
        self.viewers.shown(impression, 0)
        self.viewers.closed(ExamplePart(impression, outcomes, 0, offset, at_ms + WINDOW_MS, more.get("revision", 0)))
        return offset

    def go_on_until(self, at_ms: int) -> None:
        """The join closes a list of somebody who is in no experiment."""
        self.viewers.closed(ExamplePart(ImpressionPart("other", at_ms, ()), (), 0, self.offset, at_ms))

    def report(self, effect: float = 0.1, *, is_cut: bool = False) -> ExperimentReport:
        return report_of(self.of, self.viewers, effect, is_cut=is_cut)


def test_a_viewer_is_the_seconds_of_the_lists_within_the_hours_after_the_first():
    world = World(experiment())
    world.show("ann", "new", 1.0, 2.0)
    world.show("ann", "new", 10.0, at_ms=BEGAN_MS + HOUR_MS)
    world.show("ann", "new", 100.0, at_ms=BEGAN_MS + 2 * HOUR_MS)
    world.show("bob", "control", 0.0)
    world.show("eve", "control", 7.0, of="another")
    world.go_on_until(LONG_AFTER_MS)
    assert world.viewers.finished() == {"ann": 13.0, "bob": 0.0}


def test_what_was_left_running_counts_for_no_more_than_the_cap_of_the_list():
    world = World(experiment())
    world.show("ann", "new", 80_000.0, 1.0)
    world.go_on_until(LONG_AFTER_MS)
    assert world.viewers.finished() == {"ann": 601.0}


def test_a_viewer_counts_only_when_the_last_list_that_counts_is_closed():
    world = World(experiment())
    world.show("ann", "new", 5.0)
    ends_ms = int(BEGAN_MS + HOURS * HOUR_MS)
    world.go_on_until(ends_ms + WINDOW_MS - 1)
    assert world.viewers.finished() == {}
    world.go_on_until(ends_ms + WINDOW_MS)
    assert world.viewers.finished() == {"ann": 5.0}


def test_who_was_cut_short_by_the_stop_does_not_count():
    world = World(experiment(stopped_ms=int(BEGAN_MS + 1.5 * HOURS * HOUR_MS)))
    world.show("ann", "new", 5.0)
    world.show("bob", "new", 5.0, at_ms=int(BEGAN_MS + HOURS * HOUR_MS))
    world.go_on_until(LONG_AFTER_MS)
    assert world.viewers.finished() == {"ann": 5.0}


def test_a_list_that_was_corrected_or_is_there_twice_counts_once_as_the_highest_revision_says():
    world = World(experiment())
    offset = world.show("ann", "new", 5.0, revision=3)
    world.show("ann", "new", 8.0, revision=9, offset=offset)
    world.show("ann", "new", 5.0, revision=3, offset=offset)
    world.go_on_until(LONG_AFTER_MS)
    assert world.viewers.finished() == {"ann": 8.0}


def crowd(world: World, better: float = 0.0, viewers: int = 600, **of_new: Any) -> World:
    rng = np.random.default_rng(1)
    for number in range(viewers):
        variant = ("control", "new")[number % 2]
        seconds = float(rng.exponential(10.0)) + (better if variant == "new" else 0.0)
        world.show(f"u{number}", variant, seconds, **(of_new if variant == "new" else {}))
    world.go_on_until(LONG_AFTER_MS)
    return world


@pytest.mark.parametrize(("better", "verdict"), [(0.0, "open"), (4.0, "better"), (-4.0, "worse")])
def test_the_verdict_follows_the_interval(better: float, verdict: str):
    control, new = crowd(World(experiment()), better).report().variants
    assert (control.verdict, new.verdict) == ("control", verdict)
    assert control.better_s.value is None and new.better_s.low is not None and new.better_s.high is not None
    assert new.better_s.low < better < new.better_s.high
    assert new.better_s.value == pytest.approx(new.watch_s - control.watch_s)
    assert (new.viewers, new.finished) == (300, 300)


def test_with_few_viewers_nothing_is_said_and_nothing_is_predicted():
    report = crowd(World(experiment()), 50.0, viewers=100).report()
    assert report.variants[1].verdict == "open" and report.variants[1].better_s.value is None
    assert report.needed is None and not report.broken


def test_the_viewers_that_an_effect_needs_are_told_from_what_was_seen():
    """By the intervals that are told: several variants share the error, and they are narrowest about those planned."""
    three = tuple(Variant(name, 1 / 3) for name in ("control", "new", "third"))
    needed = {}
    for name, changes in (("one", {}), ("far", {"viewers": 50}), ("shared", {"variants": three})):
        world = crowd(World(experiment(**changes)))
        small, large = world.report(0.05).needed, world.report(0.1).needed
        assert small is not None and large is not None and 3.9 * large < small < 5 * large
        needed[name] = small
    assert needed["far"] > 1.05 * needed["one"] and needed["shared"] > 1.05 * needed["one"]


def test_a_guard_rail_fails_only_for_certain_and_beyond_what_is_allowed():
    rails = {"slower_ms": 20.0, "more_fallbacks": 0.1}
    assert not crowd(World(experiment(**rails)), took_ms=25.0).report().broken, "15 ms more are allowed"
    assert not crowd(World(experiment()), took_ms=90.0, degraded=True).report().broken, "there is no rail"
    assert not crowd(World(experiment(**rails)), viewers=100, took_ms=90.0).report().broken, "too few to know"
    assert crowd(World(experiment(**rails)), took_ms=40.0).report().broken == "new: slower by 30 ms, 20 allowed"
    fallen = crowd(World(experiment(**rails)), degraded=True).report()
    assert fallen.broken == "new: fallbacks more by 100.0%, 10.0% allowed"
    assert fallen.variants[1].fallbacks == 1.0 and fallen.variants[0].fallbacks == 0.0


def test_a_guard_rail_that_may_still_hold_does_not_fail():
    world, rng = World(experiment(slower_ms=20.0)), np.random.default_rng(3)
    for number in range(400):
        took_ms = float(rng.exponential(100.0)) + 30.0 * (number % 2)
        world.show(f"u{number}", ("control", "new")[number % 2], 1.0, took_ms=took_ms)
    slower = world.report().variants[1].slower_ms
    assert slower.value is not None and slower.low is not None and slower.value > 20.0 > slower.low
    assert not world.report().broken


def test_where_viewers_are_missing_from_a_variant_it_is_told_and_nothing_concluded():
    world = World(experiment())
    for number in range(900):
        world.show(f"u{number}", "control" if number % 3 else "new", 1.0 if number % 3 else 5.0)
    world.go_on_until(LONG_AFTER_MS)
    report = world.report()
    assert report.sample_ratio_off and report.broken == "the sample ratio is off"
    assert report.variants[1].better_s.low == 4.0 and report.variants[1].verdict == "open", "nothing may be concluded"


def test_once_first_lists_have_expired_nothing_is_concluded_and_nothing_breaks():
    world = crowd(World(experiment(slower_ms=20.0)), 4.0, took_ms=90.0)
    for number in range(400):  # and the ratio is off
        world.show(f"more-{number}", "new", 9.0)
    kept, cut = world.report(), world.report(is_cut=True)
    assert kept.sample_ratio_off and kept.variants[1].failed and not kept.problems
    assert not cut.broken and not cut.sample_ratio_off and cut.needed is None
    assert [each.verdict for each in cut.variants] == ["control", "open"]
    assert cut.variants[1].better_s == cut.variants[1].slower_ms == Between()
    assert "no longer kept (kafka.retention_h)" in cut.problems[0]


def test_an_interleaved_one_tells_whose_picks_are_watched():
    variants = (Variant("control", 0.5), Variant("new", 0.5, {"serving.ranker": False}))
    world, rng = World(experiment(variants=variants, interleaved=True)), np.random.default_rng(2)
    for number in range(300):
        ours, theirs = rng.exponential(12.0), rng.exponential(6.0)
        world.show(f"u{number}", "", float(theirs), float(ours), 3.0, teams=["control", "new", ""])
    world.go_on_until(LONG_AFTER_MS)
    report = world.report()
    assert report.verdict == "new is preferred" and not report.broken
    assert report.preferred_s.value == pytest.approx(6.0, abs=2.0)
    cut = world.report(is_cut=True)
    assert cut.verdict == cut.variants[0].verdict == "open" and cut.preferred_s == Between() and cut.problems


def test_several_variants_share_the_error_that_one_has():
    three = tuple(Variant(name, 1 / 3) for name in ("control", "new", "third"))
    widths = []
    for variants in (experiment().variants, three):
        found = crowd(World(experiment(variants=variants))).report().variants[1].better_s
        assert found.low is not None and found.high is not None
        widths.append(found.high - found.low)
    assert widths[1] > widths[0] * 1.05
