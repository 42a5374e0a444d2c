"""How much memory a process may take: of the machine what is left, in a container no more than its limit. And how
Python's garbage collector is kept from stopping a process that answers."""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

MEMINFO = Path("/proc/meminfo")
CGROUPS = Path("/sys/fs/cgroup")
LIMITS = ("memory.max", "memory/memory.limit_in_bytes")  # of the container: cgroup 2, cgroup 1
USAGES = ("memory.current", "memory/memory.usage_in_bytes")
WALK_S = 3600.0  # between two collections that look at everything: so long may a release that was let go of take memory


def available_bytes(meminfo: Path = MEMINFO, cgroups: Path = CGROUPS) -> int:
    """Return the smaller one of what the machine has left and what the container may have in all, its page cache
    included; what is installed where the system tells neither."""
    known = [_left(meminfo), *(_limit(cgroups / name) for name in LIMITS)]
    return min((each for each in known if each is not None), default=_installed())


def free_bytes(meminfo: Path = MEMINFO, cgroups: Path = CGROUPS) -> int:
    """Return what may be taken besides all that is in use: of the machine, and of the container's limit."""
    rests = (_rest(cgroups / limit, cgroups / usage) for limit, usage in zip(LIMITS, USAGES, strict=True))
    known = [_left(meminfo), *rests]
    return max(0, min((each for each in known if each is not None), default=_installed()))


def _rest(limit: Path, usage: Path) -> int | None:
    """What is left of a limit; page cache that was not used lately counts as left."""
    most, used = _limit(limit), _limit(usage)
    if most is None or used is None:
        return most
    try:
        lines = (usage.parent / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        lines = []
    return most - used + next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)


def _left(meminfo: Path) -> int | None:
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def _limit(path: Path) -> int | None:
    """None where there is none: no file, or `max`."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _installed() -> int:
    """Outside Linux; 0 where not even that is told."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0


class Collections:
    """The full collections of Python's garbage collector while a process is ready.

    Each looks at every object there is, with all threads standing still: tenths of a second in a server, of which
    nearly all is loaded modules, that never become garbage. So what is there when the process is ready is set aside
    (gc.freeze), and they look at newer objects alone; every WALK_S one looks at everything, for what was set aside may
    have become garbage.
    """

    def __init__(self, is_ready: Callable[[], bool], now_s: Callable[[], float] = time.monotonic) -> None:
        self.longest_s = 0.0  # of those that looked at newer objects alone
        self._is_ready, self._now_s = is_ready, now_s
        self._aside_s: float | None = None  # when all that there was was set aside
        self._began_s = 0.0

    def __call__(self, phase: Literal["start", "stop"], info: dict[str, int]) -> None:
        """As gc.callbacks has it: also of the small collections, which are frequent. It may be called in any thread, so
        no lock is taken that somebody may hold."""
        now_s, is_full = self._now_s(), info["generation"] == 2
        if phase == "start" and is_full:
            self._began_s = now_s
            if self._aside_s is not None and now_s - self._aside_s >= WALK_S:
                gc.unfreeze()
                self._aside_s = None
        elif phase == "stop" and self._aside_s is not None and is_full:
            self.longest_s = max(self.longest_s, now_s - self._began_s)
        elif phase == "stop" and self._aside_s is None and self._is_ready():
            gc.freeze()
            self._aside_s = now_s


@contextlib.contextmanager
def short_collections(is_ready: Callable[[], bool]) -> Iterator[Collections]:
    """Keep full collections short while the block runs, from when the process is ready on."""
    collections = Collections(is_ready)
    gc.callbacks.append(collections)
    try:
        yield collections
    finally:
        gc.callbacks.remove(collections)
        gc.unfreeze()
