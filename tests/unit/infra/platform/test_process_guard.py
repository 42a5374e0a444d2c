"""A guarded command does not outlive its parent, whichever way that one ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.platform.guarded_process import GUARD, ServiceError, start_guarded
from infra.platform.port_locks import LOCK_WAIT_S
from infra.platform.process_guard import ORPHAN_GRACE_S
from tests.harness.needs import LINUX, needs, require

pytestmark = pytest.mark.service

# A parent that guards a command and waits, as `up` does; the test kills it.
PARENT = """
import sys, time
from pathlib import Path
from infra.platform.guarded_process import start_guarded
child = start_guarded("x", sys.argv[2:], log=Path(sys.argv[1]), grace_s=0.5)
print(child.pid, child.guard.pid, flush=True)
time.sleep(60)
"""
# A command with a child in its group and one that has left it; prints both.
FAMILY = """
import subprocess, sys, time
sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
print(subprocess.Popen(sleep).pid, subprocess.Popen(sleep, start_new_session=True).pid, flush=True)
time.sleep(60)
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(60)
"""


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def start_parent(log: Path, program: str, grace_s: float = 0.5) -> tuple[subprocess.Popen[str], int, int]:
    """The parent, the command's process id, the guard's."""
    command = [*python(PARENT.replace("0.5", str(grace_s))), str(log), *python(program)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid, guard = map(int, parent.stdout.readline().split())
    return parent, pid, guard


def family_of(log: Path) -> list[int]:
    assert until(lambda: log.read_text().count("\n") == 1)
    return [int(pid) for pid in log.read_text().split()]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_parent_leaves_nothing_not_even_grandchildren(tmp_path: Path, number: signal.Signals) -> None:
    parent, pid, guard = start_parent(tmp_path / "log", FAMILY)
    in_group, left_group = family_of(tmp_path / "log")
    parent.send_signal(number)
    parent.wait()
    assert until(lambda: not is_alive(guard))
    left = [each for each in (pid, in_group, left_group) if is_alive(each)]
    if sys.platform != "linux":
        os.kill(left_group, signal.SIGKILL)
        left = [each for each in left if each != left_group]
    assert left == []


def test_a_command_that_ignores_the_graceful_signal_is_killed_after_the_grace(tmp_path: Path) -> None:
    child = start_guarded("deaf", python(STUBBORN), log=tmp_path / "log", grace_s=0.3)
    assert until(lambda: "deaf" in (tmp_path / "log").read_text())
    started = time.monotonic()
    assert child.stop() == 128 + signal.SIGKILL
    assert 0.25 < time.monotonic() - started < 5
    assert not is_alive(child.pid)


def test_whoever_a_killed_parent_has_left_is_not_waited_for_long(tmp_path: Path) -> None:
    parent, pid, guard = start_parent(tmp_path / "log", STUBBORN, grace_s=60)
    assert until(lambda: "deaf" in (tmp_path / "log").read_text())
    parent.kill()
    parent.wait()
    assert until(lambda: not is_alive(guard) and not is_alive(pid), ORPHAN_GRACE_S + 10)
    assert ORPHAN_GRACE_S < LOCK_WAIT_S, "a successor that is started at once finds their directories free"


def test_the_graceful_signal_reaches_the_command_first(tmp_path: Path) -> None:
    program = """
import signal, sys, time
def stop(*_):
    print("closed", flush=True)
    sys.exit(3)
signal.signal(signal.SIGINT, stop)
print("open", flush=True)
time.sleep(60)
"""
    child = start_guarded("polite", python(program), log=tmp_path / "log", stop_signal="INT")
    assert until(lambda: "open" in (tmp_path / "log").read_text())
    assert child.stop() == 3
    assert (tmp_path / "log").read_text().split() == ["open", "closed"]


def test_the_graceful_signal_works_where_the_parent_ignores_it(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a shell's background job
    try:
        child = start_guarded("x", ["sleep", "60"], log=tmp_path / "log", stop_signal="INT", grace_s=5)
    finally:
        signal.signal(signal.SIGINT, before)
    started = time.monotonic()
    assert child.stop() == 128 + signal.SIGINT
    assert time.monotonic() - started < 4


@pytest.mark.parametrize(("program", "code"), [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_the_exit_code_is_forwarded(tmp_path: Path, program: str, code: int) -> None:
    assert start_guarded("x", python(program), log=tmp_path / "log").wait(10) == code


def test_what_a_command_leaves_behind_when_it_ends_is_stopped(tmp_path: Path) -> None:
    program = FAMILY.rpartition("time.sleep")[0]
    child = start_guarded("x", python(program), log=tmp_path / "log", grace_s=0.5)
    assert child.wait(10) == 0
    in_group, left_group = family_of(tmp_path / "log")
    assert not is_alive(in_group)
    if sys.platform == "linux":
        assert not is_alive(left_group)
    else:
        os.kill(left_group, signal.SIGKILL)


@needs(LINUX)
def test_a_killed_guard_takes_its_command_along(tmp_path: Path) -> None:
    child = start_guarded("x", python(FAMILY), log=tmp_path / "log")
    in_group, left_group = family_of(tmp_path / "log")
    child.guard.kill()
    child.guard.wait()
    assert until(lambda: not is_alive(child.pid))
    assert child.poll() == -signal.SIGKILL  # noticing it ends the rest of the group
    assert until(lambda: not is_alive(in_group))
    os.kill(left_group, signal.SIGKILL)  # who left the group is known to the guard alone


def test_a_second_signal_cuts_the_grace_short(tmp_path: Path) -> None:
    child = start_guarded("deaf", python(STUBBORN), log=tmp_path / "log", grace_s=60)
    assert until(lambda: "deaf" in (tmp_path / "log").read_text())
    child.ask_to_stop()
    time.sleep(0.2)
    assert child.poll() is None
    child.guard.send_signal(signal.SIGTERM)
    assert child.wait(5) == 128 + signal.SIGKILL


def test_a_command_that_cannot_be_run_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="engine cannot be started: cannot run /no/such/program: No such file"):
        start_guarded("engine", ["/no/such/program"], log=tmp_path / "log")


def test_the_command_inherits_neither_the_lifeline_nor_the_report(tmp_path: Path) -> None:
    program = "import os; print(os.readlink('/proc/self/fd/0'), sorted(map(int, os.listdir('/proc/self/fd')))[:-1])"
    require(LINUX, "reads /proc")
    start_guarded("x", python(program), log=tmp_path / "log").wait(10)
    assert (tmp_path / "log").read_text().strip() == "/dev/null [0, 1, 2]"


def test_a_parent_that_is_gone_at_once_stops_the_command_gracefully() -> None:
    command = [sys.executable, "-I", "-S", str(GUARD), "--", "sleep", "60"]
    for _ in range(5):  # the signal may come between fork and exec: neither lost nor taken for a second one
        done = subprocess.run(command, input="", capture_output=True, text=True, timeout=8, check=False)
        assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, "")


def test_an_overgrown_log_is_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.platform.guarded_process.LOG_BYTES", 10)
    log = tmp_path / "x.log"
    log.write_text("what was written yesterday\n")
    start_guarded("x", ["echo", "today"], log=log).wait(10)
    assert log.read_text() == "today\n"
    assert (tmp_path / "x.log.1").read_text() == "what was written yesterday\n"
