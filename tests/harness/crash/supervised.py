"""`nextwatch up` on a real broker, as a person runs it, and how its processes are found and killed from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from infra.local.broker import answers
from infra.local.processes import process_environ
from infra.local.stack import COMMANDS
from infra.platform import fault_points
from infra.platform.health import fetch_health
from infra.platform.port_locks import LOOPBACK, free_port, is_listening
from infra.platform.run_files import fill_in, read_run_files
from infra.platform.settings import Settings
from tests.harness.system import cli, wait_until, with_section

OURS = tuple(COMMANDS)
SERVICES = {"broker": b"kafka.Kafka", "milvus": b"milvus_lite"}  # and what their command lines hold
ALL = (*OURS, *SERVICES)
UP = "up"
READY_S = 240.0  # much longer than it takes, also on a machine that has too much to do
GONE_S = 90.0


class Supervised:
    """Started, killed and started again on one data directory and the same two ports.

    `settings` reach what runs; `faults` is where points are armed; `more` variables are given to every process.
    """

    def __init__(self, settings: Settings, more: Mapping[str, str] = MappingProxyType({})) -> None:
        self._more = more
        ports = {name: free_port(0, f"embedded.{name}") for name in ("kafka_port", "milvus_port")}
        own = with_section(settings, "embedded", ready_timeout_s=READY_S, **ports)
        self._own = with_section(own, "gateway", port=0)
        addresses = f"{LOOPBACK}:{ports['kafka_port']}", f"http://{LOOPBACK}:{ports['milvus_port']}"
        self.settings = fill_in(self._own, *addresses)
        self.faults = settings.data_dir / "faults"
        self.faults.mkdir(parents=True)
        self._log = settings.data_dir / "up.log"
        self._up: subprocess.Popen[bytes] | None = None
        self._services: dict[str, int] = {}  # process ids that were found, until they are gone
        self._answered: set[int] = set()

    def start(self) -> None:
        """Start `up`; it is not waited for."""
        environ = process_environ(self._own, os.environ) | {fault_points.VARIABLE: str(self.faults)} | self._more
        with self._log.open("ab") as output:
            self._up = subprocess.Popen(
                cli("up"), env=environ, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True
            )

    def said(self) -> str:
        """All that `up` has printed."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def stop(self) -> int:
        """Ctrl-C; its exit code when nothing is left of it."""
        assert self._up is not None
        self._up.send_signal(signal.SIGINT)
        code = self._up.wait(GONE_S)
        self.wait_gone()
        return code

    def kill(self, name: str) -> int:
        """SIGKILL to one process, or to `up`; the process id that it had, 0 when it does not run just now."""
        pid = self.pid_of(name)
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if name == UP and self._up is not None:
            self._up.wait()
        return pid

    def wait_gone(self) -> None:
        """Return when nothing of what `up` has started runs any more."""
        wait_until(lambda: not self._relatives(), "gone", GONE_S, every_s=0.1)

    def pid_of(self, name: str) -> int:
        """Of a process of ours, of `broker` or `milvus` themselves, or of `up`; 0 when there is none."""
        if name == UP:
            return self._up.pid if self._up is not None and self._up.poll() is None else 0
        if name in SERVICES:
            if not Path(f"/proc/{self._services.get(name, 0)}").exists():
                found = (pid for pid, command in self._relatives().items() if SERVICES[name] in command)
                self._services[name] = next(found, 0)
            return self._services[name]
        return next((each["pid"] for each in read_run_files(self.settings.run_dir) if each["name"] == name), 0)

    def ready(self) -> dict[str, int]:
        """The processes that say that they are ready (the services: that answer), with their process ids."""
        records = read_run_files(self.settings.run_dir)
        found = {each["name"]: each["pid"] for each in records if fetch_health(each)["ready"]}
        return found | {name: pid for name in SERVICES if (pid := self.pid_of(name)) and self._answers(name, pid)}

    def arm(self, point: str, times: int = 1) -> None:
        """Whoever reaches the point for the so-manieth time from now on dies there."""
        assert point in fault_points.POINTS, point
        draft = self.faults / f".{point}"
        draft.write_text(str(times), encoding="utf-8")
        self._death_at(point).unlink(missing_ok=True)
        draft.rename(self.faults / point)

    def has_died_at(self, point: str) -> bool:
        return self._death_at(point).exists()

    def disarm(self, point: str) -> None:
        (self.faults / point).unlink(missing_ok=True)

    def _death_at(self, point: str) -> Path:
        return self.faults / f"{point}{fault_points.DIED}"

    def _answers(self, name: str, pid: int) -> bool:
        """A service that has answered once is asked no more: that would cost more than all other looking."""
        broker, milvus = self.settings.kafka.bootstrap, self.settings.milvus.uri.removeprefix("http://")
        if pid not in self._answered and (answers(broker) if name == "broker" else is_listening(milvus)):
            self._answered.add(pid)
        return pid in self._answered

    def _relatives(self) -> dict[int, bytes]:
        """The command lines, by process id, of what `up` has started, guards left out: all carry its data directory."""
        mark = str(self.settings.data_dir.absolute()).encode()
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) not in {os.getpid(), self.pid_of(UP)}:
                with contextlib.suppress(OSError):  # it has ended meanwhile
                    command = (entry / "cmdline").read_bytes()
                    if b"process_guard.py" not in command and (
                        mark in command or mark in (entry / "environ").read_bytes()
                    ):
                        found[int(entry.name)] = command
        return found


@contextlib.contextmanager
def supervised(settings: Settings, more: Mapping[str, str] = MappingProxyType({})) -> Iterator[Supervised]:
    """`up`, started; whatever ends the block, nothing is left."""
    running = Supervised(settings, more)
    running.start()
    try:
        yield running
    finally:
        running.kill(UP)
        deadline = time.monotonic() + GONE_S
        while (pids := running._relatives()) and time.monotonic() < deadline:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
