"""A real Prometheus (Debian's package) on loopback, scraping what a run directory lists."""

from __future__ import annotations

import contextlib
import json
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from infra.platform.guarded_process import start_guarded
from infra.platform.port_locks import free_port
from tests.harness.deployed.manifests import DEPLOY
from tests.harness.needs import PROMETHEUS, require
from tests.harness.system import wait_until


@dataclass(frozen=True)
class Prometheus:
    """Its HTTP API."""

    port: int

    def get(self, path: str, **arguments: str) -> Any:
        """The `data` of an answer. Raises urllib.error.HTTPError, of a query that cannot be computed too."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(arguments)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression has now."""
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return found


@contextlib.contextmanager
def scraping(targets: Path, directory: Path, interval: str = "1s") -> Iterator[Prometheus]:
    """Prometheus with our own configuration, but for where `targets` lie and how often they are asked."""
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text("utf-8"))
    config["global"] = {"scrape_interval": interval, "evaluation_interval": interval}
    config["rule_files"] = [str(DEPLOY / "alerts.yml")]
    config["scrape_configs"][0]["file_sd_configs"][0]["files"] = [str(targets)]
    directory.mkdir(parents=True, exist_ok=True)
    file, port = directory / "prometheus.yml", free_port(0, "web.listen-address")
    file.write_text(yaml.safe_dump(config))
    command = [
        str(require(PROMETHEUS)),
        f"--config.file={file}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    started = start_guarded("prometheus", command, log=directory / "prometheus.log")
    try:
        prometheus = Prometheus(port)

        def is_up() -> bool:
            with contextlib.suppress(OSError):
                return bool(prometheus.get("status/buildinfo"))
            return False

        wait_until(is_up, "Prometheus", 30)
        yield prometheus
    finally:
        started.stop()


def expressions_of_panels(interval: str) -> list[str]:
    """Every query of the dashboard, with `$__rate_interval` filled in."""
    panels = json.loads((DEPLOY / "grafana.json").read_text("utf-8"))["panels"]
    return [target["expr"].replace("$__rate_interval", interval) for panel in panels for target in panel["targets"]]
