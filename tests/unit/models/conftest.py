"""One small release, trained once for all tests of models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.logs.stored_log import store_frame
from models.release.bundle import Bundle, read_bundle
from models.release.training import train_with_trial
from tests.unit.models.samples import RANKER, SETTINGS, START_MS, small_items, small_log


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Matrices this small are slower on several threads, many times slower on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a bundle; copy it before damaging it."""
    bundles_dir = tmp_path_factory.mktemp("bundles")
    manifest = train_with_trial(
        store_frame(small_log(step_ms=60_000), tmp_path_factory.mktemp("log"), completed_s=18.0),
        small_items(),
        settings=SETTINGS,
        ranker=RANKER,
        bundles_dir=bundles_dir,
        created_ms=START_MS,
        offsets={"training-examples/0": 17},
    ).manifest
    return bundles_dir / manifest.version


@pytest.fixture
def bundle(release: Path) -> Bundle:
    """A fresh copy in memory: tests may change it."""
    return read_bundle(release)
