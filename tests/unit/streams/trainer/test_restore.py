"""Where a trainer goes on that takes a release back."""

import dataclasses
import sys
from typing import Any

import pytest
from msgspec.structs import replace

from infra.platform.settings import Settings, Trainer
from models.release.bundle import Bundle
from streams import topics
from streams.bundles.source import BundleSource
from streams.messages import ItemVector
from streams.trainer import restore as module
from streams.trainer.learner import Learner
from streams.trainer.restore import restore_release
from tests.unit.streams.trainer.test_learner import example

COMMITTED = 700


@pytest.fixture
def taken_back(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`restore_release` of a bundle with this offset, when the topic holds these rows."""

    def take(offset: int | None, *rows: tuple[bytes, ItemVector | None]) -> module.Restored:
        offsets = {} if offset is None else {f"{topics.TRAINING_EXAMPLES}/0": offset}
        known = dataclasses.replace(bundle, manifest=replace(bundle.manifest, offsets=offsets))
        monkeypatch.setattr(BundleSource, "read", lambda *_: known)
        monkeypatch.setattr(module, "committed_examples", lambda *_: COMMITTED)

        def restore(learner: Learner, _: Any) -> set[bytes]:
            for key, row in rows:
                learner.restore(key, row)
            return set()

        monkeypatch.setattr(module, "_restore_rows", restore)
        return restore_release(Settings(), bundle.manifest.version, {}, 1)

    return take


@pytest.fixture
def learnt(bundle: Bundle) -> tuple[list[tuple[bytes, ItemVector | None]], tuple[bytes, ItemVector]]:
    """The rows of a batch, and the progress behind them."""
    learner = Learner(bundle, {}, Trainer(publish_s=0), seed=1, epoch=1)
    return learner.learn([(600, example("item-1", 5))]).rows, learner.progress_row()


def test_a_new_release_learns_what_came_after_its_data(taken_back):
    found = taken_back(500)
    assert (found.start, found.stop, found.learner.progress.next_offset) == (500, sys.maxsize, 500)


def test_a_trainer_that_died_before_the_first_progress_does_not_learn_what_the_release_holds(taken_back, learnt):
    rows, _ = learnt
    found = taken_back(500, *rows)
    assert (found.start, found.stop, found.learner.progress.next_offset) == (500, sys.maxsize, 500)


def test_a_release_that_was_begun_goes_on_from_its_progress(taken_back, learnt):
    rows, progress = learnt
    found = taken_back(500, *rows, progress)
    assert (found.start, found.stop) == (601, COMMITTED)


def test_a_release_that_does_not_know_where_its_data_ended_begins_at_what_is_committed(taken_back):
    found = taken_back(None)
    assert (found.start, found.stop, found.learner.progress.next_offset) == (COMMITTED, COMMITTED, COMMITTED)
