"""A token and TLS, before Milvus Lite by a gate of the tests' own (tests/harness/network/gate.py)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr

from indexer.collection import Index
from indexer.errors import IndexRefused, IndexUnavailable
from infra.local.milvus_server import MilvusServer
from infra.local.stack import COMMANDS
from infra.platform.settings import Milvus, Settings
from streams.topics import create_topics
from tests.harness.network.gate import Gate, gate_before
from tests.harness.system import try_cli
from tests.unit.infra.certificates import Certificates, make_certificates

TOKEN, VARIABLE = "root:the-right-one", "NEXTWATCH_MILVUS__TOKEN"
VECTORS = np.eye(3, 9, dtype=np.float32)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def gate(milvus: MilvusServer, certificates: Certificates) -> Iterator[tuple[str, Gate]]:
    """Each test has its own: pymilvus shares a connection to an address, whatever else it is told."""
    with gate_before(milvus.address, TOKEN, certificates.pem("server"), certificates.key("server")) as standing:
        yield standing


def section(gate: tuple[str, Gate], certificates: Certificates, token: str = TOKEN, **change: Any) -> Milvus:
    """The section `milvus` of who is let in, but for a change."""
    ours = {"uri": gate[0], "ca_file": certificates.pem("authority"), "collection_prefix": "secured_", "timeout_s": 2}
    return Milvus(**(ours | change), token=SecretStr(token))


def test_with_the_token_and_its_authority_a_collection_is_made_filled_and_searched(gate, certificates):
    with contextlib.closing(Index(section(gate, certificates))) as index:
        index.create("a", 9)
        index.upsert("a", ["x", "y", "z"], VECTORS, [0] * 3)
        assert index.search("a", VECTORS[1:2], 1)[0][0] == ["y"]
        index.drop("a")


def test_another_token_ends_the_indexer_with_the_settings_name_and_is_not_printed(
    gate, certificates, kafka_settings: Settings
):
    create_topics(kafka_settings.kafka)
    settings = kafka_settings.model_copy(update={"milvus": section(gate, certificates, "root:another-one")})
    done = try_cli(settings, *COMMANDS["indexer"])
    told = done.stdout + done.stderr
    assert done.returncode != 0 and "auth check failure" in told and VARIABLE in told
    assert "another-one" not in told and TOKEN not in told and "Traceback" not in told


def test_a_token_that_is_right_no_more_is_waited_for_in_sight(gate, certificates):
    with contextlib.closing(Index(section(gate, certificates))) as index:
        assert index.versions() == []
        gate[1].token = "root:changed"
        try:
            with pytest.raises(IndexUnavailable, match=VARIABLE):
                index.versions()
            with pytest.raises(IndexRefused, match=VARIABLE):
                Index(section(gate, certificates)).versions()
            with pytest.raises(IndexRefused, match=VARIABLE):
                Index(section(gate, certificates, "")).versions()
        finally:
            gate[1].token = TOKEN
        assert index.versions() == []


def test_a_certificate_of_a_stranger_is_waited_for_and_a_file_that_is_none_is_refused(
    gate, certificates, tmp_path: Path
):
    for wrong in (certificates.pem("stranger"), None):
        with pytest.raises(IndexUnavailable, match=r"CERTIFICATE_VERIFY_FAILED.*milvus\.ca_file"):
            Index(section(gate, certificates, ca_file=wrong)).versions()
    with pytest.raises(IndexRefused, match=r"milvus\.ca_file.*missing\.pem"):
        Index(section(gate, certificates, ca_file=tmp_path / "missing.pem")).versions()


def test_without_tls_nobody_gets_through(gate, certificates):
    with pytest.raises(IndexUnavailable, match="connect"):
        Index(section(gate, certificates, uri=gate[0].replace("https", "http"))).versions()
