"""The web page of a process where not everybody may read it: token, TLS, and requests that are too much."""

import contextlib
import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from pydantic import SecretStr

from infra.operate.status import fetch_samples, read_status, render_status
from infra.platform import page_server
from infra.platform.health import Health, fetch_health, serve_health
from infra.platform.page_server import MOST_HEAD_BYTES, MOST_REQUESTS
from infra.platform.run_files import TARGETS, read_run_files
from infra.platform.settings import Metrics, Settings, SettingsError
from tests.harness.system import wait_until
from tests.unit.infra.certificates import Certificates, make_certificates
from tests.unit.infra.platform.test_health import get

TOKEN = "a-token-that-nobody-guesses"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def tls_of(certificates: Certificates) -> dict[str, Any]:
    return {"tls_cert_file": certificates.pem("server"), "tls_key_file": certificates.key("server")}


@contextlib.contextmanager
def serving(settings: Settings) -> Iterator[tuple[str, dict[str, Any]]]:
    """A page with something to hide: its address and its run file's record."""
    health = Health("history", ready=True, detail={"release": "20260101_000000_abcdef"})
    with serve_health(health, settings, started_ms=1) as address:
        yield address, read_run_files(settings.run_dir)[0]


def status_of(address: str, path: str, *shown: str) -> tuple[int, str]:
    status, _, body = get(address, path, **({"Authorization": shown[0]} if shown else {}))
    return status, body


def is_answered(address: str) -> bool:
    with contextlib.suppress(OSError):
        return status_of(address, "/health")[0] == 200
    return False


def test_metrics_are_for_whoever_shows_the_token(make_settings):
    settings = make_settings(metrics={"token": TOKEN})
    wrong = ["", TOKEN, f"Basic {TOKEN}", "Bearer", "Bearer ", "Bearer \xff"]
    wrong += [f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}"]
    with serving(settings) as (address, _):
        assert [status_of(address, "/metrics", shown)[0] for shown in wrong] == [401] * len(wrong)
        assert status_of(address, "/metrics")[0] == 401
        status, body = status_of(address, "/metrics", f"Bearer {TOKEN}")
        assert status == 200 and "nextwatch_ready" in body
        assert status_of(address, "/metrics", f"bearer {TOKEN}")[0] == 200


def test_without_the_token_health_says_no_more_than_yes_or_no(make_settings):
    with serving(make_settings(metrics={"token": TOKEN})) as (address, _):
        for path in ("/health", "/health/ready", "/health/live"):
            assert status_of(address, path) == (200, '{"live": true, "ready": true}')
        assert json.loads(status_of(address, "/health", f"Bearer {TOKEN}")[1])["release"] == "20260101_000000_abcdef"


def test_our_own_readers_show_the_token_and_trust_our_certificate(make_settings, certificates):
    settings = make_settings(metrics={"token": TOKEN} | tls_of(certificates))
    with serving(settings) as (address, record):
        assert fetch_health(record, settings.metrics)["release"] == "20260101_000000_abcdef"
        assert ("nextwatch_ready", ()) in fetch_samples(record, settings.metrics)
        report = read_status(settings)
        assert report.ready and report.processes[0].tls
        assert render_status(report) is not None
        (target,) = json.loads((settings.run_dir / TARGETS).read_text())
        assert target["labels"] == {"process": "history", "__scheme__": "https"}
        without_token = Metrics(**tls_of(certificates))
        assert fetch_health(record, without_token)["ready"] and not fetch_samples(record, without_token)
        with pytest.raises(urllib.error.URLError):  # a reader that trusts only known authorities
            urllib.request.urlopen(f"https://{address}/health", timeout=5)


def test_a_page_with_another_certificate_is_not_ours(make_settings, certificates):
    settings = make_settings(metrics=tls_of(certificates))
    ours = Metrics(token=SecretStr(TOKEN), tls_cert_file=certificates.pem("client"))
    with serving(settings) as (_, record):
        assert "CERTIFICATE_VERIFY_FAILED" in fetch_health(record, ours)["reasons"][0], "and it has not seen the token"


def test_whoever_dawdles_over_the_handshake_holds_up_nobody(make_settings, certificates):
    settings = make_settings(metrics=tls_of(certificates))
    with serving(settings) as (address, record), socket.create_connection(address.rsplit(":", 1)):
        assert fetch_health(record, settings.metrics, timeout_s=30)["ready"]


@pytest.mark.parametrize(
    ("metrics", "says"),
    [
        ({"tls_cert_file": "/nowhere.pem"}, r"metrics\.tls_cert_file, metrics\.tls_key_file .*nowhere.* cannot"),
        ({"tls_key_file": "/nowhere.pem"}, r"metrics\.tls_key_file is set, and metrics\.tls_cert_file is not"),
    ],
)
def test_a_certificate_that_cannot_be_used_names_its_setting(make_settings, metrics: dict[str, str], says: str):
    with pytest.raises(SettingsError, match=says), serving(make_settings(metrics=metrics)):
        pass


def test_a_page_that_is_open_to_the_network_is_warned_of(make_settings):
    with structlog.testing.capture_logs() as said, serving(make_settings(metrics={"host": "127.0.0.2"})):
        pass
    assert [(entry["log_level"], entry["not_set"]) for entry in said] == [
        ("warning", "metrics.token, metrics.tls_cert_file")
    ]
    with structlog.testing.capture_logs() as said, serving(make_settings()):
        pass
    assert said == []


@pytest.mark.parametrize("request_", [b"GET /" + b"x" * 10**6, b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 10**5])
def test_a_request_that_is_too_long_is_not_read_to_its_end(make_settings, request_: bytes):
    with serving(make_settings()) as (address, _), socket.create_connection(address.rsplit(":", 1), timeout=30) as link:
        with contextlib.suppress(ConnectionError):
            link.sendall(request_ + b"\r\n\r\n")
        answer = b""
        with contextlib.suppress(ConnectionError):
            answer = link.recv(100)
        assert answer == b"" or answer.startswith(b"HTTP/1.0 431 ")
        assert status_of(address, "/health")[0] == 200


def test_what_is_read_of_a_request_ends_at_the_limit_and_at_the_deadline():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"x" * (2 * MOST_HEAD_BYTES))
        assert page_server.read_head(ours, 5.0, MOST_HEAD_BYTES) is None
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"GET / HTTP/1.1\r\n")
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            page_server.read_head(ours, 0.2, MOST_HEAD_BYTES)
        assert time.monotonic() - began >= 0.2


def test_only_so_many_requests_are_under_way_at_once(make_settings, monkeypatch):
    monkeypatch.setattr(page_server, "ASKING_S", 60.0)
    with serving(make_settings()) as (address, _), contextlib.ExitStack() as stack:
        place = address.rsplit(":", 1)
        silent = [stack.enter_context(socket.create_connection(place, timeout=30)) for _ in range(MOST_REQUESTS)]
        further = stack.enter_context(socket.create_connection(place, timeout=30))
        assert further.recv(1) == b"", "hung up on"
        silent.pop().close()
        wait_until(lambda: is_answered(address), "an answer once there is room", 60)
