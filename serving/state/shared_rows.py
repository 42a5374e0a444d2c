"""Numbers that the servers of one machine hold in memory together, in files below the data directory.

The first server to load a release writes its rows there; all of them map the files privately. What a server writes to
becomes its own, page by page; everything else is in memory once, and the kernel may take it back. The files of another
release are removed then: who still maps them keeps them.
"""

from __future__ import annotations

import mmap
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from infra.platform.retrying import locked
from models.arrays import Array
from models.release.manifest_file import sync_path
from models.retrieval.table import NO_RESERVE

FORMAT = 1  # of the files: a newer one does not read what an older one has written
LOCK, PARTIAL = ".lock", ".partial"

T = TypeVar("T")
Stopped = Callable[[], bool]
Places = Sequence[tuple[int, Array]]  # first number of 4 bytes, and what stands from there on


class SharedRows:
    """The files of the releases, each in a directory of its own below `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def of(
        self, version: str, kind: str, write: Callable[[Path], None], read: Callable[[Path], T], stopped: Stopped
    ) -> T:
        """What `read` maps of a release's directory, which `write` fills if nobody has done so. Servers that hold less
        of it have one of another `kind`. Raises InterruptedError once `stopped` while another server writes, OSError
        where it cannot be written."""
        place, partial = self._directory / f"{version}.{kind}.{FORMAT}", self._directory / PARTIAL
        self._directory.mkdir(parents=True, exist_ok=True)
        with locked(self._directory / LOCK, lambda: _go_on(stopped)):
            if not place.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                write(partial)
                for path in [*partial.iterdir(), partial]:
                    sync_path(path)
                partial.rename(place)
                sync_path(self._directory)
            for other in self._directory.iterdir():
                if other.is_dir() and other.name.partition(".")[0] != version:
                    shutil.rmtree(other, ignore_errors=True)
            return read(place)  # before another server, with another release, may remove it


def _go_on(stopped: Stopped) -> None:
    if stopped():
        raise InterruptedError("stopped while another server writes the shared rows")


def write_numbers(path: Path, numbers: int, places: Places) -> None:
    """A file of so many numbers of 4 bytes, zeros where nothing is written: these take no room on the disk."""
    with path.open("wb") as file:
        file.truncate(4 * numbers)
        for first, values in places:
            file.seek(4 * first)
            np.ascontiguousarray(values).tofile(file)


def map_numbers(path: Path) -> Tensor:
    """The numbers of a file as float32. What is written to them stays in this process."""
    flags = mmap.MAP_PRIVATE | NO_RESERVE
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return torch.from_numpy(np.frombuffer(memory, np.float32))
