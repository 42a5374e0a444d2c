"""Which experiment runs, what its variants may change, and who is served by what."""

from typing import Any

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from infra.platform.settings import Selection, Serving
from streams.experiments import KEY, Experiments, ExperimentUnfit, plans_of, problem_of, releases_of
from streams.kafka.releases import key_of
from streams.messages import BundlePublished, Experiment, Variant, encode

SERVING, SELECTION = Serving(fresh=7, k=13), Selection(channel_cap=3)
CONTROL, DRAWN = Variant("control", 0.5), Variant("drawn", 0.5, {"selection.explore": 0.1, "serving.fresh": 0})
USERS = [f"u{number}" for number in range(400)]


def experiment(*variants: Variant, name: str = "one", started_ms: int = 1000, **more: Any) -> Experiment:
    return Experiment(name, "salt", started_ms, variants or (CONTROL, DRAWN), **more)


def hear(known: Experiments, each: Experiment) -> None:
    assert known.hear(key_of(each).encode(), encode(each))


def test_one_runs_until_it_is_stopped_and_of_two_the_one_that_began_first():
    known = Experiments()
    assert known.running is None
    hear(known, experiment(name="late", started_ms=2000))
    hear(known, experiment(name="early"))
    assert known.running is not None and known.running.name == "early"
    hear(known, experiment(name="early", stopped_ms=3000))
    assert known.running is not None and known.running.name == "late"
    assert known.hear(f"{KEY}late".encode(), None), "a tombstone"
    assert known.running is None and list(known.by_name) == ["early"]


def test_other_records_change_nothing():
    known = Experiments()
    hear(known, experiment())
    assert not known.hear(b"bundle", encode(BundlePublished("v1", 1, 2, 3, "s")))
    assert not known.hear(None, b"{}")
    assert known.running == experiment()


def test_a_record_that_cannot_be_read_ends_the_experiment_of_its_name_and_is_logged():
    """A newer command may have stopped it by what this version does not know."""
    known = Experiments()
    hear(known, experiment())
    hear(known, experiment(name="two", started_ms=2000))
    with capture_logs() as logs:
        assert known.hear(f"{KEY}one".encode(), b'{"kind": "experiment", "name": "one", "stopped_ms": "soon"}')
    assert known.running is not None and list(known.by_name) == [known.running.name] == ["two"]
    [logged] = logs
    assert (logged["log_level"], logged["key"]) == ("error", f"{KEY}one") and "stopped_ms" in logged["error"]
    assert known.hear(f"{KEY}three".encode(), b"{nonsense"), "nothing was known of it"


def test_a_viewer_is_served_by_our_settings_and_what_the_variant_changes_of_them():
    plan_of = plans_of(experiment(), SERVING, SELECTION)
    plans = {plan.variant: plan for plan in map(plan_of, USERS)}
    assert set(plans) == {"control", "drawn"}
    assert plans["control"][:3] == (SERVING, SELECTION, "one")
    assert (plans["drawn"].serving.fresh, plans["drawn"].serving.k) == (0, 13)
    assert (plans["drawn"].selection.explore, plans["drawn"].selection.channel_cap) == (0.1, 3)
    assert [plan_of(user) for user in USERS] == [plan_of(user) for user in USERS]


def test_who_is_in_no_variant_is_served_by_our_own_settings():
    plan_of = plans_of(experiment(replace(CONTROL, share=0.1), replace(DRAWN, share=0.1)), SERVING, SELECTION)
    outside = [plan for plan in map(plan_of, USERS) if not plan.experiment]
    assert 0.7 < len(outside) / len(USERS) < 0.9
    assert {plan[:2] for plan in outside} == {(SERVING, SELECTION)}


def test_of_an_interleaved_one_both_variants_are_each_viewers():
    off = Variant("off", 0.2, {"serving.ranker": False})
    plan_of = plans_of(experiment(replace(CONTROL, share=0.2), off, interleaved=True), SERVING, Selection())
    plans = [plan for plan in map(plan_of, USERS) if plan.experiment]
    assert 0.3 < len(plans) / len(USERS) < 0.5
    for plan in plans:
        assert plan.rival is not None
        assert (plan.variant, plan.rival.variant) == ("control", "off")
        assert plan.serving.ranker and not plan.rival.serving.ranker


