"""What is done before servers are told of rankers that they are to compare."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.operate.experiments import control
from infra.operate.experiments.compared import Compared
from infra.platform.settings import Bundles, Settings
from streams import topics
from streams.bundles.objects import Objects, StoreError
from streams.experiments import ExperimentUnfit
from streams.kafka.releases import announce, read_experiments
from streams.messages import Experiment, Variant
from tests.harness.needs import OBSTORE, needs
from tests.unit.serving.worlds import train_small


@needs(OBSTORE)
def test_a_rival_of_this_disk_is_in_the_store_before_it_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = Settings(data_dir=tmp_path, bundles=Bundles(store=f"file://{tmp_path}/store"))
    rival, elsewhere = train_small(settings.bundles_dir).version, "20260101_000000_0123456789abcdef"
    monkeypatch.setattr(control, "compare_releases", lambda *_, **__: Compared("live"))
    variants = (Variant("a", 0.3), Variant("b", 0.3, {"release": rival}), Variant("c", 0.3, {"release": elsewhere}))
    told = control._with_releases(settings, Experiment("one", "salt", 1, variants))
    assert [each.settings["release"] for each in told.variants] == ["live", rival, elsewhere]
    objects = Objects(settings.bundles)
    assert {each.name for each in objects.found()} == {
        f"{rival}/{path.name}" for path in (settings.bundles_dir / rival).iterdir()
    }
    (settings.bundles_dir / rival / "bias.npy").write_bytes(b"damaged")
    with pytest.raises(StoreError, match=r"bias\.npy: is damaged.*start the experiment again"):
        control._with_releases(settings, Experiment("one", "salt", 1, variants))


RANKERS = (Variant("a", 0.5), Variant("b", 0.5, {"release": "rival"}))


def sending(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], None]) -> None:
    """Have something happen while the rankers are sent."""

    def send(settings: Settings, experiment: Experiment) -> Experiment:
        meanwhile()
        return experiment

    monkeypatch.setattr(control, "_with_releases", send)


def test_one_that_was_started_while_the_rankers_were_sent_goes_on_and_this_one_is_refused(
    kafka_settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    topics.create_topics(kafka_settings.kafka)
    other = Experiment("other", "salt", time.time_ns() // 1_000_000, (Variant("a", 0.5), Variant("b", 0.5)))
    sending(monkeypatch, lambda: announce(kafka_settings.kafka, other))
    with pytest.raises(ExperimentUnfit, match="other runs"):
        control.start_experiment(kafka_settings, "rankers", RANKERS, control.Terms())
    known = read_experiments(kafka_settings.kafka)
    assert known.running == other and set(known.by_name) == {"other"}, "no server has heard of it"


def test_an_experiment_begins_when_its_rankers_are_sent(kafka_settings: Settings, monkeypatch: pytest.MonkeyPatch):
    topics.create_topics(kafka_settings.kafka)
    sent_ms: list[int] = []

    def slowly() -> None:
        time.sleep(0.05)
        sent_ms.append(time.time_ns() // 1_000_000)

    sending(monkeypatch, slowly)
    started = control.start_experiment(kafka_settings, "rankers", RANKERS, control.Terms())
    assert started.started_ms >= sent_ms[0] and read_experiments(kafka_settings.kafka).running == started
