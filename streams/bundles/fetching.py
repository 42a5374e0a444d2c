"""A bundle fetched from the store into this disk's cache, `<data_dir>/bundles/.fetched/<version>`.

What is there is used as it is. Else the steps, in their order: the lock that the processes of this machine share; the
manifest, which must be the one that the version tells of; each file, from where it was cut, held against the manifest's
checksum; everything synced; then the rename, so that what has a version's name in the cache is whole. Wrong bytes are
fetched once more, then refused.

At most `bundles.keep` bundles stay, those that were used last. One that goes while a process has it mapped stays
readable to that process, and can be fetched again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import structlog

from infra.platform.retrying import locked
from models.release.bundle import BundleCode, BundleError, Manifest, read_manifest
from models.release.manifest_file import MANIFEST, MOST_BYTES, sync_path
from streams.bundles.objects import Objects, StoreError

log = structlog.get_logger(__name__)

CACHE = ".fetched"
PARTIAL = ".partial"  # in the cache: what is being fetched, and what a cut has left
LOCK = ".lock"
WAIT_S = 0.1
CODES: dict[str, BundleCode] = {"away": "away", "forbidden": "forbidden", "missing": "missing"}


class Cache:
    """The fetched bundles of this machine."""

    def __init__(self, objects: Objects, bundles_dir: Path, keep: int) -> None:
        self._objects, self._keep = objects, keep
        self._directory = bundles_dir / CACHE

    def place(self, version: str) -> Path:
        return self._directory / version

    def holds(self, version: str) -> bool:
        """True when the bundle is there, which it is whole or not at all."""
        return (self.place(version) / MANIFEST).is_file()

    def fetch(self, version: str, stopped: Callable[[], bool]) -> Path:
        """The place of a bundle, fetched if it is not there: that blocks, until `stopped` is true at the latest. One
        that is there waits for nobody's fetch. Raises BundleError."""
        with self._told(version):
            if not self.holds(version):
                with self._locked(stopped):
                    if not self.holds(version):
                        self._fetch(version, stopped)
                    self._bound(version)
            os.utime(self.place(version))
        return self.place(version)

    def manifest(self, version: str) -> Manifest:
        """The manifest in the store; nothing is kept. Raises BundleError."""
        with self._told(version), TemporaryDirectory() as scratch:
            directory = Path(scratch) / version
            directory.mkdir()
            return self._fetch_manifest(directory)

    def discard(self, version: str) -> None:
        """Forget a bundle that this disk has spoilt."""
        shutil.rmtree(self.place(version), ignore_errors=True)

    @contextmanager
    def _told(self, version: str) -> Iterator[None]:
        """Raises BundleError for what the store or the disk say."""
        try:
            yield
        except StoreError as error:
            raise BundleError(CODES.get(error.code, "unreadable"), f"bundle {version}: {error}") from None
        except OSError as error:
            text = f"{self._directory}: the bundle {version} cannot be kept there: {error.strerror}"
            raise BundleError("unreadable", text) from None

    @contextmanager
    def _locked(self, stopped: Callable[[], bool]) -> Iterator[None]:
        """One process of a machine fetches, the others find what it has fetched."""
        self._directory.mkdir(parents=True, exist_ok=True)
        with locked(self._directory / LOCK, lambda: _go_on(stopped)):
            yield

    def _fetch(self, version: str, stopped: Callable[[], bool]) -> None:
        began_s = time.monotonic()
        partial = self._directory / PARTIAL / version  # of the version's name: the manifest is held against it
        partial.mkdir(parents=True, exist_ok=True)
        manifest = self._fetch_manifest(partial)
        for name, checksum in manifest.files.items():
            self._fetch_file(partial / name, checksum, stopped)
        for path in [*partial.iterdir(), partial]:
            sync_path(path)
        self.discard(version)
        partial.rename(self.place(version))
        sync_path(self._directory)
        log.info("bundle fetched", version=version, store=self._objects.url, wall_s=time.monotonic() - began_s)

    def _fetch_manifest(self, partial: Path) -> Manifest:
        """Raises BundleError for one that is not of the version, when it was so twice."""
        for is_last in (False, True):
            name = f"{partial.name}/{MANIFEST}"
            size = self._objects.size(name)
            if size > MOST_BYTES:
                raise BundleError("unreadable", f"{self._objects.url}/{name}: larger than {MOST_BYTES:,} bytes")
            (partial / MANIFEST).write_bytes(self._objects.read(name, 0, size) if size else b"")
            try:
                return read_manifest(partial)
            except BundleError as error:
                if is_last or error.code in {"format", "schema"}:
                    raise BundleError(error.code, f"from {self._objects.url}: {error}") from None
                log.warning("wrong bytes came, fetching again", version=partial.name, error=str(error))
        raise AssertionError("the last try returns or raises")

    def _fetch_file(self, path: Path, checksum: str, stopped: Callable[[], bool]) -> None:
        """Fetch what is missing of a file. Raises BundleError when its bytes were wrong twice."""
        name = f"{path.parent.name}/{path.name}"
        for is_last in (False, True):
            if self._append(path, name, stopped) == checksum:
                return
            path.unlink()
            if not is_last:
                log.warning("wrong bytes came, fetching again", file=name, store=self._objects.url)
        text = f"{self._objects.url}/{name}: is damaged (its SHA-256 differs from the manifest's, twice)"
        raise BundleError("damaged", f"{text}; send the bundle anew or train another release")

    def _append(self, path: Path, name: str, stopped: Callable[[], bool]) -> str:
        """Fetch from where the file ends to where the object does; the SHA-256 of all of it."""
        size = self._objects.size(name)
        with path.open("a+b") as file:
            if file.tell() > size:
                file.truncate(0)
            while (start := file.seek(0, os.SEEK_END)) < size:
                _go_on(stopped)
                file.write(self._objects.read(name, start, size))
            file.seek(0)
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _bound(self, version: str) -> None:
        """Remove all but the `keep` bundles that were used last, and what was left of others that were begun."""
        fetched = [path for path in self._directory.iterdir() if path.is_dir() and path.name[0] != "."]
        fetched.sort(key=lambda path: (path.name != version, -path.stat().st_mtime))
        for path in [*fetched[self._keep :], self._directory / PARTIAL]:
            shutil.rmtree(path, ignore_errors=True)


def _go_on(stopped: Callable[[], bool]) -> None:
    """Raises StoreError when nobody waits any more."""
    if stopped():
        raise StoreError("away", "stopped before it was fetched")
