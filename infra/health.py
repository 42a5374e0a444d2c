"""Every process's own small web page: `/metrics` for Prometheus, `/health` for whoever must know whether it is ready.

Loopback by default, on a free port by default; where each of them listens is in the run files (infra/run_files.py).
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socketserver
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.exposition import choose_encoder

from infra import metrics
from infra.claims import port_error
from infra.run_files import reachable, run_file
from infra.settings import Settings

IDLE_S = 10.0  # a scraper that sends nothing for so long is cut off


@dataclass
class Health:
    """What the loops of a process say about it; the web page only reads it.

    `ready` is set by the one loop that knows; `waiting_for` and `detail` are for the reader's eyes.
    """

    process: str
    ready: bool = False
    live: bool = True
    waiting_for: str = "start"
    detail: dict[str, Any] = field(default_factory=dict)

    def report(self) -> dict[str, Any]:
        """The body of `/health`."""
        reasons = [] if self.ready else [f"waiting for {self.waiting_for}"]
        return {
            "process": self.process,
            "live": self.live,
            "ready": self.live and self.ready,
            "version": _package_version(),
            "pid": os.getpid(),
            "reasons": reasons if self.live else ["not live", *reasons],
            **self.detail,
        }


@contextlib.contextmanager
def serve_health(
    health: Health, settings: Settings, *, started_ms: int, registry: CollectorRegistry = REGISTRY
) -> Iterator[str]:
    """Serve `health` and `registry` while the block runs; yields `host:port`.

    Raises ServiceError naming `metrics.port` when that port is taken.
    """
    host, port = settings.metrics.host, settings.metrics.port
    try:
        server = _Server((host, port), _handler(health, registry))
    except OSError as error:
        raise port_error(error, host, port, "metrics.port") from None
    metrics.READY.set_function(lambda: float(health.live and health.ready))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="health", daemon=True)
    thread.start()
    address = f"{host}:{server.server_address[1]}"
    try:
        with run_file(settings.run_dir, health.process, address, started_ms):
            yield address
    finally:
        server.shutdown()
        server.server_close()


def fetch_health(record: dict[str, Any], timeout_s: float = 1.0) -> dict[str, Any]:
    """The `/health` of a process by its run file's record; an unreachable one is reported as neither live nor ready."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever proxy the environment names
    url = f"http://{reachable(record['host'])}:{record['port']}/health"
    try:
        with direct.open(url, timeout=timeout_s) as reply:
            body = reply.read()
    except urllib.error.HTTPError as error:  # 503: not ready, with the same body
        body = error.read()
    except OSError as error:
        return _unreachable(record, str(error))
    try:
        return dict(json.loads(body))
    except ValueError:
        return _unreachable(record, "its answer is not JSON")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Without the name look-up of http.server, which takes seconds where DNS does not answer."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A scraper that hangs up is no news."""


def _handler(health: Health, registry: CollectorRegistry) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = IDLE_S

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                self._send(200, content_type, encode(registry))
                return
            report = health.report()
            good = {"/health": report["ready"], "/health/ready": report["ready"], "/health/live": report["live"]}
            if path in good:
                self._send(200 if good[path] else 503, "application/json", json.dumps(report, default=str).encode())
            else:
                self._send(
                    404, "text/plain; charset=utf-8", b"there are /metrics, /health, /health/live, /health/ready\n"
                )

        def _send(self, status: int, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """One line per scrape would drown everything else."""

    return Handler


def _unreachable(record: dict[str, Any], why: str) -> dict[str, Any]:
    return {
        "process": record["name"],
        "pid": record["pid"],
        "live": False,
        "ready": False,
        "reasons": [f"no answer on port {record['port']}: {why}"],
    }


@functools.cache
def _package_version() -> str:
    try:
        return version("nextwatch")
    except PackageNotFoundError:  # run from a checkout that was not installed
        return "unknown"
