"""The collections and what becomes of them: does what indexer/rollout.py decides.

A new collection goes through: filled and verified, caught up with all of `item-vectors`, marked whole, announced,
marked announced. Each of these is acknowledged before the next begins, and a crash in between leaves a mark that says
where to go on (or that nothing of it counts).
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import structlog

from indexer import rollout
from indexer.build import Build, BuildFailed, fill, hold_unavailable
from indexer.collection import Index, collection_name
from indexer.errors import IndexMissing
from indexer.intake import Intake
from indexer.retry import Retry
from indexer.rollout import WHOLE, Action, Announce, Drop, Releases, Renew, announced
from indexer.verify import verify
from infra.platform.fault_points import reached
from infra.platform.settings import Indexer
from models.release.bundle import BundleError, read_bundle
from streams.messages import IndexReady

log = structlog.get_logger(__name__)

RETRY_S = 5.0  # until a bundle that cannot be used is tried again


class Stream(Protocol):
    """The rows' side of the process."""

    @property
    def caught_up(self) -> bool: ...
    def rewind(self) -> None: ...  # read `item-vectors` from the beginning
    def write(self) -> None: ...  # write and commit all that was read
    def announce(self, ready: IndexReady) -> None: ...  # returns when it is acknowledged


class Collections:
    """What collections there are (`marks`), and the one that is being built."""

    def __init__(
        self, index: Index, intake: Intake, stream: Stream, settings: Indexer, bundles_dir: Path, patiently: Retry
    ) -> None:
        self.marks: dict[str, str] = {}
        self._index, self._intake, self._rows, self._facts = index, intake, intake.rows, intake.facts
        self._stream = stream
        self._settings, self._bundles_dir = settings, bundles_dir
        self._patiently = patiently
        self._build: Build | None = None
        self._unusable: dict[str, int] = {}  # versions whose bundle could not be used, and when (ms)

    @property
    def is_building(self) -> bool:
        return self._build is not None

    @property
    def is_filling(self) -> bool:
        return self._build is not None and self._build.steps is not None

    def open(self) -> None:
        """See what there is, and take rows for what is whole."""
        self.marks = self._read_marks()
        for version in [version for version, mark in self.marks.items() if rollout.is_whole(mark)]:
            self._open(version)

    def hold_unavailable(self) -> None:
        """Read the rows of items that are down from the bundles of the collections."""
        for version in self._rows.followed if self._rows.down else ():
            try:
                hold_unavailable(read_bundle(self._bundles_dir / version), self._rows)
            except BundleError as error:
                log.warning("items that are down may come back without a vector", version=version, error=str(error))

    def try_again(self, version: str) -> None:
        """There is news of this version."""
        self._unusable.pop(version, None)

    def let_go(self, item_id: str) -> None:
        """The trainer has let go of an item: it may be missing in what is being filled."""
        if self._build is not None:
            self._build.expired.add(item_id)

    def decide(self, releases: Releases, now_ms: int) -> None:
        """Take the next step of the hand-over, if there is one."""
        actions = rollout.decide(
            releases,
            self.marks,
            building=self._build.version if self._build else "",
            unusable=frozenset(v for v, since_ms in self._unusable.items() if 0 <= now_ms - since_ms < RETRY_S * 1000),
            timeout_ms=int(self._settings.server_timeout_s * 1000),
        )
        for action in actions:
            self._act(action, now_ms)

    def go_on_building(self, now_ms: int) -> bool:
        """Do a small part of the work on a new collection; True when it has just become whole."""
        build = self._build
        if build is None:
            return False
        try:
            if build.steps is None:
                return self._finish_if_caught_up(build)
            if next(build.steps, None) is None:
                self._catch_up(build)
        except (BuildFailed, IndexMissing) as error:
            self._drop(build.version)
            self._set_aside(build.version, error, now_ms)
        return False

    def look_again(self) -> None:
        """Milvus may have lost collections (a server set up anew): see what is left."""
        for version in set(self.marks) - set(self._read_marks()):
            log.error("collection is gone", version=version)
            if self._build is None or self._build.version != version:
                self._forget(version)

    def _act(self, action: Action, now_ms: int) -> None:
        log.info("hand-over", action=type(action).__name__.lower(), version=action.version)
        match action:
            case Drop(version):
                self._drop(version)
            case Announce(version):
                self._announce(version, now_ms)
            case Renew(version, at_ms):
                self._mark(version, announced(at_ms))
            case rollout.Build(version):
                self._begin(version, now_ms)

    def _begin(self, version: str, now_ms: int) -> None:
        try:
            bundle = read_bundle(self._bundles_dir / version)
        except BundleError as error:
            self._set_aside(version, error, now_ms)
            return
        self._rows.follow(version)
        self.marks[version] = ""
        batch = self._settings.batch
        steps = fill(self._index, bundle, self._rows, self._facts, batch=batch, patiently=self._patiently)
        self._build = Build(version, bundle, steps)

    def _catch_up(self, build: Build) -> None:
        """The collection is filled: verify it, then have all of `item-vectors` read again for it."""
        assert build.bundle is not None
        self._stream.write()
        least, expired = self._settings.least_recall, build.expired
        verify(self._index, build.bundle, self._rows, expired=expired, least_recall=least, patiently=self._patiently)
        reached("indexer: collection filled")
        self._intake.dims[build.version] = build.bundle.manifest.dim
        self._intake.catching_up, self._intake.made_ms = build.version, build.bundle.manifest.created_ms
        build.bundle = build.steps = None
        self._patiently(self._stream.rewind, of="kafka")

    def _finish_if_caught_up(self, build: Build) -> bool:
        if not self._stream.caught_up:
            return False
        self._stream.write()
        self._mark(build.version, WHOLE)
        reached("indexer: marked whole")
        self._intake.catching_up = ""
        self._build = None
        return True

    def _announce(self, version: str, now_ms: int) -> None:
        items = self._patiently(lambda: self._index.count(version))
        self._stream.announce(IndexReady(version, collection_name(version), items, now_ms))
        reached("indexer: announced")
        self._mark(version, announced(now_ms))
        reached("indexer: marked announced")
        log.info("index ready", version=version, items=items)

    def _mark(self, version: str, mark: str) -> None:
        self._patiently(lambda: self._index.mark(version, mark))
        self.marks[version] = mark

    def _drop(self, version: str) -> None:
        if self._build is not None and self._build.version == version:
            self._build = None
        self._forget(version)
        self._patiently(lambda: self._index.drop(version))

    def _set_aside(self, version: str, error: Exception, now_ms: int) -> None:
        log.error("release cannot be indexed", version=version, error=str(error), again_s=RETRY_S)
        self._unusable[version] = now_ms

    def _open(self, version: str) -> None:
        self._patiently(lambda: self._index.load(version))
        self._intake.dims[version] = self._patiently(lambda: self._index.dim(version))
        self._rows.follow(version)

    def _read_marks(self) -> dict[str, str]:
        return self._patiently(lambda: {version: self._mark_of(version) for version in self._index.versions()})

    def _mark_of(self, version: str) -> str:
        """A collection that an older version of nextwatch made lacks fields: it is not whole, and is made anew."""
        if self._index.is_of_today(version):
            return self._index.mark_of(version)
        log.warning("collection was made by another version of nextwatch, it is made anew", version=version)
        return ""

    def _forget(self, version: str) -> None:
        self.marks.pop(version, None)
        self._rows.forget(version)
        self._intake.dims.pop(version, None)
        if self._intake.catching_up == version:
            self._intake.catching_up = ""
