"""What the gate does with a bundle: one that is worse never lies where others find it, whatever breaks off."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from infra.operate.going_live import gate
from infra.operate.going_live.gate import JUDGED, REFUSED, Judgement, go_live
from infra.operate.newest_release import newest_bundle
from infra.operate.progress import no_progress
from infra.operate.ranker_stage import Judged
from infra.operate.training import TrainingJob
from infra.platform.settings import Settings
from models.evaluation.gate import Finding, Outcome, Verdict
from models.release.bundle import Manifest, read_bundle
from models.release.trial import Rival
from streams.bundles.objects import StoreError
from tests.unit.infra.command import commands
from tests.unit.serving.worlds import train_small

WORSE = Finding("recall@10", "live", 0.1, 0.3, -0.2, -0.25, -0.15, 400, worse=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Manifest]]:
    """Three releases; each training takes the next one."""
    directory = tmp_path_factory.mktemp("trained")
    manifests = [train_small(directory, seed) for seed in (1, 2, 3)]
    return [(directory / each.version, each) for each in manifests]


class Scene:
    """A data directory whose trainings write a real bundle and are judged as the test says."""

    def __init__(
        self, settings: Settings, trained: list[tuple[Path, Manifest]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.settings, self.outcome, self._trained = settings, "passed", iter(trained)
        self.announced: list[str] = []
        self.seen_meanwhile: list[Any] = []
        monkeypatch.setattr(gate, "train_beside", self._train)
        monkeypatch.setattr(gate, "announce_bundle", self._announce)
        monkeypatch.setattr(gate, "read_rival", lambda settings: Rival("20260101_000000_0", why="gone"))

    def train(self, outcome: Outcome, *, force: bool = False) -> Judgement:
        self.outcome = outcome
        judgement = go_live(self.settings, TrainingJob(), no_progress, force=force)
        assert judgement is not None
        return judgement

    def bundles(self) -> list[str]:
        return sorted(path.name for path in self.settings.bundles_dir.iterdir() if path.name != REFUSED)

    def refused(self) -> list[str]:
        return sorted(path.name for path in (self.settings.bundles_dir / REFUSED).glob("*"))

    def _train(self, settings: Settings, job: TrainingJob, step: Any, rival: Rival, bundles_dir: Path) -> Judged:
        bundle, manifest = next(self._trained)
        shutil.copytree(bundle, bundles_dir / bundle.name)
        self.seen_meanwhile.append(newest_bundle(settings.bundles_dir))
        findings = (WORSE,) if self.outcome == "refused" else ()
        return Judged(manifest, Verdict(self.outcome, findings, ("a note",)))  # type: ignore[arg-type]

    def _announce(self, settings: Settings, manifest: Manifest) -> None:
        read_bundle(settings.bundles_dir / manifest.version)
        self.announced.append(manifest.version)


@pytest.fixture
def scene(tmp_path: Path, trained: list[tuple[Path, Manifest]], monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(Settings(data_dir=tmp_path), trained, monkeypatch)


def test_what_passes_is_announced_once_it_has_its_place_and_is_found_nowhere_before(scene: Scene):
    done = scene.train("passed")
    assert scene.announced == scene.bundles() == [done.manifest.version] and done.is_announced
    assert done.place == scene.settings.bundles_dir / done.manifest.version and scene.seen_meanwhile == [None]
    assert done.live == "20260101_000000_0"
    assert scene.train("not judged").is_announced, "too few cases are no reason to refuse"


def test_what_is_refused_is_kept_aside_alone_and_no_up_finds_it(scene: Scene):
    good = scene.train("passed").manifest.version
    first, second = scene.train("refused"), scene.train("refused")
    assert not first.is_announced and scene.announced == scene.bundles() == [good]
    assert scene.refused() == [second.manifest.version] and read_bundle(second.place)
    newest = newest_bundle(scene.settings.bundles_dir)
    assert newest is not None and newest.version == good


def test_force_announces_what_is_refused(scene: Scene):
    done = scene.train("refused", force=True)
    assert done.is_announced and scene.announced == scene.bundles() == [done.manifest.version]
    assert done.verdict.outcome == "refused", "and says so"


def test_a_process_that_only_helps_announces_nothing_even_where_it_has_trained_a_release(scene: Scene):
    assert go_live(scene.settings, TrainingJob(ranker_only=True), no_progress, helping=True) is None
    assert scene.announced == scene.bundles() == []


def test_a_training_that_breaks_off_leaves_nothing(scene: Scene, trained: Any, monkeypatch: pytest.MonkeyPatch):
    ((bundle, _), *_) = trained

    def broken(settings: Settings, job: Any, step: Any, rival: Any, bundles_dir: Path) -> None:
        shutil.copytree(bundle, bundles_dir / bundle.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(gate, "train_beside", broken)
    with pytest.raises(KeyboardInterrupt):
        scene.train("passed")
    assert scene.bundles() == scene.announced == []
    shutil.copytree(bundle, scene.settings.bundles_dir / f"{JUDGED}x" / bundle.name)
    assert newest_bundle(scene.settings.bundles_dir) is None, "what a crash leaves is no bundle for anybody"


def test_a_store_that_is_away_leaves_the_bundle_for_a_later_announcement(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    def away(*_: Any) -> None:
        raise StoreError("away", "the store is away")

    monkeypatch.setattr(gate, "announce_bundle", away)
    placed: list[Judgement] = []
    with pytest.raises(StoreError):
        go_live(scene.settings, TrainingJob(), no_progress, placed=placed.append)
    assert scene.bundles() == [each.manifest.version for each in placed] and placed[0].place.is_dir()


@pytest.fixture
def nextwatch(scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("infra.platform.kafka_access.require_access", lambda kafka: None)
    monkeypatch.setenv("NEXTWATCH_KAFKA__BOOTSTRAP", "127.0.0.1:1")
    return commands(monkeypatch, capsys, "--data-dir", str(scene.settings.data_dir))


def test_the_command_says_by_how_much_and_scripts_can_tell_it_by_the_exit_code(nextwatch, scene: Scene):
    scene.outcome = "refused"
    done = nextwatch("train", "log.parquet", "--announce")
    assert done.code == 3 and scene.announced == []
    for text in ("recall@10", "live (20260101_000000_0)", "-0.2 [-0.25, -0.15]", "a note", "refused", "stays live"):
        assert text in done.out
    report = json.loads(nextwatch("train", "log.parquet", "--announce", "--json").out)
    assert report["announced"] is False and REFUSED in report["path"] and report["live"] == "20260101_000000_0"
    assert report["gate"]["outcome"] == "refused" and report["gate"]["findings"][0]["better"] == -0.2


def test_the_command_announces_with_force_and_what_passes(nextwatch, scene: Scene):
    scene.outcome = "refused"
    forced = nextwatch("train", "log.parquet", "--announce", "--force")
    assert forced.code == 0 and "announced with --force" in forced.out and len(scene.announced) == 1
    scene.outcome = "passed"
    assert nextwatch("train", "log.parquet", "--announce").code == 0 and len(scene.announced) == 2
