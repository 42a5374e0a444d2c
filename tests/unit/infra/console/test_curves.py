import pytest

from infra.console.curves import EVERY_S, FIGURES, HEIGHT, KEPT, SHORTEST_S, WIDTH, Figure, Series, mean, total

WATCHES = "nextwatch_watches_total"


def test_a_rate_is_the_growth_of_a_counter_and_a_restart_is_none():
    series = Series(Figure("w", "", total(WATCHES), is_rate=True))
    for now_s, value in ((0, 100.0), (10, 150.0), (20, 10.0), (30, 40.0), (40, None)):
        series.add(now_s, value)
    assert list(series.points) == [(10, 5.0), (30, 3.0)] and series.newest == 3.0


def test_a_curve_ends_at_the_right_and_its_largest_value_is_at_the_top():
    series = Series(Figure("g", "", total("g")))
    assert series.line == "" and series.newest is None
    for at in range(KEPT + 10):
        series.add(at * EVERY_S, float(at))
    places = [tuple(map(float, pair.split(","))) for pair in series.line.split()]
    assert len(places) == KEPT and places[-1] == (WIDTH, 0.0)
    assert places[0][0] == 0 and all(0 <= y <= HEIGHT for _, y in places)
    assert series.span_s == (KEPT - 1) * EVERY_S


def test_a_curve_of_a_moment_is_not_drawn_over_the_whole_width():
    series = Series(Figure("g", "", total("g")))
    assert series.span_s == SHORTEST_S
    series.add(0, 1.0)
    series.add(SHORTEST_S / 4, 1.0)
    assert series.span_s == SHORTEST_S and series.line == f"{WIDTH * 3 / 4:.1f},0.0 {WIDTH:.1f},0.0"


def test_what_is_always_zero_is_a_line_at_the_bottom():
    series = Series(Figure("g", "", total("g")))
    series.add(0, 0.0)
    series.add(EVERY_S, 0.0)
    assert all(pair.endswith(f",{HEIGHT:.1f}") for pair in series.line.split())


def test_samples_are_added_up_by_label():
    samples = {(WATCHES, (("outcome", "new"),)): 3.0, (WATCHES, (("outcome", "late"),)): 2.0}
    samples |= {("t_sum", ()): 6.0, ("t_count", ()): 3.0, ("z_count", ()): 0.0}
    assert total(WATCHES)(samples) == 5.0 and total(WATCHES, outcome="late")(samples) == 2.0
    assert total("nowhere")(samples) is None
    assert mean("t")(samples) == 2.0 and mean("z")(samples) is None and mean("nowhere")(samples) is None


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_every_figure_is_read_from_a_metric_of_ours(figure):
    from prometheus_client import REGISTRY

    from infra.platform import metrics

    assert metrics.WATCHES is not None
    metrics.WATCHES.labels("new").inc(0)
    names = {sample.name for family in REGISTRY.collect() for sample in family.samples}
    names |= {f"{family.name}_total" for family in REGISTRY.collect() if family.type == "counter"}
    names |= {family.name for family in REGISTRY.collect()}
    asked = []

    class Samples(dict):
        def items(self):
            return [((name, tuple({"model": "live", "k": "100"}.items())), 1.0) for name in names]

    asked.append(figure.of(Samples()))
    assert asked[0] is not None and asked[0] > 0
