"""A directory for the time of some work, none of which stays behind for good.

Who makes one holds its lock. A process that is killed leaves its directory, and whoever makes the next one removes it,
since nobody holds the lock any more: what trains every few hours and is killed each time must not fill the disk.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

YOUNG_S = 60.0  # one that was made just now may not be locked yet


@contextmanager
def scratch_directory(parent: Path, prefix: str) -> Iterator[Path]:
    """A directory in `parent`, which is made if need be; it goes with the block."""
    parent.mkdir(parents=True, exist_ok=True)
    remove_left(parent, prefix, now_s=time.time())
    with TemporaryDirectory(dir=parent, prefix=prefix) as made:
        held = os.open(made, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with suppress(OSError):  # a disk without locks: then nobody takes it for left either
                fcntl.flock(held, fcntl.LOCK_EX)
            yield Path(made)
        finally:
            os.close(held)


def remove_left(parent: Path, prefix: str, *, now_s: float) -> None:
    """Remove those whose process is gone."""
    for path in parent.glob(f"{prefix}*"):
        with suppress(OSError):  # another process removes it too, or it is none of ours
            if now_s - path.stat().st_mtime > YOUNG_S and _is_free(path):
                shutil.rmtree(path)


def _is_free(directory: Path) -> bool:
    """Raises OSError for what cannot be locked."""
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True
