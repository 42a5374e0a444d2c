"""The processes of one `nextwatch up`: the embedded services it needs and our own commands, in the order they need.

Start: broker, Milvus, then ours together. Stop: who lets things in, who answers, who learns, the indexer, Milvus, the
broker, so that each can still finish its last writes.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from infra.local.broker import Broker
from infra.local.embedded_service import EmbeddedService
from infra.local.milvus_server import MilvusServer, Probe
from infra.local.supervisor import Part, Supervisor
from infra.platform.guarded_process import GuardedProcess, start_guarded
from infra.platform.health import fetch_health
from infra.platform.run_files import announce_services, fill_in, read_run_files
from infra.platform.settings import ENV_PREFIX, Settings, to_environ

STOP_ORDER = {
    "gateway": 0,
    "ingest": 0,
    "serving": 1,
    **dict.fromkeys(("history", "join", "trending", "trainer"), 2),
    "indexer": 3,
    "milvus": 8,
    "broker": 9,
}
PROGRAM = (sys.executable, "-m", "infra.cli")
STOP_S = 20.0  # commits, leaves its groups, flushes


@contextlib.contextmanager
def embedded_services(
    settings: Settings, supervisor: Supervisor, *, probe: Probe, environ: Mapping[str, str] = os.environ
) -> Iterator[Settings]:
    """Start the broker and the Milvus that `settings` do not name; yields the settings with their addresses.

    They belong to the supervisor, which stops them after everything else. Raises ServiceError.
    """
    bootstrap = uri = ""
    if not settings.kafka.bootstrap:
        broker = Broker(settings, environ)
        supervisor.add(service_part(broker), broker.process)
        bootstrap = broker.bootstrap
    if not settings.milvus.uri:
        milvus = MilvusServer(settings, probe)
        supervisor.add(service_part(milvus), milvus.process)
        uri = milvus.uri
    supervisor.wait_ready(settings.embedded.ready_timeout_s, crashes=1, setting="embedded.ready_timeout_s")
    filled = fill_in(settings, bootstrap, uri)
    with announce_services(filled):
        yield filled


def service_part(service: EmbeddedService) -> Part:
    """The broker or Milvus; started again on its data and its port."""

    def ask(process: GuardedProcess) -> dict[str, Any]:
        return {"ready": service.is_ready(), "kind": service.kind}

    return Part(service.name, service.restart, ask, STOP_ORDER[service.name], service.directory)


def command_part(name: str, arguments: Sequence[str], settings: Settings, *, program: Sequence[str] = PROGRAM) -> Part:
    """One of our own commands, `nextwatch <arguments>`, as a process called `name` (`serving`, `serving-2`, ...).

    Its metrics are on a free port. It is ready when its /health says so.
    """
    data_dir = settings.data_dir.absolute()
    environ = process_environ(settings, os.environ)

    def start() -> GuardedProcess:
        command = [*program, *arguments]
        return start_guarded(name, command, log=data_dir / "logs" / f"{name}.log", environ=environ, grace_s=STOP_S)

    def ask(process: GuardedProcess) -> dict[str, Any]:
        for record in read_run_files(settings.run_dir):
            if record["pid"] == process.pid:
                return fetch_health(record, settings.metrics) | {"address": f"{record['host']}:{record['port']}"}
        return {"ready": False, "reasons": ["it does not serve /health yet"]}

    return Part(name, start, ask, STOP_ORDER.get(name.partition("-")[0], 0))


def process_environ(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that must see exactly these settings, with a metrics port of its own."""
    own = settings.model_copy(
        update={"data_dir": settings.data_dir.absolute(), "metrics": settings.metrics.model_copy(update={"port": 0})}
    )
    kept = {name: value for name, value in environ.items() if not name.startswith(ENV_PREFIX)}
    return kept | to_environ(own) | {"PYTHONUNBUFFERED": "1"}
