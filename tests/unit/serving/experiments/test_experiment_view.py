"""A server follows the experiment that runs, and serves everybody as ever where it cannot."""

from prometheus_client import REGISTRY

from infra.platform import metrics
from infra.platform.settings import Selection, Serving
from serving.experiments.experiment_view import ExperimentView
from streams.experiments import KEY
from streams.messages import Experiment, Variant, encode

OWN = (Serving(), Selection())
USERS = [f"u{number}" for number in range(100)]


def record(name: str, *changes: dict[str, float], stopped_ms: int = 0) -> tuple[bytes, bytes]:
    variants = tuple(Variant(f"v{at}", 0.5, dict(each)) for at, each in enumerate(({}, *changes)))
    return f"{KEY}{name}".encode(), encode(Experiment(name, "salt", 1, variants, stopped_ms=stopped_ms))


def variants_of(view: ExperimentView) -> set[str]:
    return {view.plan_of(user, None).variant for user in USERS}


def test_it_begins_and_ends_with_its_records():
    view = ExperimentView(*OWN)
    assert variants_of(view) == {""}
    view.hear(*record("one", {"serving.fresh": 3}))
    assert variants_of(view) == {"v0", "v1"}
    view.hear(*record("one", {"serving.fresh": 3}, stopped_ms=5))
    assert variants_of(view) == {""}
    assert {view.plan_of(user, None)[:2] for user in USERS} == {OWN}


def test_an_experiment_that_cannot_be_served_changes_nothing_for_anybody():
    """Of a newer version, say: nobody is in a variant, rather than the control alone."""
    view = ExperimentView(*OWN)
    view.hear(*record("one", {"serving.not_yet_invented": 3}))
    assert {view.plan_of(user, None) for user in USERS} == {(*OWN, "", "", None, "")}


def test_a_record_that_this_version_cannot_read_has_all_served_as_ever():
    view = ExperimentView(*OWN)
    view.hear(*record("one", {"serving.fresh": 3}))
    view.hear(f"{KEY}one".encode(), b'{"kind": "not yet invented"}')
    assert {view.plan_of(user, None) for user in USERS} == {(*OWN, "", "", None, "")}


def test_counts_of_one_experiment_are_not_the_next_ones():
    view = ExperimentView(*OWN)
    view.hear(*record("one", {"serving.fresh": 3}))
    metrics.EXPERIMENT_REQUESTS.labels("v0", "answered").inc()
    view.hear(b"bundle", b"{}")
    labels = {"variant": "v0", "outcome": "answered"}
    assert REGISTRY.get_sample_value("nextwatch_experiment_requests_total", labels) == 1
    view.hear(*record("one", {"serving.fresh": 3}, stopped_ms=5))
    assert REGISTRY.get_sample_value("nextwatch_experiment_requests_total", labels) is None
