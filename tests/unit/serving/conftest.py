from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from models.release.bundle import Manifest
from serving.state.release import LiveRelease, load_release
from streams.bundles.source import BundleSource
from tests.unit.serving.worlds import ExactIndex, load, rank_anew, train_small


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """As in a serving process: these batches are far too small for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def bundles_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundles")


@pytest.fixture(scope="session")
def bundles(bundles_dir: Path) -> Sequence[Manifest]:
    """Two releases of the same 40 items. Tests only read them."""
    return [train_small(bundles_dir, seed) for seed in (1, 2)]


@pytest.fixture(scope="session")
def rival(bundles_dir: Path, bundles: Sequence[Manifest]) -> Manifest:
    """A release with the candidates of the first and the ranker of the second."""
    return rank_anew(bundles_dir, *bundles)


@pytest.fixture
def index(bundles_dir: Path, bundles: Sequence[Manifest]) -> ExactIndex:
    """Both of them, searched exactly."""
    return ExactIndex(*(load(bundles_dir, manifest) for manifest in bundles))


@pytest.fixture
def live(bundles_dir: Path, bundles: Sequence[Manifest], index: ExactIndex) -> LiveRelease:
    """The first of them, with a mirror."""
    return load_release(BundleSource(bundles_dir), bundles[0].version, index, mirror_items=1000)
