"""The console behind its web server, over sockets: who reads slowly, a form that is cut, a token in a URL."""

import socket
import time

import pytest

from infra.console.pages import console_pages
from infra.gateway import process
from tests.harness.needs import LINUX, needs
from tests.unit.infra.console.consoles import TOKEN, Serving, know_catalogue
from tests.unit.infra.gateway.gateways import Brokers
from tests.unit.infra.gateway.served import head, running

CLOSE = "Connection: close"


@pytest.fixture(autouse=True)
def catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    know_catalogue(monkeypatch)


@needs(LINUX)
def test_slow_readers_of_a_page_hold_no_other_reader_up_and_are_left(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(process, "READER_MS", 1000)
    servers = Serving(Brokers())
    servers.ids = ["v" * 100_000 + str(number) for number in range(40)]  # a page that is more than all buffers hold
    with running(servers=servers, pages=console_pages, deadline_s=1.0) as gateway:
        slow = [gateway.connect() for _ in range(3)]
        for connection in slow:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(head("GET", "/console/user?user=slow"))
            assert connection.recv(1)  # its page is on its way
        servers.ids = ["a", "b"]
        for path in ("/console/user?user=ann", "/console", "/health"):
            assert b"200 OK" in gateway.ask(head("GET", path, CLOSE))
        time.sleep(2.5)
        for connection in slow:
            with connection, pytest.raises(ConnectionError):
                while connection.recv(1 << 20):
                    pass
                raise ConnectionResetError  # closed before the end, in other words


@pytest.mark.parametrize("path", ["/console/watch", "/console/dead-letter", "/console/roll-back"])
def test_a_form_that_is_cut_does_nothing_and_logs_no_error(path: str, capfd: pytest.CaptureFixture[str]):
    form = b"event_id=e&user=ann&item=v1&id=watch-events/0/1&do=drop&version=v1&token=x"
    with running(pages=console_pages) as gateway:
        with gateway.connect() as connection:
            connection.sendall(head("POST", path, f"Content-Length: {len(form) + 1}") + form)
        assert b"200 OK" in gateway.ask(head("GET", "/health", CLOSE))
    assert not gateway.brokers.sent and "Traceback" not in capfd.readouterr().err


def test_a_token_in_a_url_is_refused_and_stands_in_no_log(capfd: pytest.CaptureFixture[str]):
    with running(token=TOKEN, pages=console_pages) as gateway:
        for path in (f"/console/user?user={TOKEN}", f"/console/{TOKEN}", "/console/login?token=guessed-token"):
            reply = gateway.ask(head("GET", path, CLOSE))
            assert reply.startswith(b"HTTP/1.1 400") and TOKEN.encode() not in reply
    out, err = capfd.readouterr()
    assert TOKEN not in out + err and "guessed-token" not in out + err