def test_a_variant_may_have_the_ranker_of_another_release_also_of_a_list_that_two_draw_up():
    rivals = Variant("old", 0.5, {"release": "v1"}), Variant("new", 0.5, {"release": "v2", "serving.ranker": True})
    for interleaved in (False, True):
        split = experiment(*rivals, interleaved=interleaved)
        assert releases_of(split) == {"v1", "v2"}
        plans = {each for user in USERS for each in plans_of(split, SERVING, Selection())(user).ranking}
        assert {plan.variant: plan.release for plan in plans} == {"old": "v1", "new": "v2"}
    known = Experiments()
    hear(known, experiment(*rivals, stopped_ms=2000))
    hear(known, experiment(name="two"))
    assert known.releases == {"v1", "v2"} and releases_of(experiment()) == frozenset()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (experiment(CONTROL), "two variants at least"),
        (experiment(CONTROL, CONTROL), "same name"),
        (experiment(CONTROL, replace(DRAWN, share=0.6)), "1 at most"),
        (experiment(CONTROL, replace(DRAWN, share=0)), "above 0"),
        (experiment(CONTROL, Variant("x", 0.5, {"serving.batch": 2})), "serving.batch cannot differ"),
        (experiment(CONTROL, Variant("x", 0.5, {"nonsense": 2})), "nonsense cannot differ"),
        (experiment(CONTROL, Variant("x", 0.5, {"selection.seed": 2})), "selection.seed cannot differ"),
        (experiment(CONTROL, Variant("x", 0.5, {"selection.explore": 2})), "explore: Input should be less than"),
        (experiment(CONTROL, Variant("x", 0.5, {"serving.ranker": "perhaps"})), "ranker: Input should be a valid bool"),
        (experiment(CONTROL, DRAWN, interleaved=True), "serving.fresh changes these"),
        (experiment(CONTROL, Variant("x", 0.5, {"release": "../v"})), "'../v' is not the version of a release"),
        (experiment(CONTROL, Variant("x", 0.5, {"release": 7})), "7 is not the version of a release"),
        (experiment(CONTROL, Variant("x", 0.2), Variant("y", 0.2), interleaved=True), "compares two"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_reason(wrong: Experiment, says: str):
    with pytest.raises(ExperimentUnfit, match=says):
        plans_of(wrong, SERVING, SELECTION)


@pytest.mark.parametrize(
    ("own", "of_control", "of_other", "capped"),
    [
        (3, {}, {}, "control"),
        (3, {"selection.channel_cap": 0}, {}, "other"),
        (0, {}, {"selection.channel_cap": 2}, "other"),
    ],
)
def test_a_cap_per_channel_is_refused_where_two_draw_up_a_list(
    own: int, of_control: dict[str, Any], of_other: dict[str, Any], capped: str
):
    variants = Variant("control", 0.5, of_control), Variant("other", 0.5, of_other)
    with pytest.raises(ExperimentUnfit, match=rf"variant {capped} has a selection\.channel_cap"):
        plans_of(experiment(*variants, interleaved=True), SERVING, Selection(channel_cap=own))
    plans_of(experiment(*variants), SERVING, Selection(channel_cap=own))
    uncapped = [replace(variant, settings={"selection.channel_cap": 0}) for variant in variants]
    plans_of(experiment(*uncapped, interleaved=True), SERVING, Selection(channel_cap=own))


def test_a_list_may_change_every_other_setting_that_may_differ():
    every = {"serving.trending": 1, "serving.similar": 2, "serving.fresh": 3, "serving.ranked": 4}
    every |= {"serving.ranker": False, "selection.diversity": "mmr", "selection.explore_by": "uncertainty"}
    plan_of = plans_of(experiment(CONTROL, Variant("x", 0.5, every)), SERVING, SELECTION)
    [plan] = {plan for plan in map(plan_of, USERS) if plan.variant == "x"}
    found = {f"serving.{name}": value for name, value in plan.serving.model_dump().items()}
    found |= {f"selection.{name}": value for name, value in plan.selection.model_dump().items()}
    assert every.items() <= found.items()


@pytest.mark.parametrize("beside", ["./v2", "../bundles/v2", "/data/bundles/v2", "v2\n", "v" * 129])
def test_what_is_no_version_is_not_served_beside_the_live_one(beside):
    """It names a directory: one that leads elsewhere, or to the live release by another name."""
    known = Experiments()
    assert known.hear(
        f"{KEY}one".encode(), encode(experiment(CONTROL, replace(DRAWN, settings={"release": beside}), beside=beside))
    )
    assert known.running is None


def test_what_no_server_serves_is_known_without_its_settings():
    ranked = replace(DRAWN, settings={"release": "v2"})
    assert not problem_of(experiment()) and not problem_of(experiment(CONTROL, ranked, beside="v2"))
    assert "no variant has the release v3" in problem_of(experiment(CONTROL, ranked, beside="v3"))
