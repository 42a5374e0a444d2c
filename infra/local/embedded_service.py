"""A service that we start ourselves, broker or Milvus: a port that stays its own, a locked directory, a guard.

The directory is locked before the port is looked at: what a killed parent left behind has the port until it gives the
directory up, and that is waited for. The lock is handed to the service, so it is free exactly when the service is gone.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal, Self

from infra.platform.guarded_process import GuardedProcess, start_guarded, wait_until_ready
from infra.platform.port_locks import LOOPBACK, free_port, is_listening, lock_directory
from infra.platform.settings import Settings


class EmbeddedService(ABC):
    """A started service. Its port stays the same when it is started again, so that clients find it.

    Raises ServiceError when it cannot be started: program, port or directory is not to be had.
    """

    name: ClassVar[str]
    port_setting: ClassVar[str]
    grace_s: ClassVar[float]
    kind: str | None = None  # where there are several
    stop_signal: ClassVar[Literal["TERM", "INT"]] = "TERM"

    def __init__(self, settings: Settings, directory: str, port: int, environ: Mapping[str, str]) -> None:
        self.settings, self.environ = settings, environ
        self.directory = settings.data_dir.absolute() / directory
        self.port, self.process = self._start(port)
        self._answered = False

    @abstractmethod
    def command(self, port: int) -> Sequence[str | Path]:
        """The words that start it."""

    @abstractmethod
    def answers(self) -> bool:
        """True when it answers a real request."""

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    def is_ready(self) -> bool:
        """True when it has answered a request since it was started, and still listens."""
        listens = is_listening(self.address)
        self._answered = self._answered or (listens and self.answers())
        return self._answered and listens

    def restart(self) -> GuardedProcess:
        """Start it again on its data and its port, after a stop or a crash; does not wait until it is ready."""
        _, self.process = self._start(self.port)
        self._answered = False
        return self.process

    def when_ready(self) -> Self:
        """The same, once it is ready. Otherwise it is stopped, and ServiceError raised with the end of its log."""
        try:
            wait_until_ready(self.process, self.is_ready, self.settings.embedded.ready_timeout_s)
        except BaseException:
            self.process.stop()
            raise
        return self

    def _start(self, port: int) -> tuple[int, GuardedProcess]:
        """The port that it listens on, a free one for 0, and the process."""
        log = self.settings.data_dir.absolute() / "logs" / f"{self.name}.log"
        lock = lock_directory(self.directory)
        try:
            port = free_port(port, self.port_setting)
            return port, start_guarded(
                self.name,
                self.command(port),
                log=log,
                environ=self.environ,
                stop_signal=self.stop_signal,
                grace_s=self.grace_s,
                held=[lock],
            )
        finally:
            os.close(lock)
