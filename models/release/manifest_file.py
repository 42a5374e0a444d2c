"""The files of a bundle, its manifest first, for whoever must know what bundles there are, also without torch.

The manifest is read before anything about the bundle is known to be true, so it must be an ordinary file of a sane
size.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

MANIFEST = "manifest.json"
MOST_BYTES = 4_000_000


def read_manifest_bytes(directory: Path) -> bytes:
    """Raises OSError, also for what is no ordinary file (a link, a pipe) and for what is too large."""
    path = directory / MANIFEST
    check_ordinary(path)
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise OSError(0, f"larger than {MOST_BYTES:,} bytes", str(path))
    return content


def check_ordinary(path: Path) -> None:
    """Raises OSError for what is not there, and for what is no file itself: a link could be turned to something else
    after it was checked, and a pipe would be waited for."""
    mode = os.lstat(path).st_mode
    if not stat.S_ISREG(mode):
        raise OSError(0, "a link or a special file, not a file of the bundle", str(path))


def sync_path(path: Path) -> None:
    """Have a file, or a directory's entries, on disk before anything goes on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
