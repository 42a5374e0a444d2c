"""Kills processes, at random moments and at the steps of their protocols, and measures how long each is away.

A round is a few of such deaths together; it is over when everything that died is ready again.
"""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.harness.crash.supervised import ALL, GONE_S, OURS, READY_S, UP, Supervised
from tests.harness.system import wait_until

LOOK_S = 0.2
POINT_S = 120.0  # an armed point is reached by then


@dataclass
class Deaths:
    """What was killed: by process how often, at which points, and how many seconds until it was ready again."""

    killed: Counter[str] = field(default_factory=Counter)
    died_at: Counter[str] = field(default_factory=Counter)
    recovery_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    not_reached: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Without what was killed with `up`."""
        return self.killed.total() + self.died_at.total()

    def of(self, name: str) -> int:
        """Deaths of a process, of either kind."""
        return self.killed[name] + sum(count for point, count in self.died_at.items() if process_of(point) == name)

    @property
    def longest_s(self) -> float:
        return max((max(each) for each in self.recovery_s.values()), default=0.0)


def process_of(point: str) -> str:
    return point.partition(":")[0]


class Killer:
    """`say` is told of everything that happens."""

    def __init__(self, system: Supervised, seed: int, say: Callable[[str], None]) -> None:
        self.deaths = Deaths()
        self._system, self._say = system, say
        self._rng = random.Random(seed)
        self._away: dict[str, tuple[int, float]] = {}  # dead processes: the process id that each had, and since when
        self._pids: dict[str, int] = {}
        self._ready_s: dict[str, float] = {}  # when each was first seen ready since `up` was killed

    def wait_ready(self, names: Sequence[str] = ALL) -> None:
        """Return when all of them are ready, and know their process ids."""
        deadline = time.monotonic() + READY_S
        while missing := set(names) - self._look().keys() | self._away.keys() - {UP}:
            if time.monotonic() > deadline or not self._system.pid_of(UP):
                raise TimeoutError(f"not ready: {sorted(missing)}\n{self._system.said()[-3000:]}")
            time.sleep(LOOK_S)

    def round(self, kills: Sequence[str] = (), points: Sequence[str] = (), *, within_s: float = 2.0) -> None:
        """Kill these within so many seconds, have others die at these points (one after the other where they are of one
        process), and wait until all are back."""
        waiting: dict[str, list[str]] = defaultdict(list)
        for point in points:
            waiting[process_of(point)].append(point)
        armed_s = {point: time.monotonic() for point in (self._arm(mine.pop(0)) for mine in waiting.values())}
        for name in self._rng.sample(list(kills), len(kills)):
            time.sleep(self._rng.uniform(0, within_s / len(kills)))
            self.kill(name)
        while armed_s:
            self._look()
            for point in [point for point in armed_s if self._is_over(point, armed_s[point])]:
                del armed_s[point]
                if mine := waiting[process_of(point)]:
                    armed_s[self._arm(mine.pop(0))] = time.monotonic()
            time.sleep(LOOK_S)
        self.wait_ready()

    def kill(self, name: str) -> None:
        """SIGKILL; nothing happens to what does not run just now."""
        if pid := self._system.kill(name):
            self.deaths.killed[name] += 1
            self._away[name] = pid, time.monotonic()
            self._say(f"{name} killed")

    def kill_up(self, points: Sequence[str] = ()) -> None:
        """`up` itself; what it guards goes with it, some of it at these points. Then it is started again, at once."""
        for point in points:
            self._system.arm(point)
        before = self._system.ready()
        began_s = time.monotonic()
        self.kill(UP)
        self._system.start()
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in before.values()), "all gone", GONE_S)
        self._away.clear()
        self._pids.clear()
        self._ready_s.clear()
        self.wait_ready()
        self._say("ready after s: " + ", ".join(f"{name} {at - began_s:.1f}" for name, at in self._ready_s.items()))
        self.deaths.died_at.update(point for point in points if self._system.has_died_at(point))
        self._note_recovery(UP, time.monotonic() - began_s)

    def _arm(self, point: str) -> str:
        self._system.arm(point, self._rng.randint(1, 3) if process_of(point) in OURS[:4] else 1)
        return point

    def _is_over(self, point: str, armed_s: float) -> bool:
        """Whether somebody has died there, or nobody comes there any more."""
        name = process_of(point)
        if self._system.has_died_at(point):
            self.deaths.died_at[point] += 1
            self._away[name] = self._pids.get(name, 0), time.monotonic()
            self._say(f"died at {point}")
            return True
        if time.monotonic() - armed_s < POINT_S:
            return False
        self._system.disarm(point)
        self.deaths.not_reached.append(point)
        return True

    def _look(self) -> dict[str, int]:
        """What is ready; who is back is noted."""
        ready = self._system.ready()
        now_s = time.monotonic()
        for name in ready:
            self._ready_s.setdefault(name, now_s)
        for name, (pid, since_s) in list(self._away.items()):
            if ready.get(name, pid) != pid:
                del self._away[name]
                self._note_recovery(name, now_s - since_s)
        self._pids |= {name: pid for name, pid in ready.items() if name not in self._away}
        return {name: pid for name, pid in ready.items() if name not in self._away}

    def _note_recovery(self, name: str, seconds: float) -> None:
        self.deaths.recovery_s[name].append(seconds)
        self._say(f"{name} is ready after {seconds:.1f} s")
