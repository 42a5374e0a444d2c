"""The live release: one reference that holds the version, its towers, its ranker and its collection, swapped at once.

A release is loaded beside the live one by a thread of its own and warmed up there; the thread that answers requests
takes it over between two batches. So a batch reads the reference once, and no answer mixes two versions. A release that
cannot be used (no bundle, a corrupt one, no collection, another width) leaves the live one where it is, is counted, and
is tried again for as long as it is the one announced: a bundle may arrive later than its announcement.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import structlog
from numpy.typing import NDArray

from indexer.errors import IndexFailure
from indexer.rollout import is_whole
from infra.platform import metrics
from infra.platform.retrying import BackOff
from models.catalogue.catalogue import Catalogue
from models.logs.array_file import forget_pages
from models.ranking.item_statistics import ItemStatistics
from models.ranking.ranker import Ranker
from models.ranking.ranking_request import RankingQuery, ranking_batch_of
from models.release.bundle import BundleError, Manifest
from models.retrieval.candidates import CandidateModel
from models.retrieval.table import GROWTH, ROOM, Table
from serving.state.item_worth import ItemWorth
from serving.state.known_items import KnownItems
from serving.state.mirror import Mirror, bytes_of_item
from serving.state.reading import read
from serving.state.shared_rows import SharedRows, map_numbers, write_numbers
from serving.state.views import CatalogueView
from streams import topics
from streams.bundles.source import BundleSource, never
from streams.messages import IndexReady, ItemVector, Release, UserHistory

log = structlog.get_logger(__name__)

Floats = NDArray[np.float32]

VERSION = re.compile(r"[A-Za-z0-9_]+")  # it names a directory and a collection
RETRY_S = 1.0
MOST_RETRY_S = 30.0
MIRRORED = 50_000  # vectors taken into the mirror together
QUERY_ROWS = "query_rows"  # a file of the shared rows, beside the mirror's
POPULAR = 500  # items that a release knows as popular, at hand for lists that are too short


class Index(Protocol):
    """The methods of indexer.collection.Index that serving needs."""

    def mark_of(self, version: str, timeout_s: float | None = None) -> str: ...
    def dim(self, version: str) -> int: ...
    def load(self, version: str) -> None: ...
    def search(
        self, version: str, vectors: Floats, limit: int, *, timeout_s: float | None = None, expression: str = ""
    ) -> list[tuple[list[str], Floats]]: ...


class ReleaseError(RuntimeError):
    """A release cannot be served. `reason` is one of a fixed few (a metric label), the text says what is wrong."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True)
class LiveRelease:
    """A release as it is served. A rival of its candidates is the same with the ranker of another release and what that
    one has worked out: towers, rows, mirror and catalogue are in memory once. A rival with candidates of its own has
    all of this itself, but no collection."""

    version: str
    created_ms: int
    model: CandidateModel
    ranker: Ranker
    index: Index
    catalogue: Catalogue
    statistics: ItemStatistics
    mirror: Mirror | None = None  # None: there are too many items
    worth: ItemWorth = field(default_factory=ItemWorth)
    known: KnownItems = field(default_factory=KnownItems)
    learnt: set[str] = field(default_factory=set)  # items with a row that is newer than the bundle
    popular: Sequence[tuple[str, float]] = ()  # items and their shares of the watches when it was trained, best first
    manifest: Manifest | None = None  # of its bundle
    ranked_by: str = ""  # of a rival, the release whose ranker it has; `version` is that of its candidates
    rivals: Mapping[str, LiveRelease] = field(default_factory=dict)  # by the release whose ranker they have

    @property
    def ranker_version(self) -> str:
        """The release that the ranker is of."""
        return self.ranked_by or self.version

    @property
    def is_beside(self) -> bool:
        """True of a rival with candidates of its own: they are found in its mirror, no index has them."""
        return self.ranked_by == self.version

    def with_candidates(self, version: str) -> LiveRelease:
        """The rival that has the candidates of this version; itself where there is none."""
        rival = self.rivals.get(version, self)
        return rival if rival.is_beside else self

    def has_ranker(self, version: str) -> bool:
        return version == self.version or version in self.rivals

    def with_ranker(self, version: str) -> LiveRelease:
        """The rival that has the ranker of this version; itself where there is none."""
        return self.rivals.get(version, self)


