"""Every process's own small web page: `/metrics` for Prometheus, `/health` for whoever must know whether it is ready.

Loopback by default, on a free port by default; where each of them listens is in the run files
(infra/platform/run_files.py). With `metrics.token` set, `/metrics` is given to whoever shows it, and so are the
details of `/health`: whether a process lives and is ready stays open to all, since load balancers have no token to
show.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import os
import shutil
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from math import nan
from pathlib import Path
from typing import Any, Literal

import structlog
from prometheus_client import REGISTRY, CollectorRegistry

from infra.platform import metrics
from infra.platform.certificates import server_tls
from infra.platform.memory import short_collections
from infra.platform.page_server import PageServer, pages_of
from infra.platform.port_locks import port_error
from infra.platform.run_files import LOOPBACK_HOSTS, reachable, run_file
from infra.platform.settings import Metrics, Settings

log = structlog.get_logger(__name__)

MOST_REPLY_BYTES = 50_000_000  # of a page that we read ourselves


@dataclass
class Health:
    """The state of a process, as its loops say; the web page only reads it.

    `ready` is set by the one loop that knows, and so is `standby`: not ready, and rightly so, since another process has
    the work. `waiting_for` and `detail` are for the reader's eyes.
    """

    process: str
    ready: bool = False
    standby: bool = False
    live: bool = True
    waiting_for: str = "start"
    detail: dict[str, Any] = field(default_factory=dict)

    def outline(self) -> dict[str, bool]:
        """The part that anybody may know."""
        return {"live": self.live, "ready": self.live and self.ready}

    def report(self) -> dict[str, Any]:
        """The body of `/health`."""
        reasons = [] if self.ready else [f"waiting for {self.waiting_for}"]
        return {
            "process": self.process,
            **self.outline(),
            "version": _package_version(),
            "pid": os.getpid(),
            "reasons": reasons if self.live else ["not live", *reasons],
            **self.detail,
        }


@contextlib.contextmanager
def serve_health(
    health: Health, settings: Settings, *, started_ms: int, registry: CollectorRegistry = REGISTRY
) -> Iterator[str]:
    """Serve `health` and `registry` while the block runs, and keep the garbage collector short; yields `host:port`.

    Raises ServiceError naming `metrics.port` when that port is taken, SettingsError for a certificate that cannot be
    used.
    """
    host, port = settings.metrics.host, settings.metrics.port
    tls = server_tls("metrics", settings.metrics.tls_cert_file, settings.metrics.tls_key_file)
    _warn_if_open(settings.metrics)
    try:
        server = PageServer((host, port), pages_of(health, registry, settings.metrics.token.get_secret_value()))
        server.tls = tls
    except OSError as error:
        raise port_error(error, host, port, "metrics.port") from None
    metrics.READY.set_function(lambda: float(health.live and health.ready))
    metrics.STANDBY.set_function(lambda: float(health.standby))
    for name, directory in {"data_dir": settings.data_dir, "bundles": settings.bundles_dir}.items():
        metrics.DISK_FREE.labels(name).set_function(functools.partial(_of_volume, directory, "free"))
        metrics.DISK_SIZE.labels(name).set_function(functools.partial(_of_volume, directory, "total"))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="health", daemon=True)
    thread.start()
    address = f"{host}:{server.server_address[1]}"
    try:
        with (
            run_file(settings.run_dir, health.process, address, started_ms, tls=tls is not None),
            short_collections(lambda: health.ready) as collections,
        ):
            metrics.LONGEST_COLLECTION.set_function(lambda: collections.longest_s)
            yield address
    finally:
        server.shutdown()
        server.server_close()


def fetch_health(record: dict[str, Any], access: Metrics | None = None, timeout_s: float = 1.0) -> dict[str, Any]:
    """The `/health` of a process by its run file's record; an unreachable one is reported as neither live nor ready.

    `access`: the settings that the process has, for its token and its certificate."""
    about: dict[str, Any] = {"process": record["name"], "pid": record["pid"], "reasons": []}
    try:
        found = json.loads(fetch_page(record, "/health", access, timeout_s))
        return {**about, "live": found["live"], "ready": found["ready"], **found}
    except OSError as error:
        why = str(error)
    except (ValueError, TypeError, KeyError, RecursionError):
        why = "its answer says nothing of health"
    return about | {"live": False, "ready": False, "reasons": [f"no answer on port {record['port']}: {why}"]}


def fetch_page(record: dict[str, Any], path: str, access: Metrics | None, timeout_s: float) -> bytes:
    """A page of one of our processes, whatever its status. Raises OSError."""
    access = access or Metrics()
    tls = record.get("tls", False)
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}),  # whatever proxy the environment names
        urllib.request.HTTPSHandler(context=_tls_of_reader(access) if tls else None),
    )
    url = f"{'https' if tls else 'http'}://{reachable(record['host'])}:{record['port']}{path}"
    token = access.token.get_secret_value()
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with opener.open(request, timeout=timeout_s) as reply:
            return bytes(reply.read(MOST_REPLY_BYTES))
    except urllib.error.HTTPError as error:  # 503: not ready, with the same body
        return error.read(MOST_REPLY_BYTES)
    except http.client.HTTPException as error:
        raise OSError(f"its answer is not HTTP: {error!r}") from None


def _of_volume(directory: Path, what: Literal["free", "total"]) -> float:
    """Bytes; NaN while the directory is not there."""
    try:
        return float(getattr(shutil.disk_usage(directory), what))
    except OSError:
        return nan


def _tls_of_reader(access: Metrics) -> ssl.SSLContext:
    """Trusts the one certificate that our processes have, whatever name is in it: we ask by address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if access.tls_cert_file is not None:
        context.load_verify_locations(access.tls_cert_file)
    return context


def _warn_if_open(access: Metrics) -> None:
    if access.host in LOOPBACK_HOSTS:
        return
    given = {"metrics.token": access.token.get_secret_value(), "metrics.tls_cert_file": access.tls_cert_file}
    if missing := [name for name, value in given.items() if not value]:
        log.warning("the metrics page is open to the network", host=access.host, not_set=", ".join(missing))


@functools.cache
def _package_version() -> str:
    try:
        return version("nextwatch")
    except PackageNotFoundError:  # run from a checkout that was not installed
        return "unknown"
