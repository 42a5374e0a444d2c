"""A release with candidates of its own beside the live one: towers, rows, mirror, items, all but a collection.

Its bundle is as old as its training, and the live release has learnt since; so it is compared only where the trainer
teaches it too. What that publishes (`rival-vectors`) is read to the end before it is compared, and followed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import structlog

from infra.platform import metrics
from infra.platform.memory import free_bytes
from infra.platform.settings import Kafka
from models.release.bundle import BundleError, Manifest
from models.release.comparable import MIRRORED, why_not_beside, why_not_held
from serving.state.feed import Feed
from serving.state.mirror import bytes_of_item
from serving.state.reading import read
from serving.state.release import (
    LiveRelease,
    ReleaseError,
    describe,
    match_mirror,
    mirror_of,
    popular_of,
    remove_item,
    warm_up,
    write_row,
)
from serving.state.views import CatalogueView
from streams import topics
from streams.bundles.source import BundleSource, never
from streams.epochs import Epochs
from streams.messages import ItemVector

log = structlog.get_logger(__name__)

UNFIT = "unfit"  # a reason that no later try changes
MEMORY_PARTS = 3  # of what is free, one may be taken by the servers of a machine
MOST_APPLIED = 1000  # records applied between two batches
SLACK_MS = 60_000  # between the clocks of the trainer and of who has started the experiment
WAIT_S = 0.02


class RivalCandidates:
    """The release, and what it hears, from an experiment that began at `since_ms`. One thread at a time.

    Raises TopicMissing, KafkaError."""

    def __init__(self, release: LiveRelease, catalogue: CatalogueView, kafka: Kafka, since_ms: int) -> None:
        self.release = release
        self._catalogue, self._epochs, self._since_ms = catalogue, Epochs(), since_ms
        self._feed = Feed(kafka, topics.RIVAL_VECTORS)
        self._is_read = False  # all that was there when reading began
        self._is_learning = False  # the trainer has said how far it has taught this release, for this experiment

    @property
    def waits_for(self) -> str:
        """Why the release is not compared yet; empty when it is as good as it can be."""
        if self._is_learning:
            return ""
        return f"the trainer has not begun to teach {self.release.version}: look at its health, `rival_refused`"

    def read_all(self, stopped: Callable[[], bool]) -> None:
        """Take in what is there, unless it is stopped."""
        while not self._is_read and not stopped():
            self.apply()
            time.sleep(WAIT_S)

    def apply(self) -> None:
        """Take in what has been read."""
        for chunk in self._feed.take(MOST_APPLIED):
            for record in chunk.records:
                metrics.RECEIVED.labels(topics.RIVAL_VECTORS).inc()
                if self._epochs.take(record):  # not a row of a trainer that had been replaced
                    self._apply(record)
            self._is_read |= chunk.complete

    def describe(self, item_id: str) -> None:
        """An item of the catalogue view has changed."""
        describe(item_id, self.release, self._catalogue)

    def close(self) -> None:
        """Read no more; nobody waits for the end of it."""
        threading.Thread(target=self._feed.close, name="rival-feed-closing", daemon=True).start()

    def _apply(self, record: Any) -> None:
        item_id = (record.key or b"").decode(errors="replace")
        if record.value is None:
            if item_id:
                remove_item(item_id, record.timestamp, self.release)
        elif (row := read(topics.RIVAL_VECTORS, ItemVector, record.value)) is not None:
            if item_id:
                write_row(item_id, row, self.release, self._catalogue, topics.RIVAL_VECTORS)
            elif record.timestamp >= self._since_ms - SLACK_MS:  # the trainer's progress
                self._is_learning |= row.version == self.release.version


def load_beside(
    bundles: BundleSource,
    version: str,
    live: LiveRelease,
    catalogue: CatalogueView,
    *,
    mirror_items: int | None = None,
    processes: int = 1,
    stopped: Callable[[], bool] = never,
    in_bfloat16: bool = False,
) -> LiveRelease:
    """The release of this version as it was trained, warmed up. `mirror_items`: the most that are held, None: what
    fits, where so many `processes` of this machine hold one each. Items that change from the call on have to be
    described. Raises ReleaseError."""
    assert live.manifest is not None  # it was loaded from a bundle, too
    try:
        told = bundles.manifest(version)
        if problem := why_not_beside(told, live.manifest):
            raise ReleaseError(UNFIT, problem)
        if problem := why_no_room(told, mirror_items, processes):
            raise ReleaseError("memory", problem)
        bundle = bundles.read_beside(version, stopped)
    except BundleError as error:
        raise ReleaseError("bundle", str(error)) from error
    model = bundle.model
    release = LiveRelease(
        version,
        bundle.manifest.created_ms,
        model,
        bundle.ranker.in_bfloat16() if in_bfloat16 else bundle.ranker,
        live.index,
        bundle.catalogue,
        bundle.statistics,
        mirror_of(model),
        popular=popular_of(model),
        manifest=bundle.manifest,
        ranked_by=version,
    )
    catalogue.describe_all(release.catalogue)
    match_mirror(release, catalogue)
    warm_up(release)
    return release


def why_no_room(told: Manifest, mirror_items: int | None, processes: int) -> str:
    """Why a server cannot hold a release beside the live one, and the way out; empty where it can."""
    if mirror_items is not None:
        return why_not_held(told, mirror_items, MIRRORED)
    ids, numbers = 200, 4 * told.dim  # of an item in the catalogue; of its row on the users' side
    room = free_bytes() // (MEMORY_PARTS * processes) // (bytes_of_item(told.dim) + numbers + ids)
    return why_not_held(told, room, "{} fit into a third of what is free: give the server more memory")
