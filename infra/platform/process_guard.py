"""Runs one command and stops it, with all that it started, once the parent is gone: `python -I -S process_guard.py --
COMMAND`.

A parent that is killed by SIGKILL cannot clean up, so a process of its own does. The guard's standard input is a pipe
whose other end only the parent holds: a line means that the command shall stop, end of file alone that the parent is
dead, whichever way. Then the command's process group gets the graceful signal and, after the grace, SIGKILL. What a
dead parent has left gets a short grace: all of it stops at once, so that a worker would wait in vain for its broker,
while whoever is started in the parent's place waits for their directories. On Linux the guard adopts orphans, so a
grandchild that left the group is found too; and the kernel kills the command if the guard itself is killed.
Only the standard library, no import of ours: one guard per service must start at once and cost next to nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
CANNOT_RUN = 127  # as a shell says "command not found"
DRAIN_S = 5.0
ORPHAN_GRACE_S = 4.0  # less than what infra.platform.port_locks waits for a directory


def main(arguments: list[str]) -> int:
    """Run the command; its exit code, or 128 + the signal that ended it."""
    parser = argparse.ArgumentParser(description="Run a command that does not outlive this process's parent.")
    parser.add_argument("--signal", default="TERM", help="the graceful signal: TERM, INT, ...")
    parser.add_argument("--grace", type=float, default=10.0, help="seconds until SIGKILL")
    parser.add_argument("--report", type=int, help="file descriptor that gets the command's process id")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    with contextlib.suppress(PermissionError):  # we lead a session already
        os.setsid()
    return guard(options.command, signal.Signals[f"SIG{options.signal}"], options.grace, options.report)


def guard(command: list[str], graceful: signal.Signals, grace_s: float, report: int | None) -> int:
    wake = _wake_on_signals()
    _prctl(PR_SET_CHILD_SUBREAPER)
    pid = _spawn(command, report)
    status, is_orphan = _until_end(pid, wake)
    grace_s = min(grace_s, ORPHAN_GRACE_S) if is_orphan else grace_s
    _signal_group(pid, graceful)  # after a normal end too: what the command left behind goes with it
    status = _until_gone(pid, status, wake, grace_s)
    _signal_group(pid, signal.SIGKILL)
    status = _drain(pid, status)
    return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def _wake_on_signals() -> int:
    """A pipe that becomes readable at each signal: signals and the lifeline are then waited for in one place."""
    read, write = os.pipe()
    for end in (read, write):
        os.set_blocking(end, False)
    for number in (*STOPPING, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    return read


def _spawn(command: list[str], report: int | None) -> int:
    """The command in a process group of its own, with default signal handling, whatever we inherited.

    The report is the process id and, only if the command cannot be executed, a second line that says why.
    """
    own = os.getpid()
    if report is not None:
        os.set_inheritable(report, False)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # until the child's handlers are its own
    pid = os.fork()
    if pid == 0:
        _become(command, own, report)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    with contextlib.suppress(OSError):  # the child does it too: whoever comes first
        os.setpgid(pid, pid)
    if report is not None:
        _write(report, f"{pid}\n")
        os.close(report)
    return pid


def _become(command: list[str], guard_pid: int, report: int | None) -> NoReturn:
    """Turn this forked process into the command."""
    try:
        os.setpgid(0, 0)
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard_pid:  # killed before the line above took effect
            os._exit(128 + signal.SIGKILL)
        signal.set_wakeup_fd(-1)
        for number in (*STOPPING, signal.SIGCHLD, signal.SIGPIPE, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execvp(command[0], command)
    except OSError as error:
        _write(report if report is not None else 2, f"cannot run {command[0]}: {error.strerror}\n")
    os._exit(CANNOT_RUN)


def _write(descriptor: int, text: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(descriptor, text.encode())


def _until_end(pid: int, wake: int) -> tuple[int | None, bool]:
    """Wait until the command ends (its wait status) or is to be stopped (None); whether the parent is gone."""
    while True:
        ready, _, _ = select.select([0, wake], [], [])
        asked = wake in ready and _was_asked(wake)
        told = _read_lifeline() if 0 in ready else None
        status = _reap(pid)
        if status is not None or asked or told is not None:
            return status, told == b""


def _until_gone(pid: int, status: int | None, wake: int, grace_s: float) -> int | None:
    """Wait until the group is empty, the grace is over, or somebody asks a second time."""
    deadline = time.monotonic() + grace_s
    while True:
        ended = _reap(pid)
        status = ended if ended is not None else status
        left_s = deadline - time.monotonic()
        if not _signal_group(pid, None) or left_s <= 0:
            return status
        ready, _, _ = select.select([wake], [], [], min(left_s, 0.1))
        if ready and _was_asked(wake):
            return status


def _drain(pid: int, status: int | None) -> int:
    """Kill and reap until no child is left; killed parents hand their children to us, so this walks down the tree."""
    deadline = time.monotonic() + DRAIN_S
    while True:
        ended = _reap(pid)
        status = ended if ended is not None else status
        children = _children()
        if (status is not None and not children) or time.monotonic() > deadline:
            return signal.SIGKILL if status is None else status
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.01)


def _reap(pid: int) -> int | None:
    """Collect every child that has ended; the wait status of `pid` if it is among them."""
    found = None
    while True:
        try:
            ended, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if ended == 0:
            return found
        if ended == pid:
            found = status


def _children() -> list[int]:
    own = os.getpid()
    try:
        return [int(child) for child in Path(f"/proc/{own}/task/{own}/children").read_text().split()]
    except OSError:  # not Linux: orphans go to init, and the group has been killed
        return []


def _signal_group(group: int, number: signal.Signals | None) -> bool:
    """Send a signal (None: only look); True while the group still has a process."""
    try:
        os.killpg(group, number or 0)
    except (ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
        return False
    return True


def _was_asked(wake: int) -> bool:
    return any(number in STOPPING for number in os.read(wake, 4096))


def _read_lifeline() -> bytes:
    """Bytes that the parent has written; none when it is gone."""
    try:
        return os.read(0, 4096)
    except OSError:
        return b""


def _prctl(option: int, value: int = 1) -> None:
    """Linux only; elsewhere the pipe alone has to do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
