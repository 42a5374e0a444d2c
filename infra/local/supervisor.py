"""Keeps a set of processes running: starts again what crashes, ever more slowly, and stops all of it in order.

What to do about one process is decided by a small state machine that takes the time as an argument (`Watched.step`);
the supervisor's thread only looks, asks it, and reports. Every process is under a guard, so nothing is left even when
this one is killed.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Literal, Self

import structlog

from infra.local.disk import full_disk
from infra.platform.guarded_process import GuardedProcess, ServiceError, log_tail
from infra.platform.settings import variable_of

log = structlog.get_logger(__name__)

LOOK_S = 0.1
ASK_S = 0.3  # between two questions whether a process is ready
ASK_READY_S = 2.0  # the same, once it is
LATE_S = 10.0  # how often a person is told of what is waited for
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 30.0
STEADY_S, STEADY_READY_S = 60.0, 10.0  # whoever ran, or was ready, for so long is forgiven earlier crashes

Phase = Literal["starting", "ready", "waiting", "stopped"]
Report = Callable[[str, str], None]  # (process, what happened to it)


@dataclass(frozen=True)
class Part:
    """One process to keep running."""

    name: str
    start: Callable[[], GuardedProcess]
    ask: Callable[[GuardedProcess], dict[str, Any]]  # its /health, at least {"ready": bool}
    stop_order: int = 0  # the smaller ones are stopped first, equal ones together
    disk: Path | None = None  # where it writes, if it ends when there is no room


@dataclass
class Watched:
    """State of one part as the supervisor knows it, and its next step."""

    part: Part
    process: GuardedProcess | None = None
    phase: Phase = "starting"
    crashes: int = 0  # in a row
    restarts: int = 0
    started_s: float = 0.0
    ready_s: float = 0.0  # since when it has been ready
    retry_s: float = 0.0
    ask_s: float = 0.0
    health: dict[str, Any] = field(default_factory=dict)

    def step(self, now_s: float) -> str | None:
        """Look at the process once at monotonic time `now_s`; what is worth telling a person, if anything is."""
        if self.phase == "stopped":
            return None
        if self.process is None:
            return self._start(now_s) if now_s >= self.retry_s else None
        code = self.process.poll()
        if code is not None:
            return self._crashed(f"ended with code {code} (log: {self.process.log})", now_s)
        if now_s >= self.ask_s:
            return self._ask(now_s)
        return None

    def _start(self, now_s: float) -> str | None:
        try:
            self.process = self.part.start()
        except (ServiceError, OSError) as error:  # the latter of a full disk: it is tried again, ever more slowly
            return self._crashed(f"cannot be started: {error}", now_s)
        self.phase, self.started_s, self.ask_s = "starting", now_s, now_s
        return None

    def _crashed(self, how: str, now_s: float) -> str:
        was_ready_s = now_s - self.ready_s if self.phase == "ready" else 0.0
        if self.process is not None and (now_s - self.started_s >= STEADY_S or was_ready_s >= STEADY_READY_S):
            self.crashes = 0
        self.crashes += 1
        self.restarts += 1
        wait_s = wait_before_restart_s(self.crashes)
        self.process, self.phase, self.retry_s, self.health = None, "waiting", now_s + wait_s, {}
        return f"{how}; {self._disk_is_full()}starting it again in {wait_s:g} s"

    def _disk_is_full(self) -> str:
        full = full_disk(self.part.disk) if self.part.disk else None
        return f"{full}; " if full else ""

    def _ask(self, now_s: float) -> str | None:
        assert self.process is not None
        self.health = self.part.ask(self.process)
        before, self.phase = self.phase, "ready" if self.health.get("ready") else "starting"
        self.ask_s = now_s + (ASK_READY_S if self.phase == "ready" else ASK_S)
        if self.phase == before:
            return None
        self.ready_s = now_s
        return "ready" if self.phase == "ready" else f"not ready: {self.why_not_ready()}"

    def why_not_ready(self) -> str:
        if self.process is None:
            return f"it crashed {self.crashes} times in a row"
        return self._disk_is_full() + ("; ".join(self.health.get("reasons", [])) or "it does not answer yet")


def wait_before_restart_s(crashes: int) -> float:
    """Exponential back-off: half a second, doubled with each crash in a row, thirty at most."""
    return float(min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(crashes - 1, 16)))


@dataclass(frozen=True)
class State:
    """A part as `up` shows it."""

    name: str
    phase: Phase
    pid: int | None
    restarts: int
    health: dict[str, Any]


class Supervisor:
    """Runs parts until `stop`; a context manager, so that whatever ends the block stops them.

    `report(process, what)` is called from the supervisor's thread, and from `wait_ready` and `stop`.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._watched: dict[str, Watched] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def add(self, part: Part, process: GuardedProcess | None = None) -> None:
        """Keep `part` running from now on; `process` if it has been started already."""
        with self._lock:
            self._watched[part.name] = Watched(part, process, started_s=time.monotonic())

    def process(self, name: str) -> GuardedProcess | None:
        """The running process, None between a crash and the next start."""
        return self._watched[name].process

    def states(self) -> list[State]:
        return [
            State(each.part.name, each.phase, each.process.pid if each.process else None, each.restarts, each.health)
            for each in list(self._watched.values())
        ]

    def wait_ready(
        self, timeout_s: float | None, names: Iterable[str] | None = None, crashes: int = 3, *, setting: str = ""
    ) -> None:
        """Return when the named parts (default: all) are ready; whatever is late is reported.

        Raises ServiceError, with the end of its log, when one of them is not within `timeout_s` (None: as long as it
        lives; `setting` is where it comes from), or crashed `crashes` times before it was.
        """
        watched = [self._watched[name] for name in (self._watched if names is None else names)]
        logs = {each.part.name: each.process.log for each in watched if each.process}
        ended = {each.part.name: each.restarts for each in watched}  # before this wait, or before it was ready
        began_s = time.monotonic()
        tell_s = began_s + LATE_S
        while waiting := [each for each in watched if each.phase != "ready"]:
            logs |= {each.part.name: each.process.log for each in waiting if each.process}
            ended |= {each.part.name: each.restarts for each in watched if each.phase == "ready"}
            now_s = time.monotonic()
            over = timeout_s is not None and now_s > began_s + timeout_s
            for each in waiting:
                crashed = max(each.crashes, each.restarts - ended[each.part.name])
                if over or crashed >= crashes:
                    limit = f" ({setting}, or {variable_of(setting)})" if setting else ""
                    how = f"is not ready after {timeout_s:g} s{limit}" if over else "does not start"
                    raise ServiceError(
                        f"{each.part.name} {how}: {each.why_not_ready()}; {log_tail(logs.get(each.part.name))}"
                    )
            if now_s >= tell_s:
                tell_s = now_s + LATE_S
                for each in waiting:
                    self._report(each.part.name, f"not ready after {now_s - began_s:.0f} s: {each.why_not_ready()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop all parts in their order; returns when nothing is left. A second Ctrl-C kills what still runs."""
        try:
            self._stop_in_order()
        except KeyboardInterrupt:
            self._thread.join()
            for each in sorted(self._watched.values(), key=lambda watched: watched.part.stop_order):
                if each.process is not None:
                    each.process.kill()

    def _stop_in_order(self) -> None:
        self._stopping.set()
        self._thread.join()
        for order in sorted({each.part.stop_order for each in self._watched.values()}):
            together = [each for each in self._watched.values() if each.part.stop_order == order]
            for each in together:
                each.phase = "stopped"
                if each.process is not None:
                    each.process.ask_to_stop()
            for each in together:
                if each.process is not None:
                    code = each.process.stop()
                    self._report(each.part.name, f"stopped with code {code}")
                    each.process = None

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_S):
            with self._lock:
                watched = list(self._watched.values())
            for each in watched:
                if self._stopping.is_set():
                    return
                try:
                    news = each.step(time.monotonic())
                except Exception as error:  # a bug in one part's `ask` must not end the watch over the others
                    log.exception("cannot look after a process", process=each.part.name)
                    news = f"cannot be looked after: {error!r}"
                if news is not None:
                    self._report(each.part.name, news)


@contextlib.contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP are like Ctrl-C, and Ctrl-C works even in a shell's background job.

    Main thread only. A SIGHUP that is ignored (nohup) stays ignored.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
