"""The indexer's tests run on Milvus Lite, and on a Milvus server too whenever NEXTWATCH_TEST_MILVUS names one
(`http://127.0.0.1:19530`). Its collections `items_*` are dropped by the tests.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from infra.platform.settings import Settings
from tests.unit.indexer.site import Site, Trained

SERVER = os.environ.get("NEXTWATCH_TEST_MILVUS", "")  # read before the settings' variables are taken away


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not SERVER:
        terminalreporter.write_line("indexer: Milvus Lite only; NEXTWATCH_TEST_MILVUS names no Milvus server")


@pytest.fixture(scope="session", params=["milvus-lite", *(["milvus-server"] if SERVER else [])])
def milvus_uri(request: pytest.FixtureRequest) -> str:
    """A running Milvus; a test that uses it runs once for each kind."""
    if request.param == "milvus-server":
        return SERVER
    uri: str = request.getfixturevalue("milvus").uri
    return uri


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def site(settings: Settings, trained: Trained) -> Iterator[Site]:
    site = Site(settings, trained)
    yield site
    site.close()
