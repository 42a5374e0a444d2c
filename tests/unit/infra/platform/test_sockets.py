"""What the test of `up` relies on: a socket that is open to the network is seen."""

import os
import socket

import pytest

from tests.harness.needs import IPV6, lack
from tests.unit.infra.sockets import is_loopback, listening


@pytest.mark.parametrize(
    ("family", "host", "loopback"),
    [
        (socket.AF_INET, "127.0.0.1", True),
        (socket.AF_INET, "0.0.0.0", False),
        (socket.AF_INET6, "::1", True),
        (socket.AF_INET6, "::", False),
        (socket.AF_INET6, "::ffff:127.0.0.1", True),
    ],
)
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_listening_socket_is_seen_with_its_address(
    family: socket.AddressFamily, host: str, loopback: bool, kind: socket.SocketKind
):
    before = listening([os.getpid()])[os.getpid()]
    with socket.socket(family, kind) as mine:
        try:
            mine.bind((host, 0))
        except OSError as error:
            lack(IPV6, f"no {host} on this machine: {error}")
        if kind == socket.SOCK_STREAM:
            mine.listen()
        (found,) = listening([os.getpid()])[os.getpid()] - before
        assert found.endswith(f":{mine.getsockname()[1]}") and is_loopback(found) == loopback
    assert listening([os.getpid()])[os.getpid()] == before
