from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from streams.bundles import objects as module
from streams.bundles.objects import Objects
from tests.harness.buckets import CREDENTIALS, Proxy, proxy_before, s3_server
from tests.harness.needs import MOTO, require
from tests.unit.serving.worlds import train_small


@pytest.fixture(scope="session")
def s3() -> Iterator[int]:
    """The port of moto's S3 server."""
    require(MOTO)
    with s3_server() as port:
        yield port


@pytest.fixture
def bucket(s3: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A place of the test's own in a bucket, behind a proxy; pieces of 50 kB, so that files have several."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module, "PIECE_BYTES", 50_000)
    with proxy_before(s3) as proxy:
        yield proxy


@pytest.fixture
def objects(bucket: Proxy) -> Objects:
    return Objects(bucket.settings(timeout_s=5.0))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The directories of three bundles, oldest first. Tests only read them."""
    bundles_dir = tmp_path_factory.mktemp("trained")
    return [bundles_dir / train_small(bundles_dir, seed).version for seed in (1, 2, 3)]


@pytest.fixture
def bundle(trained: list[Path]) -> Path:
    return trained[0]