class Releases:
    """Follows the announcements and holds the live release. All methods but the loader's run in the answering thread.

    What arrives while a release is being loaded is written into it when it is taken over, so that it misses nothing.
    Of the release that was live before, the rows are kept that it had learnt: a roll-back to it gives them back, though
    the topic may hold only newer rows of these items by then.
    """

    def __init__(
        self,
        bundles: BundleSource,
        index: Index,
        catalogue: CatalogueView,
        *,
        mirror_items: int | None = 0,
        mirror_bytes: int = 0,
        in_bfloat16: bool = False,
        shared: SharedRows | None = None,
    ) -> None:
        """`shared`: what the servers of one machine hold together; None: everything is this one's own."""
        self.live: LiveRelease | None = None
        self.refusal = ""  # why the announced release is not live
        self._bundles, self._index, self._catalogue = bundles, index, catalogue
        self._mirror_items, self._mirror_bytes, self._in_bfloat16 = mirror_items, mirror_bytes, in_bfloat16
        self._shared_rows = shared
        self._rows: dict[str, ItemVector] = {}  # the newest row of an item, of versions that are not live
        self._gone: dict[str, int] = {}  # items that the trainer has let go of, and when (ms)
        self._news: dict[tuple[str, str], None] = {}  # (topic, item) that arrived while a release is loaded
        self._wanted = ""
        self._tried = ""  # the version that the loader has come to an end with
        self._failed = False  # ...without one that can be served
        self._loaded: LiveRelease | None = None
        self._is_loading = False
        self._replaced: LiveRelease | None = None  # its rows are still to be kept
        self._kept: dict[str, ItemVector] = {}  # the loader's: what the release before the live one had learnt
        self._changed = threading.Condition()
        self._closed = False
        self._loader = threading.Thread(target=self._load_forever, name="release-loader", daemon=True)
        self._loader.start()

    @property
    def settled(self) -> bool:
        """True if the announced release is live, or has been tried and cannot be."""
        return self._wanted == self._tried and self._loaded is None

    def apply_release(self, value: bytes | None) -> None:
        """Take over a record of `releases`: an index that is ready says what is to be served."""
        if value is None:
            return
        release = read(topics.RELEASES, Release, value)
        if not isinstance(release, IndexReady) or release.version == self._wanted:
            return
        log.info("release announced", version=release.version)
        with self._changed:
            if self._loaded is not None:  # loaded, and not wanted any more: if it is again, it is loaded again
                self._loaded, self._tried = None, ""
            self._wanted = release.version
            if self.live is not None and self.live.version == release.version:
                self._tried, self._failed, self.refusal = release.version, False, ""  # a copy would know less
            self._changed.notify()

    def apply_vector(self, key: bytes | None, value: bytes | None, at_ms: int) -> None:
        """Take over a record of `item-vectors`: an item's embedding on the user's side, and its vector for the mirror.
        A tombstone lets go of it."""
        if not key:
            return  # the trainer's own bookkeeping
        item_id = key.decode(errors="replace")
        if value is None:
            self._rows.pop(item_id, None)
            self._gone[item_id] = at_ms
            if self.live is not None:
                remove_item(item_id, at_ms, self.live)
        elif (row := read(topics.ITEM_VECTORS, ItemVector, value)) is not None:
            self._gone.pop(item_id, None)
            if self.live is not None and row.version == self.live.version:
                self._rows.pop(item_id, None)
                write_row(item_id, row, self.live, self._catalogue)
            else:
                self._rows[item_id] = row
                self._note(topics.ITEM_VECTORS, item_id)

    def apply_item(self, item_id: str) -> None:
        """An item of the catalogue view has changed."""
        if self.live is not None:
            describe(item_id, self.live, self._catalogue)
        self._note(topics.ITEMS, item_id)

    def refresh(self) -> None:
        """Take over a release that has been loaded, if there is one; to be called between two batches."""
        with self._changed:
            loaded, self._loaded = self._loaded, None
        if loaded is None:
            return
        for topic, item_id in self._news:
            self._write(topic, item_id, loaded)
        for item_id, at_ms in self._gone.items():
            remove_item(item_id, at_ms, loaded)
        self._news.clear()
        self._rows = {item_id: row for item_id, row in self._rows.items() if row.version != loaded.version}
        log.info("release is live", version=loaded.version, before=self.live.version if self.live else None)
        with self._changed:
            self._replaced, self.live = self.live, loaded
            self._changed.notify()
        metrics.MODEL_INFO.clear()
        metrics.MODEL_INFO.labels(loaded.version).set(1)
        metrics.MODEL_CREATED.set(loaded.created_ms / 1000)

    def compare(self, rivals: Mapping[str, LiveRelease]) -> None:
        """Have these rivals beside the live release from now on, and no others; to be called between two batches."""
        if self.live is not None and self.live.rivals.keys() != rivals.keys():
            self.live = replace(self.live, rivals=rivals)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._loader.join(timeout=10)

    def _note(self, topic: str, item_id: str) -> None:
        """For the release that is being loaded."""
        if self._is_due() or self._is_loading or self._loaded is not None:
            self._news[topic, item_id] = None

    def _write(self, topic: str, item_id: str, release: LiveRelease) -> None:
        if topic == topics.ITEMS:
            describe(item_id, release, self._catalogue)
        elif (row := self._rows.get(item_id)) is not None:
            write_row(item_id, row, release, self._catalogue)

    def _load_forever(self) -> None:
        """The loader's thread: the newest announcement, and again after a pause for as long as it cannot be served."""
        waits = BackOff(RETRY_S, MOST_RETRY_S)
        while (version := self._next()) is not None:
            loaded, wait_s = self._try(version), waits.next()
            with self._changed:
                self._is_loading = False
                if version == self._wanted:
                    self._loaded, self._tried, self._failed = loaded, version, loaded is None
                    self.refusal = "" if loaded else self.refusal
                    if self._failed and not self._closed:
                        self._changed.wait(wait_s)
            if loaded:
                waits.reset()
            loaded = None  # one that is not wanted any more must not wait here for the next announcement

    def _next(self) -> str | None:
        """The version to load, waited for; None when closed. What a replaced release had learnt is kept first: here,
        since the answering thread would stand still for it."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._is_due() or self._replaced is not None)
                if self._closed:
                    return None
                replaced, self._replaced = self._replaced, None
                if replaced is None:
                    self._is_loading = True
                    return self._wanted
            self._kept = learnt_rows(replaced)
            del replaced  # a whole release must not wait here for the next announcement

    def _is_due(self) -> bool:
        return self._wanted != self._tried or self._failed

    def _try(self, version: str) -> LiveRelease | None:
        try:
            return self._load(version)
        except ReleaseError as refused:
            reason, text = refused.reason, str(refused)
        except Exception as error:  # outermost: a bug in loading must not end the thread, the live release goes on
            log.exception("loading a release failed", version=version)
            reason, text = "bug", repr(error)
        if version != self._wanted:  # stopped for the sake of another one, or of no interest any more
            return None
        self.refusal = text
        metrics.RELEASES_REFUSED.labels(reason).inc()
        log.error("release refused", version=version, reason=reason, error=text)
        return None

    def _load(self, version: str) -> LiveRelease:
        release = load_release(
            self._bundles,
            version,
            self._index,
            stopped=lambda: self._closed or version != self._wanted,
            mirror_items=self._mirror_items,
            mirror_bytes=self._mirror_bytes,
            in_bfloat16=self._in_bfloat16,
            shared=self._shared_rows,
        )
        self._catalogue.describe_all(release.catalogue)
        match_mirror(release, self._catalogue)
        for item_id, row in [*self._kept.items(), *list(self._rows.items())]:
            write_row(item_id, row, release, self._catalogue)
        warm_up(release)
        return release


def load_release(
    bundles: BundleSource,
    version: str,
    index: Index,
    *,
    stopped: Callable[[], bool] = never,
    mirror_items: int | None = 0,
    mirror_bytes: int = 0,
    in_bfloat16: bool = False,
    shared: SharedRows | None = None,
) -> LiveRelease:
    """Read and check the bundle and its collection; of at most `mirror_items` (None: of what `mirror_bytes` hold) the
    vectors too. `in_bfloat16`: of the ranker. `shared`: with other servers. A bundle is fetched until `stopped`. Raises
    ReleaseError."""
    if not VERSION.fullmatch(version):
        raise ReleaseError("version", f"{version!r} is not a version (letters, digits and underscores)")
    try:
        bundle = bundles.read(version, stopped)
    except BundleError as error:
        raise ReleaseError("bundle", str(error)) from error
    try:
        check_collection(version, bundle.model.dim, index)
    except IndexFailure as error:
        raise ReleaseError("collection", str(error)) from error
    model = bundle.model
    items = len(model.item_ids)
    most = mirror_bytes // bytes_of_item(model.dim) if mirror_items is None else mirror_items
    is_mirrored = 0 < items <= most
    if shared is None or not items:
        mirror = mirror_of(model) if is_mirrored else None
    else:
        try:
            mirror = _share(shared, version, model, is_mirrored, stopped)
        except InterruptedError as error:
            raise ReleaseError("stopped", str(error)) from error
        except OSError as error:
            log.warning("rows are not shared with other servers (serving.processes)", error=str(error))
            mirror = mirror_of(model) if is_mirrored else None
    if items > most > 0:
        log.warning("too many items for a mirror (serving.mirror_items)", version=version, items=items, most=most)
    ranker = bundle.ranker.in_bfloat16() if in_bfloat16 else bundle.ranker
    return LiveRelease(
        version,
        bundle.manifest.created_ms,
        model,
        ranker,
        index,
        bundle.catalogue,
        bundle.statistics,
        mirror,
        popular=popular_of(model),
        manifest=bundle.manifest,
    )


def popular_of(model: CandidateModel) -> list[tuple[str, float]]:
    """The items that are watched most by the model's counts, and their shares; equal ones: who was watched later first.
    Block by block, in little memory."""
    popularity, rows, size = model.popularity, np.zeros(0, np.int64), len(model.item_ids)
    for start in range(0, size, MIRRORED):
        rows = np.append(rows, np.arange(start, min(start + MIRRORED, size)))
        rows = rows[np.lexsort((-popularity.touched(rows), -popularity.log_share(rows)))[:POPULAR]]
    shares = np.exp(popularity.log_share(rows)).tolist()
    return [(model.item_ids[row], share) for row, share in zip(rows.tolist(), shares, strict=True)]


def _share(
    shared: SharedRows, version: str, model: CandidateModel, is_mirrored: bool, stopped: Callable[[], bool]
) -> Mirror | None:
    """Have the rows that are learnt and the mirror on files that the servers of this machine map together."""

    def write(directory: Path) -> None:
        room, dim = max(ROOM, GROWTH * len(model.query_rows)), model.query_rows.shape[1]
        write_numbers(directory / QUERY_ROWS, room * dim, [(0, model.query_rows)])
        if is_mirrored:
            mirror_of(model).save(directory)

    def read_from(place: Path) -> Mirror | None:
        rows = map_numbers(place / QUERY_ROWS).view(-1, model.query_rows.shape[1])
        model.write_query_rows_to(Table.over(rows, len(model.query_rows)))
        return Mirror.opened(place, model.item_ids, model.dim) if is_mirrored else None

    mirror = shared.of(version, "mirror" if is_mirrored else "plain", write, read_from, stopped)
    forget_pages(model.query_rows)
    forget_pages(model.vectors)
    return mirror


def mirror_of(model: CandidateModel) -> Mirror:
    """The vectors of a model, block by block: they are in memory once."""
    size = len(model.item_ids)
    mirror = Mirror([], np.zeros((0, model.dim), np.float32), room=size)
    for start in range(0, size, MIRRORED):
        rows = slice(start, start + MIRRORED)
        mirror.extend(model.item_ids[rows], model.item_vectors(rows))
        forget_pages(model.vectors)
    return mirror


def check_collection(version: str, dim: int, index: Index) -> None:
    """Raises ReleaseError for a collection that is not whole or not of the towers' width, IndexFailure for none."""
    if not is_whole(index.mark_of(version)):
        raise ReleaseError("collection", f"the collection of {version} is not whole: the indexer is still filling it")
    found = index.dim(version)
    if found != dim:
        raise ReleaseError("dim", f"the collection of {version} has vectors of {found} numbers, the towers of {dim}")
    index.load(version)


