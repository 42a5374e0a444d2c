"""Other releases beside the live one: when they are there, when not, and that they go again."""

from __future__ import annotations

import contextlib
import gc
import shutil
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import REGISTRY

from infra.platform.settings import Kafka, Selection, Serving
from models.release.bundle import Manifest
from serving.experiments import rivals
from serving.experiments.experiment_view import ExperimentView
from serving.experiments.rivals import Rivals, RivalSource, Wanted, load_rival
from serving.state.release import LiveRelease, ReleaseError, Releases, load_release
from serving.state.views import CatalogueView
from streams.bundles.source import BundleSource
from streams.experiments import KEY
from streams.messages import Experiment, IndexReady, Item, Variant, encode
from tests.unit.serving.worlds import CREATED_MS, ITEMS, ExactIndex, load, rank_anew, until

USERS = [f"u{number}" for number in range(50)]
NO_KAFKA = Kafka()  # rankers come without it


class Server:
    """What a worker does with what it hears: releases and experiments, with a look between two batches."""

    def __init__(self, bundles_dir: Path, index: ExactIndex, kafka: Kafka = NO_KAFKA) -> None:
        bundles = BundleSource(bundles_dir)
        self.catalogue = CatalogueView()
        self.releases = Releases(bundles, index, self.catalogue, mirror_items=1000)
        self.rivals = Rivals(RivalSource(bundles, self.catalogue, kafka))
        self.view = ExperimentView(Serving(), Selection())

    @property
    def live(self) -> LiveRelease:
        assert self.releases.live is not None
        return self.releases.live

    def go_live(self, version: str) -> None:
        self.releases.apply_release(encode(IndexReady(version, f"items_{version}", 40, CREATED_MS)))
        until(lambda: self.look() == version)

    def compare(
        self, *versions: str, name: str = "one", stopped_ms: int = 0, beside: str = "", started_ms: int = 1
    ) -> None:
        variants = tuple(Variant(f"v{at}", 1 / len(versions), {"release": each}) for at, each in enumerate(versions))
        experiment = Experiment(name, "salt", started_ms, variants, stopped_ms=stopped_ms, beside=beside)
        self.view.hear(f"{KEY}{name}".encode(), encode(experiment))

    def look(self) -> str:
        self.releases.refresh()
        self.releases.compare(self.rivals.beside(self.releases.live, self.view.wanted))
        self.view.look(self.releases.live)
        return "" if self.releases.live is None else self.releases.live.version

    def variants(self) -> set[str]:
        return {self.view.plan_of(user, self.releases.live).variant for user in USERS}

    def until_served(self, *versions: str) -> None:
        until(lambda: bool(self.look()) and set(self.live.rivals) == set(versions))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "RETRY_S", 0.02)


@pytest.fixture
def server(bundles_dir: Path, bundles: Sequence[Manifest], index: ExactIndex) -> Iterator[Server]:
    """The first release is live."""
    server = Server(bundles_dir, index)
    with contextlib.closing(server.releases), contextlib.closing(server.rivals):
        server.go_live(bundles[0].version)
        yield server


def unserved() -> float | None:
    return REGISTRY.get_sample_value("nextwatch_experiment_unserved")


def info(version: str) -> float | None:
    return REGISTRY.get_sample_value("nextwatch_rival_ranker_info", {"version": version})


