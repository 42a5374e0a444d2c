"""A full disk is named where somebody looks for the reason."""

import shutil
from collections import namedtuple

import pytest

from infra.local.disk import LEAST_BYTES, full_disk
from infra.local.supervisor import Part, Watched
from infra.platform.guarded_process import GuardedProcess

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, LEAST_BYTES - 1))


def test_there_is_room_here_and_a_directory_that_is_not_there_is_not_judged(tmp_path):
    assert full_disk(tmp_path) is None
    assert full_disk(tmp_path / "nothing") is None


def test_a_full_disk_is_named_with_the_way_out(tmp_path, no_room):
    assert full_disk(tmp_path) == f"the disk of {tmp_path} is full (16 MB left): make room, then it goes on by itself"


def test_a_service_that_cannot_be_started_for_a_full_disk_is_tried_again_and_says_so(tmp_path, no_room):
    def start() -> GuardedProcess:
        raise OSError(28, "No space left on device")

    watched = Watched(Part("broker", start, lambda _: {"ready": False}, disk=tmp_path))
    for now_s, wait_s in ((0.0, "0.5"), (1.0, "1"), (3.0, "2")):
        news = watched.step(now_s)
        assert news is not None and "No space left on device" in news and f"the disk of {tmp_path} is full" in news
        assert news.endswith(f"starting it again in {wait_s} s")
    assert watched.step(3.1) is None, "not at once"
