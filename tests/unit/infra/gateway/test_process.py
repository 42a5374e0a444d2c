"""The web server itself, over sockets: clients that go, dawdle, or send too much; TLS; and how it stops."""

import contextlib
import json
import socket
import ssl
import time
import urllib.request

import pytest

from infra.gateway import process
from infra.gateway.process import MOST_HEAD_BYTES, listening
from infra.platform.certificates import server_tls
from infra.platform.guarded_process import ServiceError
from infra.platform.settings import Gateway
from nextwatch_client import Recommended, RecommendReply
from tests.harness.needs import LINUX, needs
from tests.harness.system import wait_until
from tests.unit.infra.certificates import make_certificates
from tests.unit.infra.gateway.served import head, running

LARGE = RecommendReply("r", items=tuple(Recommended("v" * 200, rank, "trending") for rank in range(40_000)))


def test_a_body_that_is_cut_sends_nothing_and_logs_no_error(capfd):
    with running() as gateway:
        with gateway.connect() as connection:
            connection.sendall(head("POST", "/watches", "Content-Length: 1000") + b'[{"event_id": "e"')
        assert b"200 OK" in gateway.ask(head("GET", "/health", "Connection: close"))
    assert not gateway.brokers.sent and "Traceback" not in capfd.readouterr().err


def test_a_body_that_is_longer_than_announced_is_no_second_request():
    with running() as gateway:
        reply = gateway.ask(
            head("POST", "/watches", "Content-Length: 2", "Connection: close") + b"[]GET / HTTP/1.1\r\n"
        )
    assert reply.startswith(b"HTTP/1.1 400") and reply.count(b"HTTP/1.1") == 1


def test_a_chunked_body_that_grows_too_large_is_refused():
    with running(max_body_bytes=1000) as gateway:
        chunk = b"3e8\r\n" + b" " * 1000 + b"\r\n"
        reply = gateway.ask(
            head("POST", "/watches", "Transfer-Encoding: chunked", "Connection: close") + 2 * chunk + b"0\r\n\r\n"
        )
    assert reply.startswith(b"HTTP/1.1 413")


def test_a_head_that_does_not_end_is_refused():
    with running() as gateway, contextlib.suppress(ConnectionError):
        reply = gateway.ask(b"GET /health HTTP/1.1\r\nX: " + b"x" * 40 * MOST_HEAD_BYTES)
        assert reply.startswith(b"HTTP/1.1 400")


def test_what_is_no_http_is_refused():
    with running() as gateway:
        assert gateway.ask(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n").startswith(b"HTTP/1.1 400")


def test_a_page_with_markup_in_its_path_is_answered_as_data():
    with running() as gateway:
        reply = gateway.ask(head("GET", "/recommend/%3Cscript%3E%22", "Connection: close"))
    assert b"200 OK" in reply and gateway.servers.asked[0].user_id == '<script>"'


def test_a_dot_as_an_id_is_the_id_that_was_sent():
    with running() as gateway:
        gateway.ask(head("GET", "/recommend/%2E%2E", "Connection: close"))
        gateway.ask(head("GET", "/recommend/a%2F%2Fb%2F", "Connection: close"))
    assert [asked.user_id for asked in gateway.servers.asked] == ["..", "a//b/"]


@needs(LINUX)
def test_a_slow_reader_is_left_and_others_are_answered(monkeypatch: pytest.MonkeyPatch):
    """The reply is larger than all buffers: it stands until its reader is given up."""
    monkeypatch.setattr(process, "READER_MS", 1000)
    with running() as gateway:
        gateway.servers.reply = LARGE
        with gateway.connect() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(head("GET", "/recommend/ann"))
            assert b"200 OK" in gateway.ask(head("GET", "/health", "Connection: close"))
            time.sleep(3.0)
            with pytest.raises(ConnectionError):
                while connection.recv(1 << 20):
                    pass
                raise ConnectionResetError  # closed before the end, in other words


def test_it_speaks_tls_with_the_certificate_that_is_set(tmp_path):
    made = make_certificates(tmp_path)
    tls = server_tls("gateway", made.pem("server"), made.key("server"))
    trust = ssl.create_default_context(cafile=made.pem("authority") if made.pem("authority").exists() else None)
    trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
    with running(tls) as gateway:
        url = f"https://127.0.0.1:{gateway.port}/health"
        with urllib.request.urlopen(url, context=trust, timeout=10) as reply:
            assert json.load(reply)["ready"]


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(ServiceError, match=r"gateway\.port"):
        listening(Gateway(port=other.getsockname()[1]))


def test_what_is_in_flight_is_answered_before_it_ends():
    with running() as gateway:
        gateway.servers.wait_s = 0.5
        with gateway.connect() as connection:
            connection.sendall(head("GET", "/recommend/ann", "Connection: close"))
            wait_until(lambda: bool(gateway.servers.asked), "asked", 10)
            gateway.stop.set()
            found = connection.recv(65_536)
    assert found.startswith(b"HTTP/1.1 200")


def test_many_requests_of_one_connection_wait_for_no_acknowledgement():
    """Half a reply that waits for the other end to acknowledge takes 40 ms on Linux."""
    with running() as gateway, gateway.connect() as connection:
        began_s = time.monotonic()
        for _ in range(50):
            connection.sendall(head("GET", "/health"))
            while b"}" not in connection.recv(65_536):
                pass
        assert time.monotonic() - began_s < 50 * 0.03
