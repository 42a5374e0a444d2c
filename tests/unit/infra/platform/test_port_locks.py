"""A port and a directory belong to one running service."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.platform.guarded_process import ServiceError, start_guarded
from infra.platform.port_locks import free_port, lock_directory

pytestmark = pytest.mark.service


def test_zero_gives_a_free_port() -> None:
    port = free_port(0, "embedded.kafka_port")
    with socket.create_server(("127.0.0.1", port)):
        pass


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_in_use_names_the_setting_even_if_its_owner_would_share_it(host: str) -> None:
    with socket.create_server((host, 0), reuse_port=True) as taken:  # as Milvus Lite does
        port = taken.getsockname()[1]
        with pytest.raises(ServiceError, match=f"port {port} .* in use: give embedded.milvus_port another"):
            free_port(port, "embedded.milvus_port")


def test_a_directory_in_use_names_its_owner_and_the_way_out(tmp_path: Path) -> None:
    lock = lock_directory(tmp_path / "kafka")
    with pytest.raises(ServiceError, match=f"kafka is in use by another nextwatch .process {os.getpid()}.*--data-dir"):
        lock_directory(tmp_path / "kafka", wait_s=0.1)
    os.close(lock)
    os.close(lock_directory(tmp_path / "kafka", wait_s=0.1))


def test_a_directory_is_free_again_only_when_its_service_is_gone(tmp_path: Path) -> None:
    lock = lock_directory(tmp_path)
    process = start_guarded("x", ["sleep", "60"], log=tmp_path / "log", held=[lock])
    os.close(lock)
    process.guard.send_signal(19)  # SIGSTOP: not even the guard has to run for this
    try:
        with pytest.raises(ServiceError, match="in use"):
            lock_directory(tmp_path, wait_s=0.1)
    finally:
        process.guard.send_signal(18)
        process.stop()
    os.close(lock_directory(tmp_path, wait_s=0.1))


def test_a_directory_that_cannot_be_used_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceError, match=r"cannot use .*choose another --data-dir"):
        lock_directory(tmp_path / "file" / "kafka")


def test_what_a_killed_owner_left_is_waited_for(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from infra.platform.port_locks import lock_directory\n"
        "lock_directory(Path(sys.argv[1])); print('mine', flush=True); time.sleep(0.5)"
    )
    owner = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    owner.stdout.readline()
    started = time.monotonic()
    os.close(lock_directory(tmp_path))
    assert time.monotonic() - started > 0.2
    owner.wait()
