"""A process of ours that cannot outlive us: started under infra/platform/process_guard.py, logged to a file, stopped by
closing a pipe.

What must hold for every service and worker is here once: own process group, output in `<data_dir>/logs/<name>.log`,
graceful stop before SIGKILL, and nothing left behind when we die, by whatever cause.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

GUARD = Path(__file__).with_name("process_guard.py")
LOG_BYTES = 10_000_000  # a larger log is put aside when its process starts


class ServiceError(RuntimeError):
    """A service or process of ours cannot be started; the text names the setting or file and the way out."""


@dataclass
class GuardedProcess:
    """A running command: `pid` is the command's own (its process group's too), the guard stands between it and us."""

    name: str
    pid: int
    log: Path
    grace_s: float
    guard: subprocess.Popen[bytes] = field(repr=False)

    def poll(self) -> int | None:
        """The command's exit code (128 + signal if one ended it), None while it runs."""
        code = self.guard.poll()
        if code is not None and code < 0:  # the guard itself was killed: what it guarded is ours to end
            self._signal(signal.SIGKILL)
        return code

    def ask_to_stop(self) -> None:
        """Begin a graceful stop and return at once."""
        assert self.guard.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # the guard has ended, or was asked before
            self.guard.stdin.write(b"stop\n")
        with contextlib.suppress(OSError):
            self.guard.stdin.close()

    def wait(self, timeout_s: float) -> int | None:
        """Its exit code, None if it still runs after `timeout_s`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.guard.wait(timeout_s)
        return self.poll()

    def stop(self) -> int:
        """Graceful stop, SIGKILL after the grace; returns when nothing of it is left."""
        self.ask_to_stop()
        code = self.wait(self.grace_s + 10)
        return self.kill() if code is None else code

    def kill(self) -> int:
        """SIGKILL to the whole group: a crash."""
        self._signal(signal.SIGKILL)
        code = self.wait(10)
        if code is None:  # the guard hangs: it has nothing left to guard
            self.guard.kill()
            code = self.guard.wait()
        self.ask_to_stop()
        return code

    def tail(self, lines: int = 20) -> str:
        """The end of its log."""
        return log_tail(self.log, lines)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


def start_guarded(
    name: str,
    command: Sequence[str | Path],
    *,
    log: Path,
    environ: Mapping[str, str] | None = None,
    stop_signal: Literal["TERM", "INT"] = "TERM",
    grace_s: float = 10.0,
    held: Iterable[int] = (),
) -> GuardedProcess:
    """Start `command` under a guard; `held` are descriptors (locks) that it keeps open as long as it lives.

    Raises ServiceError when it cannot be executed.
    """
    read, write = os.pipe()
    options = ["--signal", stop_signal, "--grace", str(grace_s), "--report", str(write)]
    try:
        with open_log(log) as output:
            guard = subprocess.Popen(
                [sys.executable, "-I", "-S", str(GUARD), *options, "--", *map(str, command)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(os.environ if environ is None else environ),
                pass_fds=(write, *held),
                start_new_session=True,
            )
    finally:
        os.close(write)
    with os.fdopen(read) as pipe:  # both ends of the guard's are closed once the command runs, or cannot
        report = pipe.read().splitlines()
    pids = [int(line) for line in report if line.isdigit()]
    if len(report) != 1 or not pids:
        guard.kill()
        guard.wait()
        reason = next((line for line in report if not line.isdigit()), log_tail(log))
        raise ServiceError(f"{name} cannot be started: {reason}")
    return GuardedProcess(name, pids[0], log, grace_s, guard)


def wait_until_ready(process: GuardedProcess, is_ready: Callable[[], bool], timeout_s: float) -> None:
    """Return when `is_ready()`. Raises ServiceError with the end of the log if it ends first or takes too long."""
    deadline = time.monotonic() + timeout_s
    while not is_ready():
        code = process.poll()
        if code is not None:
            raise ServiceError(f"{process.name} ended with code {code} while starting; {process.tail()}")
        if time.monotonic() > deadline:
            raise ServiceError(
                f"{process.name} is not ready after {timeout_s:g} s (embedded.ready_timeout_s); {process.tail()}"
            )
        time.sleep(0.05)


def open_log(log: Path) -> contextlib.AbstractContextManager[BinaryIO]:
    """`log` opened for appending, an overgrown one put aside first."""
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > LOG_BYTES:
        log.replace(log.with_name(log.name + ".1"))
    return log.open("ab")


def log_tail(log: Path | None, lines: int = 20) -> str:
    """The last lines of a log, with its path in front."""
    if log is None:
        return "it has no log yet"
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 64_000))
            last = file.read().decode("utf-8", "replace").splitlines()[-lines:]
    except OSError:
        last = []
    return "\n".join([f"{log} ends with:", *(f"  {line}" for line in last)]) if last else f"{log} is empty"
