"""A full disk of an embedded service, which it cannot mend and says where nobody looks."""

from __future__ import annotations

import shutil
from pathlib import Path

LEAST_BYTES = 16_000_000  # with less a broker cannot make its next segment


def full_disk(directory: Path) -> str | None:
    """A line for a person when there is no room left for this directory; None while there is."""
    try:
        left = shutil.disk_usage(directory).free
    except OSError:
        return None
    if left >= LEAST_BYTES:
        return None
    return f"the disk of {directory} is full ({left / 1e6:.0f} MB left): make room, then it goes on by itself"