def test_until_its_rankers_are_there_everybody_is_served_by_the_live_one(
    server: Server, rival: Manifest, monkeypatch: pytest.MonkeyPatch
):
    may_go_on, load_one = threading.Event(), rivals.load_rival

    def slowly(*args: object, **more: object) -> LiveRelease:
        assert may_go_on.wait(10)
        return load_one(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(rivals, "load_rival", slowly)
    server.compare(server.live.version, rival.version)
    assert server.look() and server.variants() == {""} and not server.live.rivals
    assert unserved() == 1 and info(rival.version) is None
    may_go_on.set()
    server.until_served(rival.version)
    assert server.variants() == {"v0", "v1"} and unserved() == 0 and info(rival.version) == 1


def test_a_rival_has_its_own_ranker_and_all_else_of_the_live_release(
    server: Server, rival: Manifest, bundles_dir: Path
):
    server.compare(server.live.version, rival.version)
    server.until_served(rival.version)
    live, found = server.live, server.live.with_ranker(rival.version)
    assert found.model is live.model and found.mirror is live.mirror and found.catalogue is live.catalogue
    assert found.version == live.version and found.ranker_version == rival.version != live.ranker_version
    np.testing.assert_equal(found.ranker.to_arrays(), load(bundles_dir, rival).ranker.to_arrays())
    assert found.worth is not live.worth and found.known is not live.known


def test_what_the_catalogue_says_anew_of_an_item_is_news_to_a_rival_too(
    server: Server, rival: Manifest, monkeypatch: pytest.MonkeyPatch
):
    server.compare(server.live.version, rival.version)
    server.until_served(rival.version)
    forgotten: list[int] = []
    monkeypatch.setattr(server.live.rivals[rival.version].known, "forget", forgotten.append)
    server.catalogue.apply(ITEMS[3].encode(), encode(Item(ITEMS[3], duration_s=7.0)))
    server.releases.apply_item(ITEMS[3])
    assert forgotten == [server.live.catalogue.row(ITEMS[3])]


def test_other_candidates_are_not_compared_and_everybody_is_served_as_ever(server: Server, bundles: Sequence[Manifest]):
    server.compare(server.live.version, bundles[1].version)
    until(lambda: bool(server.look() and server.rivals.refusal))
    assert f"{bundles[1].version} has other candidates" in server.rivals.refusal
    assert server.variants() == {""} and unserved() == 1
    until(lambda: not any(thread.name == "rival-loader" for thread in threading.enumerate()))


def test_a_release_whose_candidates_are_others_ends_the_comparison_and_one_of_the_same_does_not(
    server: Server, rival: Manifest, bundles: Sequence[Manifest], index: ExactIndex, bundles_dir: Path
):
    """What is compared is named, so that it stays the same whichever of the two is live."""
    index.fill(load(bundles_dir, rival))
    first = server.live.version
    server.compare(first, rival.version)
    server.until_served(rival.version)
    server.go_live(rival.version)
    server.until_served(first)
    assert server.variants() == {"v0", "v1"} and server.live.ranker_version == rival.version
    server.go_live(bundles[1].version)
    assert server.variants() == {""} and not server.live.rivals and unserved() == 1
    until(lambda: bool(server.look() and "other candidates" in server.rivals.refusal))
    server.go_live(first)
    server.until_served(rival.version)
    assert server.variants() == {"v0", "v1"}


def test_a_bundle_that_comes_later_is_loaded_then(server: Server, rival: Manifest, bundles_dir: Path):
    place, aside = bundles_dir / rival.version, bundles_dir / ".aside"
    shutil.move(place, aside)
    try:
        server.compare(server.live.version, rival.version)
        until(lambda: bool(server.look() and server.rivals.refusal))
        assert "cannot be read" in server.rivals.refusal and server.variants() == {""}
    finally:
        shutil.move(aside, place)
    server.until_served(rival.version)
    assert server.rivals.refusal == "" and server.variants() == {"v0", "v1"}


def test_what_is_loaded_is_not_read_again_while_another_one_is_missing(
    server: Server, rival: Manifest, bundles: Sequence[Manifest], bundles_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    late = rank_anew(bundles_dir, bundles[0], bundles[0], seconds=20)
    place, aside, load_one, asked = bundles_dir / late.version, bundles_dir / ".aside", rivals.load_rival, []

    def spy(bundles: BundleSource, version: str, *args: object, **more: object) -> LiveRelease:
        asked.append(version)
        return load_one(bundles, version, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(rivals, "load_rival", spy)
    shutil.move(place, aside)
    try:
        server.compare(server.live.version, rival.version, late.version)
        until(lambda: bool(server.look()) and asked.count(late.version) > 2)
        assert not server.live.rivals and asked.count(rival.version) == 1
    finally:
        shutil.move(aside, place)
    server.until_served(rival.version, late.version)
    assert asked.count(rival.version) == 1


def test_statistics_that_are_the_live_releases_are_in_memory_once(
    server: Server, rival: Manifest, bundles: Sequence[Manifest], bundles_dir: Path
):
    like = rank_anew(bundles_dir, bundles[0], bundles[0], seconds=30)
    server.compare(rival.version, like.version)
    server.until_served(rival.version, like.version)
    assert server.live.rivals[like.version].statistics is server.live.statistics
    assert server.live.rivals[rival.version].statistics is not server.live.statistics, "of another log"


def test_its_memory_is_free_when_the_experiment_ends_or_another_begins(
    server: Server, rival: Manifest, bundles: Sequence[Manifest], bundles_dir: Path
):
    other = rank_anew(bundles_dir, bundles[0], bundles[0], seconds=10)
    server.compare(server.live.version, rival.version)
    server.until_served(rival.version)
    first = weakref.ref(server.live.rivals[rival.version].ranker)
    server.compare(server.live.version, rival.version, stopped_ms=5)
    server.compare(server.live.version, other.version, name="two")
    server.until_served(other.version)
    assert is_gone(first)
    second = weakref.ref(server.live.rivals[other.version].ranker)
    server.compare(server.live.version, other.version, name="two", stopped_ms=5)
    server.look()
    assert is_gone(second) and not server.live.rivals and info(other.version) is None and unserved() == 0


def is_gone(reference: weakref.ref[object]) -> bool:
    gc.collect()
    return reference() is None


def test_before_a_release_is_live_nothing_is_loaded(bundles_dir: Path, rival: Manifest):
    rivals = Rivals(RivalSource(BundleSource(bundles_dir), CatalogueView(), NO_KAFKA))
    assert rivals.beside(None, Wanted(frozenset({rival.version}))) == {} and rivals.refusal == ""


def test_a_rival_that_is_damaged_is_refused_by_name(
    bundles_dir: Path, bundles: Sequence[Manifest], rival: Manifest, index: ExactIndex, tmp_path: Path
):
    copy = tmp_path / rival.version
    shutil.copytree(bundles_dir / rival.version, copy)
    (copy / "ranker.safetensors").write_bytes(b"nonsense")
    live = load_release(BundleSource(bundles_dir), bundles[0].version, index)
    with pytest.raises(ReleaseError, match=r"ranker\.safetensors: is damaged"):
        load_rival(BundleSource(tmp_path), rival.version, replace(live, rivals={}))
