"""Where a process finds bundles: in `<data_dir>/bundles`, else in the store that is set (`bundles.store`), from which
it fetches them. Without a store it is the directory alone.

Whoever has a loop that must go on asks FetchedAhead first: it fetches in a thread of its own, and the loop reads what
is on disk.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from infra.platform.settings import Bundles, Settings
from models.release.bundle import (
    Bundle,
    BundleError,
    Manifest,
    RankerBundle,
    read_bundle,
    read_manifest,
    read_ranker,
)
from models.release.manifest_file import MANIFEST
from streams.bundles.fetching import Cache
from streams.bundles.objects import Objects

NO_STORE = Bundles()
WAIT_S = 0.05

T = TypeVar("T")


def never() -> bool:
    return False


class BundleSource:
    """Bundles by version."""

    def __init__(self, bundles_dir: Path, bundles: Bundles = NO_STORE) -> None:
        """Raises StoreError for a store that cannot be used as it is set; asks nobody."""
        self._directory = bundles_dir
        self._cache = Cache(Objects(bundles), bundles_dir, bundles.keep) if bundles.store else None
        self._reading: list[str] = []  # whole bundles, for which the fetch of a ranker stops

    def is_here(self, version: str) -> bool:
        """True when reading the bundle asks no store."""
        if self._cache is None or (self._directory / version / MANIFEST).is_file():
            return True
        return self._cache.holds(version)

    def directory(self, version: str, stopped: Callable[[], bool] = never) -> Path:
        """The bundle's directory; it is fetched if it must be, until `stopped`. Raises BundleError."""
        own = self._directory / version
        if self._cache is None or (own / MANIFEST).is_file():
            return own
        return self._cache.fetch(version, stopped)

    def read(self, version: str, stopped: Callable[[], bool] = never) -> Bundle:
        """Load and check a bundle. Raises BundleError; a fetched one that the disk has spoilt is fetched anew the next
        time, not in here: who reads may have a loop that must go on."""
        self._reading.append(version)
        try:
            return self._read(version, stopped, read_bundle)
        finally:
            self._reading.remove(version)

    def read_ranker(
        self, version: str, stopped: Callable[[], bool] = never, beside: RankerBundle | None = None
    ) -> RankerBundle:
        """The same of what ranks alone, with the statistics of `beside` where they are the same. Its fetch also stops
        while a whole bundle is read, which may go live: try again then."""
        return self._read(version, lambda: stopped() or bool(self._reading), partial(read_ranker, beside=beside))

    def read_beside(self, version: str, stopped: Callable[[], bool] = never) -> Bundle:
        """The whole bundle of a release that is to serve beside the live one; its fetch stops as that of `read_ranker`
        does."""
        return self._read(version, lambda: stopped() or bool(self._reading), read_bundle)

    def manifest(self, version: str) -> Manifest:
        """What a bundle says of itself; from the store no more of it is fetched. Raises BundleError."""
        if self._cache is None or self.is_here(version):
            return read_manifest(self.directory(version))
        return self._cache.manifest(version)

    def _read(self, version: str, stopped: Callable[[], bool], how: Callable[[Path], T]) -> T:
        place = self.directory(version, stopped)
        try:
            return how(place)
        except BundleError as error:
            if self._cache is None or place != self._cache.place(version) or error.code not in {"damaged", "missing"}:
                raise
            self._cache.discard(version)
            raise


def source_of(settings: Settings) -> BundleSource:
    """The bundles of a process with these settings. Raises StoreError."""
    return BundleSource(settings.bundles_dir, settings.bundles)


class FetchedAhead:
    """Fetches one bundle at a time beside a loop that must not wait; none while `yields`, for somebody whose bundle is
    wanted more: of a machine one process fetches at a time."""

    def __init__(self, source: BundleSource, yields: Callable[[], bool] = never) -> None:
        self._source, self._yields = source, yields
        self._wanted = self._version = ""
        self._thread: threading.Thread | None = None
        self._failure: BundleError | None = None

    @property
    def under_way(self) -> str:
        """The version that is being fetched, empty when none is."""
        return self._version if self._thread is not None and self._thread.is_alive() else ""

    def is_here(self, version: str) -> bool:
        """True when the bundle can be read from disk; else it is being fetched from now on. Raises BundleError, once,
        when that has failed: ask again when it may be tried again."""
        if self._source.is_here(version):
            return True
        self._wanted = version  # another one that is under way is stopped
        if self.under_way or self._yields():
            return False
        failure, self._failure = self._failure, None
        if failure is not None and self._version == version:
            raise failure
        self._version = version
        self._thread = threading.Thread(target=self._fetch, args=(version,), name="bundle-fetcher", daemon=True)
        self._thread.start()
        return False

    def stop(self) -> None:
        """Nobody waits any more: what is under way ends soon."""
        self._wanted = ""

    def wait(self, version: str, meanwhile: Callable[[], None]) -> None:
        """Return when the bundle can be read from disk; `meanwhile` is called all along, and may raise to end it.
        Raises BundleError."""
        while not self.is_here(version):
            meanwhile()
            time.sleep(WAIT_S)

    def _fetch(self, version: str) -> None:
        try:
            self._source.directory(version, lambda: self._wanted != version or self._yields())
        except BundleError as error:
            self._failure = None if self._yields() else error
