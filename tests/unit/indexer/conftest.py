"""The indexer's tests run on Milvus Lite, and on a Milvus server too whenever NEXTWATCH_TEST_MILVUS names one
(`http://127.0.0.1:19530`). Its collections `items_*` are dropped by the tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from infra.local.milvus_server import MilvusServer, start_milvus
from infra.platform.settings import Milvus, Settings
from tests.conftest import MILVUS_SERVER, milvus_answers
from tests.harness.system import stopping
from tests.unit.indexer.site import Site, Trained


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not MILVUS_SERVER:
        terminalreporter.write_line("indexer: Milvus Lite only; NEXTWATCH_TEST_MILVUS names no Milvus server")


@pytest.fixture(scope="session", params=["milvus-lite", *(["milvus-server"] if MILVUS_SERVER else [])])
def milvus_uri(request: pytest.FixtureRequest) -> str:
    """A running Milvus; a test that uses it runs once for each kind."""
    if request.param == "milvus-server":
        return MILVUS_SERVER
    uri: str = request.getfixturevalue("milvus").uri
    return uri


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def own_milvus(kafka_settings: Settings) -> Iterator[MilvusServer]:
    """A Milvus of the test's own, which may be stopped."""
    with stopping(start_milvus(kafka_settings, probe=milvus_answers)) as server:
        yield server


@pytest.fixture
def own_site(kafka_settings: Settings, own_milvus: MilvusServer, trained: Trained) -> Iterator[Site]:
    """The site of `own_milvus`."""
    settings = kafka_settings.model_copy(update={"milvus": Milvus(uri=own_milvus.uri, timeout_s=2)})
    with closing(Site(settings, trained)) as site:
        yield site


@pytest.fixture
def site(settings: Settings, trained: Trained) -> Iterator[Site]:
    with closing(Site(settings, trained)) as site:
        yield site
