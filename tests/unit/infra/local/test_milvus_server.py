"""The embedded Milvus: one server, loopback, its rows kept, its errors clear."""

import socket
from collections.abc import Iterator

import pytest
from pymilvus import MilvusClient

from infra.local.milvus_server import MilvusServer, start_milvus
from infra.platform.guarded_process import ServiceError
from tests.conftest import milvus_answers
from tests.harness.system import stopping


@pytest.fixture
def own_milvus(make_settings) -> Iterator[MilvusServer]:
    """A server of this test alone, which it may stop and kill."""
    with stopping(start_milvus(make_settings(), probe=milvus_answers)) as server:
        yield server


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_rows_survive(own_milvus, end: str):
    client = MilvusClient(uri=own_milvus.uri)
    client.create_collection("things", dimension=2)
    client.insert("things", [{"id": 1, "vector": [1.0, 0.0]}])
    client.close()
    code = own_milvus.process.stop() if end == "stop" else own_milvus.process.kill()
    assert code == (0 if end == "stop" else 137)
    before = own_milvus.uri
    own_milvus.restart()
    own_milvus.when_ready()
    assert own_milvus.uri == before
    client = MilvusClient(uri=own_milvus.uri)
    client.load_collection("things")
    assert client.query("things", filter="id == 1")[0]["id"] == 1
    client.close()


def test_a_running_server_listens_on_loopback_only_and_lends_neither_port_nor_directory(
    own_milvus, make_settings, monkeypatch
):
    monkeypatch.setattr("infra.platform.port_locks.LOCK_WAIT_S", 0.2)
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", own_milvus.port), timeout=1)
    with pytest.raises(ServiceError, match=r"milvus is in use by another nextwatch.*--data-dir"):
        start_milvus(own_milvus.settings, probe=milvus_answers)
    # the server itself would share its port, and each client would meet one of the two by chance
    other = make_settings(data_dir=own_milvus.settings.data_dir / "other", embedded={"milvus_port": own_milvus.port})
    with pytest.raises(ServiceError, match=r"in use: give embedded\.milvus_port another"):
        start_milvus(other, probe=milvus_answers)


@pytest.mark.service
def test_a_server_that_the_probe_never_likes_is_stopped(make_settings):
    settings = make_settings(embedded={"ready_timeout_s": 0.3})
    with pytest.raises(ServiceError, match=r"milvus is not ready after 0\.3 s \(embedded\.ready_timeout_s\)"):
        start_milvus(settings, probe=lambda uri: False)


def test_without_the_package_the_error_names_the_setting(make_settings, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ServiceError, match=r"set milvus\.uri"):
        start_milvus(make_settings(), probe=lambda uri: True)
