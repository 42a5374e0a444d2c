"""The embedded Milvus: one Milvus Lite server process for all of us.

A server of its own, because the in-process form locks its directory and serves one process. Whether it is ready is
asked by a function that the caller hands in: only `indexer` speaks to Milvus.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from infra.platform.guarded_process import GuardedProcess, ServiceError, start_guarded, wait_until_ready
from infra.platform.port_locks import LOOPBACK, claim_directory, claim_port, is_listening
from infra.platform.settings import Settings

MEMTABLE_BYTES = 4_000_000  # rows in the memtable are searched slowly; segments are not
STOP_S = 15.0  # it waits up to 5 s for requests under way, then closes its collections

Probe = Callable[[str], bool]


@dataclass
class MilvusServer:
    """A running Milvus Lite server. Its port stays the same when it is started again."""

    port: int
    settings: Settings
    probe: Probe
    child: GuardedProcess
    answered: bool = False

    @property
    def uri(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def is_ready(self) -> bool:
        """Whether it has answered the probe since it was started, and still listens."""
        listens = is_listening(f"{LOOPBACK}:{self.port}")
        self.answered = self.answered or (listens and self.probe(self.uri))
        return self.answered and listens

    def restart(self) -> GuardedProcess:
        """Start it again on its data and its port; collections have to be loaded again."""
        _, self.child = _start(self.settings, self.port)
        self.answered = False
        return self.child


def start_milvus(settings: Settings, *, probe: Probe) -> MilvusServer:
    """Start Milvus Lite and wait until `probe(uri)` says that it answers a real request.

    Raises ServiceError: as `launch_milvus`, or not ready within `embedded.ready_timeout_s` (with the end of its log).
    """
    server = launch_milvus(settings, probe=probe)
    try:
        wait_until_ready(server.child, server.is_ready, settings.embedded.ready_timeout_s)
    except BaseException:
        server.child.stop()
        raise
    return server


def launch_milvus(settings: Settings, *, probe: Probe) -> MilvusServer:
    """Start Milvus Lite without waiting for it; its data is in `<data_dir>/milvus`.

    Raises ServiceError: not installed, a port in use, a directory in use.
    """
    port, child = _start(settings, settings.embedded.milvus_port)
    return MilvusServer(port, settings, probe, child)


def _start(settings: Settings, port: int) -> tuple[int, GuardedProcess]:
    """The port that it listens on, and the server. The directory is claimed first, as for the broker."""
    if importlib.util.find_spec("milvus_lite") is None:
        raise ServiceError(
            "Milvus Lite is not installed (it has no Windows version): set milvus.uri to a Milvus server"
        )
    data_dir = settings.data_dir.absolute()
    lock = claim_directory(data_dir / "milvus")
    try:
        port = claim_port(port, "embedded.milvus_port")
        address = ["--host", LOOPBACK, "--port", str(port)]  # its own default is every interface, without a password
        return port, start_guarded(
            "milvus",
            [sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(data_dir / "milvus"), *address],
            log=data_dir / "logs" / "milvus.log",
            environ=_environ(os.environ),
            stop_signal="INT",  # the only signal that it closes its files on
            grace_s=STOP_S,
            held=[lock],
        )
    finally:
        os.close(lock)


def _environ(environ: Mapping[str, str]) -> dict[str, str]:
    return dict(environ) | {
        "MILVUS_LITE_MEMTABLE_MEMORY_LIMIT_BYTES": str(MEMTABLE_BYTES),
        "PYTHONUNBUFFERED": "1",
    }
