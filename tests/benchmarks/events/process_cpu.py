"""The CPU of whatever a benchmark has started, process by process: whose time is it that everything shares?"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from tests.harness.system import cpu_s

GUARD = "process_guard.py"
NAMES = {"kafka.Kafka": "broker", "noida": "broker", "milvus": "milvus"}


def cpu_by_process() -> dict[str, float]:
    """CPU seconds so far, by the name of the process; `load` is this one, which sends and asks."""
    parents = {int(path.parent.name): _parent(path) for path in Path("/proc").glob("[0-9]*/stat")}
    spent = {"load": cpu_s(os.getpid())}
    for guard in (pid for pid, parent in parents.items() if parent == os.getpid()):
        command = _command(guard)
        if GUARD in command:
            name = _name(command.partition(" -- ")[2])
            spent[name] = spent.get(name, 0.0) + sum(map(cpu_s, _descendants(guard, parents)))
    return spent


def _name(command: str) -> str:
    return next((name for part, name in NAMES.items() if part in command), command.rsplit(maxsplit=1)[-1])


def _descendants(pid: int, parents: dict[int, int]) -> Iterator[int]:
    for child in [each for each, parent in parents.items() if parent == pid]:
        yield child
        yield from _descendants(child, parents)


def _parent(stat: Path) -> int:
    try:
        return int(re.sub(r".*\)", "", stat.read_text(encoding="utf-8"), flags=re.DOTALL).split()[1])
    except OSError:  # it has just ended
        return 0


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").replace("\0", " ")
    except OSError:
        return ""
