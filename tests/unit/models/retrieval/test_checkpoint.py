"""A training that was interrupted ends where an undisturbed one ends."""

import time
from pathlib import Path

import numpy as np
import pytest

from infra.platform.settings import Model
from models.logs.training_set import TrainingSet
from models.retrieval.candidate_learning import Learned, learn_candidates, new_net
from models.retrieval.candidate_training import Fit, TrainingData
from models.retrieval.checkpoint import STATE, CheckpointError, Checkpoints, ModelSelection, identity_of
from tests.unit.models.samples import SETTINGS, small_log, small_source, stored

QUICK = SETTINGS.model_copy(update={"epochs": 3, "members": 2, "linear_dim": 4, "dropout": 0.1, "history_dropout": 0.2})


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def source() -> TrainingSet:
    return small_source()


def learn(
    source: TrainingSet, directory: Path | None, *, stop_after: int | None = None, settings: Model = QUICK
) -> Learned:
    """Stops with Interrupted after so many steps of both stages together; a checkpoint is written at every step."""
    steps = 0

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal steps
        steps += 1
        if steps == stop_after:
            raise Interrupted

    until = len(source.dataset)
    return learn_candidates(
        source,
        settings,
        until=until,
        valid_from=int(0.9 * until),
        items=len(source.catalogue),
        checkpoints=None if directory is None else Checkpoints(directory, "this", every_s=0, clock=time.monotonic),
        progress=progress,
    )


@pytest.mark.parametrize("stop_after", [1, 17, 40, 48, 70])
def test_it_goes_on_to_the_same_result_from_wherever_it_was_stopped(
    source: TrainingSet, tmp_path: Path, stop_after: int
):
    whole = learn(source, None)
    with pytest.raises(Interrupted):
        learn(source, tmp_path / "c", stop_after=stop_after)
    again = learn(source, tmp_path / "c")
    assert again.selection == whole.selection
    np.testing.assert_array_equal(again.model.item_vectors(), whole.model.item_vectors())
    np.testing.assert_array_equal(again.model.query_rows, whole.model.query_rows)
    np.testing.assert_array_equal(again.earlier.item_vectors(), whole.earlier.item_vectors())


def test_a_tied_training_with_skips_goes_on_to_the_same_result(tmp_path: Path):
    source, settings = small_source(skips=5), QUICK.model_copy(update={"tied": True})
    whole = learn(source, None, settings=settings)
    with pytest.raises(Interrupted):
        learn(source, tmp_path / "c", stop_after=40, settings=settings)
    again = learn(source, tmp_path / "c", settings=settings)
    np.testing.assert_array_equal(again.model.item_vectors(), whole.model.item_vectors())
    np.testing.assert_array_equal(again.model.query_rows, whole.model.query_rows)


def test_what_was_done_is_not_done_again(source: TrainingSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    learnt: list[int] = []
    original = Fit.learn
    monkeypatch.setattr(Fit, "learn", lambda fit, *args: learnt.append(1) or original(fit, *args))
    learn(source, None)
    whole = len(learnt)
    learnt.clear()
    with pytest.raises(Interrupted):
        learn(source, tmp_path / "c", stop_after=45)
    learn(source, tmp_path / "c")
    assert len(learnt) == whole


def test_a_checkpoint_of_another_training_or_a_damaged_one_is_refused_with_the_way_out(
    source: TrainingSet, tmp_path: Path
):
    with pytest.raises(Interrupted):
        learn(source, tmp_path / "c", stop_after=5)
    with pytest.raises(CheckpointError, match=r"is of another training.*remove it"):
        Checkpoints(tmp_path / "c", "another", clock=time.monotonic).restore([], "validation")
    (tmp_path / "c" / "validation" / STATE).write_text("{")
    with pytest.raises(CheckpointError, match=r"state\.json: cannot be read .*remove"):
        learn(source, tmp_path / "c")


def test_the_identity_tells_log_settings_and_start(tmp_path: Path):
    log, other = stored(), stored(small_log(500))
    identities = {
        identity_of(log, QUICK.model_dump(), None),
        identity_of(other, QUICK.model_dump(), None),
        identity_of(log, SETTINGS.model_dump(), None),
        identity_of(log, QUICK.model_dump(), "newest"),
    }
    assert len(identities) == 4
    assert identity_of(stored(), QUICK.model_dump(), None) in identities


def test_of_several_processes_the_first_writes_and_all_read(source: TrainingSet, tmp_path: Path):
    with pytest.raises(Interrupted):
        learn(source, tmp_path / "c", stop_after=5)
    before = (tmp_path / "c" / "validation" / STATE).read_bytes()
    net = new_net(source, QUICK, items=len(source.catalogue))
    fit = Fit(net, TrainingData(source.dataset, 400, len(source.catalogue), QUICK), QUICK)
    reader = Checkpoints(tmp_path / "c", "this", every_s=0, writes=False, clock=time.monotonic)
    assert reader.restore([fit, fit], "validation") is not None
    reader.saver([fit], "validation", ModelSelection(1))()
    reader.save([fit], "candidates", ModelSelection(1))
    assert (tmp_path / "c" / "validation" / STATE).read_bytes() == before
    assert not (tmp_path / "c" / "candidates").exists()
