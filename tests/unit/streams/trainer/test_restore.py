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
from streams.kafka.topic_ids import TopicReplaced
from streams.messages import ItemVector
from streams.trainer import restore as module
from streams.trainer.learner import Learner
from streams.trainer.restore import restore_release
from tests.unit.streams.trainer.test_learner import example

COMMITTED, END = 700, 800


@pytest.fixture
def made_anew() -> list[str]:
    """Topics that are not those of before."""
    return []


@pytest.fixture
def remembered() -> list[str]:
    """Workers that remember the topics as they are."""
    return []


@pytest.fixture
def taken_back(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, made_anew: list[str], remembered: list[str]) -> Any:
    """`restore_release` of a bundle with this offset, when the topic holds these rows."""

    def take(offset: int | None, *rows: tuple[bytes, ItemVector | None]) -> module.Restored:
        offsets = {} if offset is None else {f"{topics.TRAINING_EXAMPLES}/0": offset}
        known = dataclasses.replace(bundle, manifest=replace(bundle.manifest, offsets=offsets))
        monkeypatch.setattr(BundleSource, "read", lambda *_: known)
        monkeypatch.setattr(module, "committed_examples", lambda *_: COMMITTED)
        monkeypatch.setattr(module, "end_of_examples", lambda *_: END)
        monkeypatch.setattr(module, "changes_of", lambda *_: dict.fromkeys(made_anew, "made again"))
        monkeypatch.setattr(module, "remember_ids", lambda _, worker: remembered.append(worker))

        def restore(learner: Learner, *_: Any) -> set[bytes]:
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


def test_what_was_learnt_of_a_watch_topic_that_was_made_again_is_forgotten_and_the_rows_stay(
    taken_back, learnt, made_anew, remembered
):
    rows, progress = learnt
    assert taken_back(500, *rows, progress).learner.progress.watched and remembered == ["trainer"]
    made_anew.append(topics.WATCH_EVENTS)
    found = taken_back(500, *rows, progress)
    assert (found.start, found.is_renewed, dict(found.learner.progress.watched)) == (601, True, {})
    assert (found.stop, found.learner.renewed_to) == (END, END), "what is there may be of the topic before"
    assert remembered == ["trainer"], "not before the progress says so"


def test_examples_that_were_made_again_are_learnt_by_a_new_release_only(taken_back, learnt, made_anew):
    rows, progress = learnt
    made_anew.append(topics.TRAINING_EXAMPLES)
    with pytest.raises(TopicReplaced):
        taken_back(500, *rows, progress)
    assert taken_back(500).start == 500
    assert taken_back(END + 1).learner.progress.next_offset == 0, "trained before they were made again"


def test_what_was_committed_of_examples_that_were_made_again_is_not_passed_over(taken_back, monkeypatch):
    monkeypatch.setattr("tests.unit.streams.trainer.test_restore.END", COMMITTED - 1)
    found = taken_back(None)
    assert (found.start, found.stop, found.learner.progress.next_offset) == (0, 0, 0)
