from math import inf
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.operate.capacity_plan import BUSY, SPARE, Costs, Load, PlanError, plan_for, read_costs

COSTS = read_costs()
SMALL = Load(users=1e4, items=1e4, events_per_s=100, requests_per_s=20)
THOUSAND_TIMES = Load(users=100e6, items=10e6, events_per_s=50_000, requests_per_s=20_000)
loads = st.builds(
    Load,
    users=st.floats(1, 1e9),
    items=st.floats(1, 1e8),
    events_per_s=st.floats(0, 1e6),
    requests_per_s=st.floats(0, 1e6),
    memory_gb=st.floats(1, 1000),
)


def processes_of(load: Load, part: str, costs: Costs = COSTS) -> int:
    return next(need.processes for need in plan_for(load, costs).needs if need.part == part)


def test_a_small_load_needs_one_of_each_and_a_spare_and_breaks_nothing():
    plan = plan_for(SMALL, COSTS)
    assert plan.breaks == []
    assert {need.processes for need in plan.needs if not need.limit} == {1 + SPARE}
    assert {need.part: need.processes for need in plan.needs if need.limit} == {"trainer": 1, "indexer": 1}


def test_a_figure_is_a_product_of_the_load_and_a_cost():
    plan = plan_for(SMALL, msgspec.structs.replace(COSTS, history_event_ms=3.0, watch_bytes=1000.0))
    assert next(need.cores for need in plan.needs if need.part == "history") == pytest.approx(100 * 3.0 / 1000)
    watches = next(flow for flow in plan.flows if flow.topic == "watch-events")
    assert (watches.messages_per_s, watches.mb_per_s) == (100, 0.1)
    assert watches.stored_gb == pytest.approx(100 * 1000 * 7 * 86_400 * 3 / 1e9)


def test_what_breaks_is_told_worst_first_with_what_helps():
    plan = plan_for(THOUSAND_TIMES, COSTS)
    times = [float(told.split(": ")[1].split()[0]) for told in plan.breaks]
    assert times == sorted(times, reverse=True)
    assert min(times) > 1
    trainer = next(told for told in plan.breaks if told.startswith("trainer"))
    need = next(need for need in plan.needs if need.part == "trainer")
    assert f"a sample of {BUSY / need.cores:.2f}" in trainer


def test_memory_decides_where_the_users_are_many():
    crowd = msgspec.structs.replace(SMALL, users=1e9)
    assert processes_of(crowd, "history") > 10 > processes_of(SMALL, "history")
    assert processes_of(crowd, "serving") > 10 > processes_of(SMALL, "serving")


def test_servers_that_cannot_read_what_all_must_read_are_no_number():
    costs = msgspec.structs.replace(COSTS, serving_record_ms=1e6)
    [servers] = [need for need in plan_for(SMALL, costs).needs if need.part == "serving"]
    assert servers.memory_gb == servers.cores == inf
    assert any(told.startswith("what every server reads") for told in plan_for(SMALL, costs).breaks)


@given(load=loads)
def test_more_of_anything_never_needs_less(load: Load):
    more = msgspec.structs.replace(load, users=2 * load.users, events_per_s=2 * load.events_per_s)
    for one, other in zip(plan_for(load, COSTS).needs, plan_for(more, COSTS).needs, strict=True):
        assert one.part == other.part
        assert one.processes <= other.processes or other.cores == inf


def test_costs_that_cannot_be_used_name_their_file(tmp_path: Path):
    for text, why in (("", "missing required field"), ("nonsense = 1", "unknown field"), ("=", "Invalid")):
        path = tmp_path / "costs.toml"
        path.write_text(text)
        with pytest.raises(PlanError, match=f"costs.toml: .*{why}"):
            read_costs(path)
    with pytest.raises(PlanError, match=r"gone\.toml"):
        read_costs(tmp_path / "gone.toml")
