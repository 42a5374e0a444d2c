"""The live release's collection made anew as its shadow, from its bundle, `item-vectors` and the catalogue.

It is asked for on `releases` (`nextwatch rebuild index`), since one process writes to Milvus: the indexer. It does
nothing else meanwhile, so nothing changes under it: what arrives waits in Kafka, servers search the old collection, and
a mirror stays fresh. The new one is filled, verified as every new release's is, and caught up with all rows; it is
marked as the old one was; then it takes over the old one's alias, which no search notices; the old one is dropped; the
request is answered.

A request without an answer is done again, and begins by dropping the shadow that a crash has left.
"""

from __future__ import annotations

import time
from contextlib import closing, suppress

import structlog

from indexer.build import BuildFailed, fill, verify
from indexer.collection import Index
from indexer.errors import IndexMissing, IndexRefused
from indexer.intake import Intake, Targets
from indexer.item_attributes import AttributeTable
from indexer.pending_writes import PendingWrites
from indexer.retry import Retry
from indexer.rollout import announced_ms
from indexer.schema import SHADOW
from indexer.upserts import Upserts
from infra.platform.fault_points import reached
from infra.platform.settings import Settings
from models.release.bundle import Bundle, BundleError
from streams import topics
from streams.bundles.source import FetchedAhead, source_of
from streams.epochs import Epochs
from streams.kafka.follow import TopicFollower
from streams.messages import RebuildAsked, RebuildDone, Refused

log = structlog.get_logger(__name__)


class Rebuilding:
    """Makes collections anew; nothing may be waiting in `rows`, which with `attributes` is the catalogue."""

    def __init__(
        self, index: Index, rows: PendingWrites, attributes: AttributeTable, settings: Settings, retry: Retry
    ) -> None:
        self._index, self._rows, self._attributes = index, rows, attributes
        self._settings, self._retry = settings, retry

    def answer(self, asked: RebuildAsked, live: str) -> RebuildDone:
        """Do what was asked for. What came of it is in the answer. Raises what `retry` raises, and KafkaError: then
        nothing is answered, and it is tried again."""
        log.info("rebuilding", version=asked.version)
        began_s, count, problem = time.monotonic(), 0, ""
        with closing(Index(self._settings.milvus, SHADOW)) as shadow:
            try:
                if asked.version != live:
                    raise BuildFailed(f"the live release is {live or 'none'}, not {asked.version}")
                bundles = source_of(self._settings)
                FetchedAhead(bundles).wait(live, self._retry.check)
                count = self._rebuild(bundles.read(live), shadow)
            except (BuildFailed, BundleError, IndexRefused, IndexMissing) as error:
                problem = str(error)
                log.error("the collection cannot be rebuilt, the old one stays", version=asked.version, error=problem)
                self._retry(lambda: shadow.drop(asked.version))
        return RebuildDone(asked.version, asked.at_ms, count, problem, round(1000 * (time.monotonic() - began_s)))

    def _rebuild(self, bundle: Bundle, shadow: Index) -> int:
        """The rows of the new collection of a live release. Raises BuildFailed when what was made is not right,
        IndexMissing when there is no collection to be replaced."""
        index, retry, version = self._index, self._retry, bundle.manifest.version
        mark = retry(lambda: index.mark_of(version))
        if announced_ms(mark) is None:
            raise BuildFailed(f"the collection of {version} is being made at this moment, or is not announced")
        own = PendingWrites()
        own.unavailable = self._rows.unavailable
        own.follow(version)
        self._fill(bundle, own, shadow)
        self._catch_up(bundle, own, shadow)
        retry(lambda: shadow.flush(version))
        count = retry(lambda: shadow.count(version))
        reached("indexer: shadow rebuilt")
        retry(lambda: shadow.mark(version, mark))
        retry(lambda: index.replace(version))
        reached("indexer: rebuilt takes over")
        retry(lambda: shadow.drop(version))
        return count

    def _fill(self, bundle: Bundle, own: PendingWrites, shadow: Index) -> None:
        settings, retry, version = self._settings.indexer, self._retry, bundle.manifest.version
        for _ in fill(shadow, bundle, own, self._attributes, batch=settings.batch, retry=retry):
            retry.check()
        if retry(lambda: self._index.spec(version)) != retry(lambda: shadow.spec(version)):
            raise BuildFailed(
                "it would be of another form (milvus.index_type), which servers do not expect of this release: the "
                "next release has it"
            )
        verify(shadow, bundle, own, expired=set(), least_recall=settings.least_recall, retry=retry)

    def _catch_up(self, bundle: Bundle, own: PendingWrites, shadow: Index) -> None:
        """Write all of `item-vectors`, part by part."""
        manifest = bundle.manifest
        upserts = Upserts(shadow, own, self._attributes, batch=self._settings.indexer.batch, retry=self._retry)
        intake = Intake(own, self._attributes, self._settings.kafka.max_message_bytes)
        targets = Targets({manifest.version: manifest.dim}, manifest.version, manifest.created_ms)
        epochs = Epochs()
        with TopicFollower(self._settings.kafka, topics.ITEM_VECTORS) as follower:
            while not follower.caught_up:
                for record in follower.poll(0.5):
                    with suppress(Refused):  # reported when it first came
                        if epochs.take(record):
                            sent_ms = max(0, record.timestamp)
                            intake.hear_vector(
                                record.key, record.value, targets, is_written=True, now_ms=0, published_ms=sent_ms
                            )
                if upserts.write_all([manifest.version]):
                    raise BuildFailed(f"Milvus has lost the new collection of {manifest.version}")
                self._retry.check()
