"""What crashes is started again, ever more slowly; what is stopped is stopped in order."""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from infra.local.supervisor import Part, Supervisor, Watched, interrupted_by_signals, wait_before_restart_s
from infra.platform.guarded_process import GuardedProcess, ServiceError, start_guarded
from tests.unit.infra.platform.test_process_guard import until

pytestmark = pytest.mark.service

LONG = ["sleep", "60"]


def part(directory: Path, name: str, command: list[str], stop_order: int = 0, **health: Any) -> Part:
    def start() -> GuardedProcess:
        return start_guarded(name, command, log=directory / f"{name}.log", grace_s=5)

    return Part(name, start, lambda process: {"ready": True} | health, stop_order)


def test_waits_double_up_to_a_limit() -> None:
    assert [wait_before_restart_s(crashes) for crashes in (1, 2, 3, 6, 7, 1000)] == [0.5, 1, 2, 16, 30, 30]


def test_crashes_in_a_row_wait_longer_and_a_steady_run_is_forgiven(tmp_path: Path) -> None:
    watched = Watched(part(tmp_path, "x", ["sh", "-c", "exit 3"]))

    def crash_at(now_s: float) -> str:
        assert watched.step(now_s) is None  # started
        assert watched.process is not None
        watched.process.wait(10)
        return str(watched.step(now_s + 0.1))

    assert crash_at(0) == f"ended with code 3 (log: {tmp_path}/x.log); starting it again in 0.5 s"
    assert watched.step(0.5) is None
    assert watched.process is None, "it is too early"
    assert crash_at(0.7).endswith("in 1 s")
    assert crash_at(2).endswith("in 2 s")
    watched.step(5)
    assert watched.process is not None
    watched.process.wait(10)
    assert str(watched.step(5 + 61)).endswith("in 0.5 s")
    assert watched.restarts == 4


def test_who_was_ready_for_a_while_is_forgiven_too(tmp_path: Path) -> None:
    watched = Watched(part(tmp_path, "x", LONG), crashes=5)

    def die_at(now_s: float) -> str:
        assert watched.process is not None
        watched.process.kill()
        return str(watched.step(now_s))

    watched.step(0)
    assert watched.step(1) == "ready"
    assert die_at(5).endswith("in 16 s"), "not after four seconds"
    watched.step(40)
    assert watched.step(41) == "ready"
    assert die_at(52).endswith("in 0.5 s")


def test_a_part_that_cannot_be_started_is_tried_again(tmp_path: Path) -> None:
    watched = Watched(part(tmp_path, "x", ["/no/such/program"]))
    assert "cannot be started: x cannot be started: cannot run /no/such/program" in str(watched.step(0))
    assert watched.phase == "waiting"
    assert "in 1 s" in str(watched.step(0.5))


def test_readiness_comes_and_goes(tmp_path: Path) -> None:
    answers = [{"ready": False}, {"ready": True}, {"ready": False, "reasons": ["waiting for Kafka"]}]
    watched = Watched(Part("x", part(tmp_path, "x", LONG).start, lambda process: answers.pop(0)))
    watched.step(0)
    try:
        assert watched.step(1) is None
        assert watched.step(2) == "ready"
        assert watched.step(2.5) is None, "a ready one is asked less often"
        assert watched.step(5) == "not ready: waiting for Kafka"
    finally:
        assert watched.process is not None
        watched.process.stop()


def test_a_killed_process_is_started_again_and_reported(tmp_path: Path) -> None:
    news: list[tuple[str, str]] = []
    with Supervisor(lambda name, what: news.append((name, what))) as supervisor:
        supervisor.add(part(tmp_path, "x", LONG))
        supervisor.wait_ready(10)
        first = supervisor.process("x")
        assert first is not None
        os.kill(first.pid, signal.SIGKILL)
        assert until(lambda: supervisor.states()[0].restarts == 1)
        supervisor.wait_ready(10)
        state = supervisor.states()[0]
        assert (state.phase, state.restarts) == ("ready", 1)
        assert state.pid not in {None, first.pid}
    assert [what.partition(" (")[0] for _, what in news] == [
        "ready",
        "ended with code 137",
        "ready",
        "stopped with code 143",
    ]
    with pytest.raises(ProcessLookupError):
        os.kill(state.pid or 0, 0)


def test_stopping_follows_the_order_and_waits_for_each(tmp_path: Path) -> None:
    program = """
import signal, sys, time
def stop(*_):
    time.sleep(0.2)
    open(sys.argv[1], "a").write(sys.argv[2] + "\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("up", flush=True)
time.sleep(60)
"""
    order = {"broker": 9, "serving": 1, "milvus": 8, "indexer": 3, "worker": 2}
    with Supervisor(lambda name, what: None) as supervisor:
        for name, place in order.items():
            command = [sys.executable, "-c", program, str(tmp_path / "order"), name]
            supervisor.add(part(tmp_path, name, command, place))
        assert until(lambda: all((tmp_path / f"{name}.log").exists() for name in order))
        assert until(lambda: all((tmp_path / f"{name}.log").read_text() for name in order))
    assert (tmp_path / "order").read_text().split() == ["serving", "worker", "indexer", "milvus", "broker"]


def test_waiting_gives_up_on_what_keeps_crashing_and_shows_its_log(tmp_path: Path) -> None:
    with Supervisor(lambda name, what: None) as supervisor:
        supervisor.add(part(tmp_path, "x", ["sh", "-c", "echo no config; exit 2"]))
        with pytest.raises(
            ServiceError, match=r"x does not start: it crashed 2 times in a row; .*x\.log(.|\n)*no config"
        ):
            supervisor.wait_ready(20, crashes=2)


def test_waiting_gives_up_after_the_time_out_and_says_what_was_missing(tmp_path: Path) -> None:
    with Supervisor(lambda name, what: None) as supervisor:
        supervisor.add(part(tmp_path, "x", LONG, ready=False, reasons=["waiting for a release"]))
        with pytest.raises(ServiceError, match=r"x is not ready after 4 s: waiting for a release"):
            supervisor.wait_ready(4)


def test_an_error_in_the_block_stops_everything(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Supervisor(lambda name, what: None) as supervisor:
        supervisor.add(part(tmp_path, "x", LONG))
        supervisor.wait_ready(10)
        pid = supervisor.states()[0].pid
        raise ZeroDivisionError
    with pytest.raises(ProcessLookupError):
        os.kill(pid or 0, 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_each_stopping_signal_is_like_ctrl_c(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.SIG_IGN)
    try:
        with pytest.raises(KeyboardInterrupt), interrupted_by_signals():
            os.kill(os.getpid(), number)
            time.sleep(1)
        assert signal.getsignal(number) == (signal.SIG_DFL if number != signal.SIGINT else signal.SIG_IGN)
    finally:
        signal.signal(number, before)


def test_a_second_ctrl_c_does_not_wait_for_the_grace(tmp_path: Path) -> None:
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )

    def start() -> GuardedProcess:
        return start_guarded("deaf", [sys.executable, "-c", deaf], log=tmp_path / "log", grace_s=60)

    with interrupted_by_signals():
        supervisor = Supervisor(lambda name, what: None)
        with supervisor:
            supervisor.add(Part("deaf", start, lambda process: {"ready": True}))
            assert until(lambda: (tmp_path / "log").exists() and (tmp_path / "log").read_text())
            process = supervisor.process("deaf")
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    assert process is not None
    assert process.poll() == 137