def warm_up(release: LiveRelease) -> None:
    """One pass of every stage, so that the first request pays for nothing and a wrong width is found now."""
    nobody = UserHistory("warm-up")
    vectors = release.model.user_vectors([nobody], release.created_ms)
    if release.is_beside:
        assert release.mirror is not None
        [(item_ids, scores)] = release.mirror.search(vectors, 10)
    else:
        try:
            [(item_ids, scores)] = release.index.search(release.version, vectors, 10)
        except IndexFailure as error:
            raise ReleaseError("search", f"collection of {release.version} cannot be searched: {error}") from error
        if release.mirror is not None:
            release.mirror.search(vectors, 10)
    warm_up_ranker(release, item_ids, scores)


def warm_up_ranker(release: LiveRelease, item_ids: Sequence[str], scores: Floats) -> None:
    """Rank some items once: the ids that the catalogue has are looked up among the ranker's then."""
    if release.ranker.trained and item_ids:
        query = RankingQuery(UserHistory("warm-up"), release.created_ms, item_ids, scores)
        release.ranker.rank(ranking_batch_of([query], release.catalogue, [release.statistics]))


def write_row(
    item_id: str, row: ItemVector, release: LiveRelease, view: CatalogueView, topic: str = topics.ITEM_VECTORS
) -> None:
    """Give the release a row of its own version; rows of others are not its business. `topic`: where it stood."""
    if row.version != release.version:
        return
    try:
        release.model.apply_query_row(item_id, np.frombuffer(row.query_row, "<f4"))
        if release.mirror is not None:
            down = item_id in view.unavailable
            release.mirror.put(item_id, np.frombuffer(row.vector, "<f4"), down=down)
            release.mirror.set_catalogue_row(item_id, release.catalogue.row(item_id))
        release.learnt.add(item_id)
    except ValueError as error:
        metrics.REJECTED.labels(topic, "invalid").inc()
        log.warning("record passed over", topic=topic, reason=str(error))


