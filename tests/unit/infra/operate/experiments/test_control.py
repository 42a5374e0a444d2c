"""What is done before servers are told of rankers that they are to compare."""

from pathlib import Path

import pytest

from infra.operate.experiments import control
from infra.platform.settings import Bundles, Settings
from streams.bundles.objects import Objects, StoreError
from streams.messages import Experiment, Variant
from tests.harness.needs import OBSTORE, needs
from tests.unit.serving.worlds import train_small


@needs(OBSTORE)
def test_a_rival_of_this_disk_is_in_the_store_before_it_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = Settings(data_dir=tmp_path, bundles=Bundles(store=f"file://{tmp_path}/store"))
    rival, elsewhere = train_small(settings.bundles_dir).version, "20260101_000000_0123456789abcdef"
    monkeypatch.setattr(control, "compare_rankers", lambda *_: ("live", ""))
    variants = (Variant("a", 0.3), Variant("b", 0.3, {"release": rival}), Variant("c", 0.3, {"release": elsewhere}))
    told = control._with_rankers(settings, Experiment("one", "salt", 1, variants))
    assert [each.settings["release"] for each in told.variants] == ["live", rival, elsewhere]
    objects = Objects(settings.bundles)
    assert {each.name for each in objects.found()} == {
        f"{rival}/{path.name}" for path in (settings.bundles_dir / rival).iterdir()
    }
    (settings.bundles_dir / rival / "bias.npy").write_bytes(b"damaged")
    with pytest.raises(StoreError, match=r"bias\.npy: is damaged.*start the experiment again"):
        control._with_rankers(settings, Experiment("one", "salt", 1, variants))
