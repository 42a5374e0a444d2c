"""The collections and what becomes of them: does to Milvus what indexer/rollout.py decides.

It knows nothing of Kafka: what is read, written and announced in between is the loop's work (indexer/process.py).
"""

from __future__ import annotations

import structlog

from indexer.build import Build, fill, hold_unavailable, verify
from indexer.collection import Index
from indexer.index_spec import FORMAT
from indexer.intake import Targets
from indexer.item_attributes import AttributeTable
from indexer.pending_writes import PendingWrites
from indexer.retry import Retry
from indexer.rollout import (
    WHOLE,
    Begin,
    Decision,
    Drop,
    Effect,
    Releases,
    Renew,
    Stage,
    Step,
    announced,
    decide,
    is_whole,
)
from indexer.schema import collection_name
from infra.platform.fault_points import reached
from infra.platform.settings import Settings
from models.release.bundle import BundleError
from streams.bundles.source import FetchedAhead, source_of
from streams.messages import IndexReady

log = structlog.get_logger(__name__)

RETRY_S = 5.0  # until a bundle that cannot be used is tried again


class Collections:
    """The collections that there are (`marks`), those that take rows (`targets`), and the one that is being made."""

    def __init__(
        self, index: Index, rows: PendingWrites, attributes: AttributeTable, settings: Settings, retry: Retry
    ) -> None:
        self.marks: dict[str, str] = {}
        self.targets = Targets()
        self._index, self._rows, self._attributes = index, rows, attributes
        self._settings, self._bundles = settings.indexer, source_of(settings)
        self._ahead = FetchedAhead(self._bundles)
        self.refusal = ""  # why the newest bundle has no collection yet
        self._prefix = settings.milvus.collection_prefix
        self._retry = retry
        self._build: Build | None = None
        self._unusable: dict[str, int] = {}  # versions whose bundle could not be used, and when (ms)

    @property
    def stage(self) -> Stage | None:
        """The stage of the collection that is being made; None when none is."""
        return self._build.stage if self._build else None

    def open(self) -> None:
        """See what there is, and take rows for what is whole. Raises IndexRefused when Milvus cannot make what the
        settings ask for."""
        self._retry(self._index.check)
        self.marks = self._read_marks()
        for version in [version for version, mark in self.marks.items() if is_whole(mark)]:
            self._retry(lambda version=version: self._index.load(version))  # type: ignore[misc]
            self.targets.dims[version] = self._retry(lambda version=version: self._index.dim(version))  # type: ignore[misc]
            self._rows.follow(version)

    def hold_unavailable(self) -> None:
        """Read the rows of unavailable items from the bundles of the collections."""
        for version in self._rows.followed if self._rows.unavailable else ():
            try:
                self._ahead.wait(version, self._retry.check)
                hold_unavailable(self._bundles.read(version), self._rows)
            except BundleError as error:
                log.warning("unavailable items may come back without a vector", version=version, error=str(error))

    def try_again(self, version: str) -> None:
        """There is news of this version."""
        self._unusable.pop(version, None)

    def let_go(self, item_id: str) -> None:
        """The trainer has let go of an item: it may be missing in what is being filled."""
        if self._build is not None:
            self._build.expired.add(item_id)

    def decide(self, releases: Releases, now_ms: int) -> list[Decision]:
        """Return what the rollout needs next."""
        unusable = {v for v, since_ms in self._unusable.items() if 0 <= now_ms - since_ms < RETRY_S * 1000}
        return decide(
            releases,
            self.marks,
            building=self._build.version if self._build else "",
            unusable=frozenset(unusable | {self._ahead.under_way}),
            timeout_ms=int(self._settings.server_timeout_s * 1000),
        )

    def carry_out(self, effect: Effect, now_ms: int) -> None:
        """Do what Milvus has to do with it. Raises BuildFailed, IndexMissing."""
        match effect, self._build:
            case Drop(version), _:
                self._drop(version)
            case Renew(version, at_ms), _:
                self.mark(version, announced(at_ms))
            case Begin(version), _:
                self._begin(version, now_ms)
            case Step.FILL, Build() as build:
                if next(build.batches, None) is None:
                    build.stage = Stage.FILLED
            case Step.VERIFY, Build() as build:
                self._verify(build)
            case Step.FINISH, Build() as build:
                self.mark(build.version, WHOLE)
                reached("indexer: marked whole")
                self.targets.catching_up, self._build = "", None

    def give_up(self, error: Exception, now_ms: int) -> None:
        """Drop the collection that is being made; it is tried again later."""
        if self._build is not None:
            version = self._build.version
            self._drop(version)
            self._set_aside(version, error, now_ms)

    def ready(self, version: str, now_ms: int) -> IndexReady:
        """Return what servers are told of a collection that is whole."""
        count = self._retry(lambda: self._index.count(version))
        return IndexReady(version, collection_name(self._prefix, version), count, now_ms)

    def mark(self, version: str, mark: str) -> None:
        self._retry(lambda: self._index.mark(version, mark))
        self.marks[version] = mark

    def keep_marks(self) -> None:
        """Write again the marks that Milvus has lost: a server of 2.3 forgets with a restart what a collection was
        given after it was made, and servers take none without a mark. Raises IndexMissing."""
        for version, mark in list(self.marks.items()):
            if mark and self._retry(lambda version=version: self._index.mark_of(version)) != mark:  # type: ignore[misc]
                log.warning("mark was lost, it is written again", version=version, mark=mark)
                self.mark(version, mark)

    def look_again(self) -> None:
        """Milvus may have lost collections (a server set up anew): see what is left."""
        for version in set(self.marks) - set(self._read_marks()):
            log.error("collection is gone", version=version)
            if self._build is None or self._build.version != version:
                self._forget(version)

    def _begin(self, version: str, now_ms: int) -> None:
        if self._ahead.under_way not in ("", version) and not self._bundles.is_here(version):
            return  # one fetch after the other: neither would end
        try:
            if not self._ahead.is_here(version):
                return  # what is live is kept fresh meanwhile
            bundle = self._bundles.read(version)
        except BundleError as error:
            self._set_aside(version, error, now_ms)
            return
        self.refusal = ""
        self._rows.follow(version)
        self.marks[version] = ""
        batch = self._settings.batch
        batches = fill(self._index, bundle, self._rows, self._attributes, batch=batch, retry=self._retry)
        self._build = Build(version, bundle, batches)

    def _verify(self, build: Build) -> None:
        assert build.bundle is not None
        least, manifest = self._settings.least_recall, build.bundle.manifest
        verify(self._index, build.bundle, self._rows, expired=build.expired, least_recall=least, retry=self._retry)
        reached("indexer: collection filled")
        self.targets.dims[build.version] = manifest.dim
        self.targets.catching_up, self.targets.made_ms = build.version, manifest.created_ms
        build.bundle, build.batches, build.stage = None, iter(()), Stage.CATCHING_UP

    def _drop(self, version: str) -> None:
        if self._build is not None and self._build.version == version:
            self._build = None
        self._forget(version)
        self._retry(lambda: self._index.drop(version))

    def _set_aside(self, version: str, error: Exception, now_ms: int) -> None:
        log.error("release cannot be indexed", version=version, error=str(error), again_s=RETRY_S)
        self._unusable[version], self.refusal = now_ms, str(error)

    def _read_marks(self) -> dict[str, str]:
        return self._retry(lambda: {version: self._mark_of(version) for version in self._index.versions()})

    def _mark_of(self, version: str) -> str:
        """A collection that an older version of nextwatch made lacks fields: it is not whole, and is made anew."""
        if self._index.spec(version).format == FORMAT:
            return self._index.mark_of(version)
        log.warning("collection was made by another version of nextwatch, it is made anew", version=version)
        return ""

    def _forget(self, version: str) -> None:
        self.marks.pop(version, None)
        self._rows.forget(version)
        self.targets.drop(version)
