"""How much memory a process may take: of the machine what is left, in a container no more than its limit."""

from __future__ import annotations

import os
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUPS = Path("/sys/fs/cgroup")
LIMITS = ("memory.max", "memory/memory.limit_in_bytes")  # of the container: cgroup 2, cgroup 1
USAGES = ("memory.current", "memory/memory.usage_in_bytes")


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
