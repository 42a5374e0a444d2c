"""The embedded Milvus: one Milvus Lite server process for all of us.

A server of its own, because the in-process form locks its directory and serves one process. Whether it is ready is
asked by a function that the caller hands in: only `indexer` speaks to Milvus.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable

from infra.local.embedded_service import EmbeddedService
from infra.platform.guarded_process import ServiceError
from infra.platform.port_locks import LOOPBACK
from infra.platform.settings import Settings

MEMTABLE_BYTES = 4_000_000  # rows in the memtable are searched slowly; segments are not

Probe = Callable[[str], bool]


class MilvusServer(EmbeddedService):
    """A running Milvus Lite server; its data is in `<data_dir>/milvus`. After a restart collections must be loaded."""

    name, port_setting = "milvus", "embedded.milvus_port"
    grace_s = 15.0  # it waits up to 5 s for requests under way, then closes its collections
    stop_signal = "INT"  # the only signal that it closes its files on

    def __init__(self, settings: Settings, probe: Probe) -> None:
        self.probe = probe
        own = {"MILVUS_LITE_MEMTABLE_MEMORY_LIMIT_BYTES": str(MEMTABLE_BYTES), "PYTHONUNBUFFERED": "1"}
        super().__init__(settings, "milvus", settings.embedded.milvus_port, dict(os.environ) | own)

    @property
    def uri(self) -> str:
        return f"http://{self.address}"

    def command(self, port: int) -> list[str]:
        if importlib.util.find_spec("milvus_lite") is None:
            raise ServiceError(
                "Milvus Lite is not installed (it has no Windows version): set milvus.uri to a Milvus server"
            )
        address = ["--host", LOOPBACK, "--port", str(port)]  # its own default is every interface, without a password
        return [sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(self.directory), *address]

    def answers(self) -> bool:
        return self.probe(self.uri)


def start_milvus(settings: Settings, *, probe: Probe) -> MilvusServer:
    """Start Milvus Lite and wait until `probe(uri)` says that it answers a real request. Raises ServiceError."""
    return MilvusServer(settings, probe).when_ready()
