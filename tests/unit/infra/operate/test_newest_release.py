"""The newest bundle goes live at the next start, once, and a roll-back stays one."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from indexer.rollout import Releases
from infra.cli.session import Session
from infra.operate import newest_release as module
from infra.operate import training
from infra.operate.newest_release import announce_newest, newest_bundle
from infra.platform.settings import Settings
from streams.bundles.objects import StoreError
from streams.experiments import RELEASE, Experiments
from streams.messages import BundlePublished, Experiment, Variant
from tests.unit.infra.command import commands


def bundle(bundles_dir: Path, version: str, created_ms: int) -> BundlePublished:
    published = BundlePublished(version, created_ms, 9, 100, "hash")
    (bundles_dir / version).mkdir(parents=True)
    (bundles_dir / version / "manifest.json").write_bytes(msgspec.json.encode(published))
    return published


@pytest.fixture
def announced(monkeypatch: pytest.MonkeyPatch) -> list[BundlePublished]:
    """What was announced; the topic says the last of it."""
    said: list[BundlePublished] = []
    monkeypatch.setattr(module, "announce", lambda kafka, release: said.append(release))
    monkeypatch.setattr(module, "read_topic", lambda kafka: Releases(bundle=said[-1] if said else None))
    monkeypatch.setattr(module, "read_experiments", lambda kafka: Experiments())
    return said


def test_the_newest_is_announced_once(tmp_path: Path, announced: list[BundlePublished]):
    settings = Settings(data_dir=tmp_path)
    assert announce_newest(settings) is None, "there is none"
    bundle(settings.bundles_dir, "20260101_000000_a", 1)
    newer = bundle(settings.bundles_dir, "20260102_000000_b", 2)
    assert announce_newest(settings) == newer.version and announce_newest(settings) is None
    assert announced == [newer], "what was rolled back from is still what was announced last, and is not again"


def test_one_that_an_experiment_compares_or_has_compared_goes_live_when_a_person_says_so(
    tmp_path: Path, announced: list[BundlePublished], monkeypatch: pytest.MonkeyPatch
):
    settings, known = Settings(data_dir=tmp_path), Experiments()
    bundle(settings.bundles_dir, "20260101_000000_a", 1)
    rival = bundle(settings.bundles_dir, "20260102_000000_b", 2)
    variants = (Variant("control", 0.5, {RELEASE: "20260101_000000_0"}), Variant("new", 0.5, {RELEASE: rival.version}))
    known.by_name["one"] = Experiment("one", "salt", 1, variants, stopped_ms=5)
    monkeypatch.setattr(module, "read_experiments", lambda kafka: known)
    assert announce_newest(settings) == "20260101_000000_a" and announce_newest(settings) is None
    assert announce_newest(settings, is_asked=True) == rival.version


def test_what_was_announced_from_elsewhere_and_is_newer_stays(tmp_path: Path, announced: list[BundlePublished]):
    settings = Settings(data_dir=tmp_path)
    bundle(settings.bundles_dir, "20260101_000000_a", 1)
    announced.append(BundlePublished("20260103_000000_c", 3, 9, 100, "hash"))
    assert announce_newest(settings) is None


def test_one_that_another_machine_has_announced_while_it_was_sent_is_not_gone_back_from(
    tmp_path: Path, announced: list[BundlePublished], monkeypatch: pytest.MonkeyPatch
):
    settings = Settings(data_dir=tmp_path)
    bundle(settings.bundles_dir, "20260101_000000_a", 1)
    newer = BundlePublished("20260102_000000_b", 2, 9, 100, "hash")
    monkeypatch.setattr(module, "send_release", lambda *_: announced.append(newer))
    assert announce_newest(settings) is None and announced == [newer]


def test_what_was_announced_is_sent_again_when_it_is_asked_for(
    tmp_path: Path, announced: list[BundlePublished], monkeypatch: pytest.MonkeyPatch
):
    """The store may have lost it."""
    settings, sent = Settings(data_dir=tmp_path), list[str]()
    announced.append(bundle(settings.bundles_dir, "20260101_000000_a", 1))
    monkeypatch.setattr(module, "send_release", lambda _, version: sent.append(version))
    assert announce_newest(settings) is None and not sent
    assert announce_newest(settings, is_asked=True) is None and sent == ["20260101_000000_a"]
    assert len(announced) == 1


def test_a_bundle_that_cannot_be_read_or_is_not_whole_is_passed_over(tmp_path: Path):
    whole = bundle(tmp_path, "20260101_000000_a", 1)
    bundle(tmp_path, ".writing-b", 2)
    (tmp_path / "20260103_000000_c").mkdir()
    (tmp_path / "20260103_000000_c" / "manifest.json").write_text("{")
    assert newest_bundle(tmp_path) == whole and newest_bundle(tmp_path / "none") is None


def test_it_is_announced_only_once_the_store_has_it(
    tmp_path: Path, announced: list[BundlePublished], monkeypatch: pytest.MonkeyPatch
):
    settings, sent = Settings(data_dir=tmp_path), []
    newest = bundle(settings.bundles_dir, "20260101_000000_a", 1)

    def send(_: Settings, version: str) -> None:
        assert not announced
        sent.append(version)
        if len(sent) == 1:
            raise StoreError("away", "no answer")

    monkeypatch.setattr(module, "send_release", send)
    with pytest.raises(StoreError):
        announce_newest(settings)
    assert not announced
    assert announce_newest(settings) == newest.version and sent == 2 * [newest.version]


def test_what_was_trained_is_announced_only_once_the_store_has_it(monkeypatch: pytest.MonkeyPatch):
    done: list[str] = []
    manifest: Any = SimpleNamespace(version="a", created_ms=1, dim=9, items=100, schema_hash="hash")

    def send(_: Settings, version: str) -> None:
        done.append(f"{version} sent")
        if len(done) == 1:
            raise StoreError("away", "no answer")

    monkeypatch.setattr(training, "send_release", send)
    monkeypatch.setattr(training, "announce", lambda kafka, release: done.append(f"{release.version} announced"))
    with pytest.raises(StoreError):
        training.announce_bundle(Settings(), manifest)
    training.announce_bundle(Settings(), manifest)
    assert done == ["a sent", "a sent", "a announced"]


def test_the_command_says_what_it_has_announced_or_what_the_store_refuses(
    tmp_path: Path,
    announced: list[BundlePublished],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    settings = Settings(data_dir=tmp_path)
    monkeypatch.setattr(Session, "connected", settings)
    announce = commands(monkeypatch, capsys, "releases", "--announce", settings=settings)
    assert "nothing to announce" in announce().out
    newest = bundle(settings.bundles_dir, "20260101_000000_a", 1)
    done = announce()
    assert (done.code, done.out.strip()) == (0, f"{newest.version} is announced")

    def refuse(*_: Any) -> None:
        raise StoreError("forbidden", "the store does not let us")

    monkeypatch.setattr(module, "send_release", refuse)
    bundle(settings.bundles_dir, "20260102_000000_b", 2)
    done = announce()
    assert done.code == 2 and "the store does not let us" in done.out + done.err