def describe(item_id: str, release: LiveRelease, view: CatalogueView) -> None:
    """Write into a release what the catalogue says of an item now."""
    view.describe(item_id, release.catalogue)
    if (row := release.catalogue.row(item_id)) >= 0:
        for each in (release, *(rival for rival in release.rivals.values() if not rival.is_beside)):
            each.known.forget(row)
    if (mirror := release.mirror) is not None:
        mirror.set_down(item_id, item_id in view.unavailable)
        mirror.set_catalogue_row(item_id, release.catalogue.row(item_id))


def remove_item(item_id: str, at_ms: int, release: LiveRelease) -> None:
    """The trainer has let go of an item: nothing retrieves it until a row of it comes again. A release that was made
    since may have the item again."""
    if at_ms < release.created_ms:
        return
    release.learnt.discard(item_id)
    if release.mirror is not None:
        release.mirror.remove(item_id)


def learnt_rows(release: LiveRelease) -> dict[str, ItemVector]:
    """The rows that a release, written to no more, has learnt since its bundle, by item. Vectors only where it has a
    mirror."""
    item_ids, mirror = list(release.learnt), release.mirror
    vectors = np.zeros((len(item_ids), 0), "<f4") if mirror is None else mirror.vectors(mirror.rows(item_ids))
    rows = {}
    for item_id, vector in zip(item_ids, vectors, strict=True):
        query_row = release.model.query_row(item_id)
        assert query_row is not None  # it was written together with the vector
        rows[item_id] = ItemVector(release.version, 0, vector.tobytes(), query_row.tobytes(), 0)
    return rows


def match_mirror(release: LiveRelease, view: CatalogueView) -> None:
    """Bring a new mirror to what the catalogue says of its items."""
    if (mirror := release.mirror) is not None:
        mirror.catalogue_rows[:] = release.catalogue.rows(mirror.item_ids)
        for item_id in list(view.unavailable):
            mirror.set_down(item_id, True)
