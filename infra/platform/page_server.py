"""The web server behind `/metrics` and `/health` (infra/platform/health.py): small, and hard to hold up.

Whatever comes is bounded: a request's size, how long it may take to come, how many are there at once. The standard
library's server alone takes megabytes of headers and waits for ever for a slow one.
"""

from __future__ import annotations

import hmac
import io
import json
import socket
import socketserver
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

ASKING_S = 10.0  # a request that has not come whole by then is cut off
MOST_HEAD_BYTES = 16_384  # of a request, all its headers included
MOST_REQUESTS = 32  # at once; a further one is hung up on
_TEXT = "text/plain; charset=utf-8"


class Reporter(Protocol):
    def outline(self) -> dict[str, bool]: ...  # what anybody may know: "live" and "ready"
    def report(self) -> dict[str, Any]: ...  # with details


class PageServer(ThreadingHTTPServer):
    daemon_threads = True
    tls: ssl.SSLContext | None = None

    def __init__(self, *arguments: Any) -> None:
        self._free = threading.BoundedSemaphore(MOST_REQUESTS)
        super().__init__(*arguments)

    def server_bind(self) -> None:
        """Without the name look-up of http.server, which takes seconds where DNS does not answer."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def get_request(self) -> tuple[Any, Any]:
        """The TLS handshake is the request's own thread's: whoever dawdles holds up nobody else."""
        request, address = super().get_request()
        if self.tls is not None:
            request = self.tls.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
        return request, address

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A scraper that hangs up is no news."""


def pages_of(health: Reporter, registry: CollectorRegistry, token: str) -> type[BaseHTTPRequestHandler]:
    """The pages that are served; `token` is empty when everybody may read everything."""

    class Handler(BaseHTTPRequestHandler):
        def handle(self) -> None:
            head = read_head(self.connection, ASKING_S, MOST_HEAD_BYTES)
            if head is None:
                self.wfile.write(b"HTTP/1.0 431 Request Header Fields Too Large\r\n\r\n")
            else:
                self.rfile = io.BufferedReader(io.BytesIO(head))  # type: ignore[arg-type]
                self.handle_one_request()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._send_metrics()
                return
            outline = health.outline()
            good = {"/health": outline["ready"], "/health/ready": outline["ready"], "/health/live": outline["live"]}
            if path in good:
                report = health.report() if self._is_trusted() else outline
                self._send(200 if good[path] else 503, "application/json", json.dumps(report, default=str).encode())
            else:
                self._send(404, _TEXT, b"there are /metrics, /health, /health/live, /health/ready\n")

        def _send_metrics(self) -> None:
            if not self._is_trusted():
                self._send(
                    401, _TEXT, b"show metrics.token: Authorization: Bearer ...\n", ("WWW-Authenticate", "Bearer")
                )
                return
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
            self._send(200, content_type, encode(registry))

        def _is_trusted(self) -> bool:
            """Compared in a time that does not tell how much of a guess is right."""
            kind, _, shown = self.headers.get("Authorization", "").partition(" ")
            is_right = hmac.compare_digest(shown.strip().encode(), token.encode())
            return not token or (kind.lower() == "bearer" and is_right)

        def _send(self, status: int, content_type: str, body: bytes, *headers: tuple[str, str]) -> None:
            self.send_response(status)
            for name, value in (*headers, ("Content-Type", content_type), ("Content-Length", str(len(body)))):
                self.send_header(name, value)
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def version_string(self) -> str:
            """Nobody needs to know which Python this is."""
            return "nextwatch"

        def log_message(self, *_: Any) -> None:
            """One line per scrape would drown everything else."""

    return Handler


def read_head(connection: socket.socket, within_s: float, most_bytes: int) -> bytes | None:
    """A request up to its empty line; None when it is longer. Raises TimeoutError when it is not there in time,
    however often a byte of it comes."""
    head = b""
    deadline = time.monotonic() + within_s
    while b"\r\n\r\n" not in head and b"\n\n" not in head:
        if (left_s := deadline - time.monotonic()) <= 0:
            raise TimeoutError
        connection.settimeout(left_s)
        more = connection.recv(4096)
        if not more:
            break
        head += more
        if len(head) > most_bytes:
            return None
    connection.settimeout(within_s)
    return head
