"""The steps of the commit protocols at which a test can have the process die: by SIGKILL, as a crash would end it; or
stand still, by SIGSTOP.

Off, and next to free, unless the variable TEST_NEXTWATCH_FAULT_POINTS names a directory. Only tests set it, and it is
no setting: those begin with NEXTWATCH_, and a name that is none of them is refused. A point is armed by a file of its
name in that directory that holds a number, and the name of the signal if it is not SIGKILL: the process that reaches
the point for the so-manieth time puts the file aside and sends itself the signal, so that whoever is started in its
place does not die of it again.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

VARIABLE = "TEST_NEXTWATCH_FAULT_POINTS"
DIED = ".died"  # after the name of a point that somebody has died of

STEPS = {
    "history": ("examples sent", "histories sent", "batch done"),
    "join": ("examples sent", "states sent", "closings sent", "closed states sent", "batch done"),
    "trending": ("counts sent", "batch done"),
    "trainer": ("rows sent", "progress sent", "batch done"),
    "indexer": (
        "rows written",
        "offsets committed",
        "collection created",
        "collection filled",
        "marked whole",
        "announced",
        "marked announced",
        "shadow rebuilt",
        "rebuilt takes over",
    ),
    "ingest": ("events sent", "batch done"),
    "serving": ("impression sent", "reply sent", "before commit", "settled"),
}
POINTS = tuple(f"{process}: {step}" for process, steps in STEPS.items() for step in steps)

_directory = os.environ.get(VARIABLE)


def reached(point: str) -> None:
    """Called at a point; does not return if the point is armed and this is the time."""
    if _directory:
        _die_if_armed(Path(_directory) / point)


def _die_if_armed(armed: Path) -> None:
    try:
        left, *name = armed.read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return
    if int(left) > 1:
        armed.write_text(" ".join([str(int(left) - 1), *name]), encoding="utf-8")
        return
    armed.rename(armed.with_name(armed.name + DIED))
    os.kill(os.getpid(), signal.Signals[name[0]] if name else signal.SIGKILL)
