"""What a training is given: where its test begins, and what an earlier release has learnt."""

from pathlib import Path
from typing import Any

import pytest

from infra.operate import training
from infra.operate.progress import no_progress
from infra.operate.training import TrainingJob, train_beside
from infra.platform.settings import Settings
from models.release.bundle import Bundle, read_bundle
from models.release.trial import Rival
from models.retrieval.checkpoint import CheckpointError, ModelSelection
from tests.unit.models.samples import START_MS, small_log
from tests.unit.serving.worlds import train_small


class Interrupted(Exception):
    pass


class Scene:
    """Trainings that end once a checkpoint is written; `given` is what the last one was given."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.settings, self.log = Settings(data_dir=directory), directory / "log.parquet"
        small_log(100).write_parquet(self.log)
        self.given: dict[str, Any] = {}
        monkeypatch.setattr(training, "train_with_trial", self._train)

    def train(self, rival: Rival | None, **job: Any) -> dict[str, Any]:
        with pytest.raises(Interrupted):
            train_beside(self.settings, TrainingJob(self.log, **job), no_progress, rival, self.settings.bundles_dir)
        return self.given

    def _train(self, *_: Any, **given: Any) -> None:
        self.given = given
        if given["checkpoints"] is not None:
            given["checkpoints"].restore([], "candidates")
            given["checkpoints"].save([], "candidates", ModelSelection(1))
        raise Interrupted


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(tmp_path, monkeypatch)


@pytest.fixture
def base(scene: Scene) -> Bundle:
    return read_bundle(scene.settings.bundles_dir / train_small(scene.settings.bundles_dir).version)


def test_a_training_that_is_gone_on_with_holds_out_what_it_did_whatever_has_gone_live_since(
    scene: Scene, base: Bundle, tmp_path: Path
):
    checkpoints = tmp_path / "checkpoints"
    old, new = (Rival(name, START_MS + at, 0, base.model, base.ranker, why="") for name, at in (("a", 1), ("b", 2)))
    assert scene.train(old, checkpoints=checkpoints)["rival"] == old
    rival = scene.train(new, checkpoints=checkpoints)["rival"]
    assert rival.learnt_ms == old.learnt_ms
    assert rival.model is rival.ranker is None, "it has learnt some of what is held out"
    assert rival.why == "b has gone live since this training began"
    assert scene.train(old, checkpoints=checkpoints)["rival"] == old, "after a roll-back"
    with pytest.raises(CheckpointError, match="--no-announce"):
        train_beside(
            scene.settings,
            TrainingJob(scene.log, checkpoints=checkpoints),
            no_progress,
            None,
            scene.settings.bundles_dir,
        )


def test_what_the_release_to_begin_from_has_learnt_is_held_against_it(scene: Scene, base: Bundle):
    made_ms = base.manifest.created_ms
    given = scene.train(Rival(), warm_start=base.manifest.version)
    assert given["warm"] is not None and given["warm_ms"] == given["rival"].learnt_ms == made_ms
    assert scene.train(None)["warm_ms"] == 0
