"""The live release's collection made anew, from its bundle, `item-vectors` and the catalogue, beside the one that is
there.

It is asked for on `releases` (`nextwatch rebuild index`), since one process writes to Milvus: the indexer. It does
nothing else meanwhile, so nothing changes under it: what arrives waits in Kafka, servers search the old collection, and
a mirror stays fresh. The new one is filled, verified as every new release's is, and caught up with all rows; it is
marked as the old one was; then it takes over the old one's alias, which no search notices; the old one is dropped; the
request is answered.

A request without an answer is done again, and begins by dropping what a crash has left beside.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import structlog

from indexer.build import BuildFailed, fill
from indexer.collection import Index
from indexer.errors import IndexMissing, IndexRefused
from indexer.facts import Facts
from indexer.intake import Intake
from indexer.pending_writes import PendingWrites
from indexer.retry import Retry
from indexer.rollout import announced_ms
from indexer.schema import SHADOW
from indexer.upserts import write_all
from indexer.verify import verify
from infra.platform.fault_points import reached
from infra.platform.settings import Settings
from models.release.bundle import Bundle, BundleError, read_bundle
from streams import topics
from streams.epochs import Epochs
from streams.kafka.follow import TopicFollower
from streams.messages import RebuildAsked, RebuildDone, Refused

log = structlog.get_logger(__name__)


class Requests:
    """What was asked for on `releases`, and what was answered, in order of arrival: whoever asked has a clock of their
    own, and `at_ms` is no more than a request's name."""

    def __init__(self) -> None:
        self._asked: RebuildAsked | None = None
        self._answered_ms: int | None = None  # the request that was answered last

    def hear(self, message: RebuildAsked | RebuildDone) -> None:
        if isinstance(message, RebuildDone):
            self._answered_ms = message.asked_ms
            if self._asked is not None and self._asked.at_ms == message.asked_ms:
                self._asked = None
        elif message.at_ms != self._answered_ms:  # else a producer has sent it twice
            self._asked = message

    @property
    def open(self) -> RebuildAsked | None:
        """The newest request, when it is not answered."""
        return self._asked


def answer(
    asked: RebuildAsked,
    live: str,
    index: Index,
    rows: PendingWrites,
    facts: Facts,
    settings: Settings,
    patiently: Retry,
) -> RebuildDone:
    """Do what was asked for; nothing may be waiting in `rows`. What came of it is in the answer.

    Raises what `patiently` raises, and KafkaError: then nothing is answered, and it is tried again.
    """
    log.info("rebuilding", version=asked.version)
    began_s, count, problem = time.monotonic(), 0, ""
    try:
        if asked.version != live:
            raise BuildFailed(f"the live release is {live or 'none'}, not {asked.version}")
        bundle = read_bundle(settings.bundles_dir / live)
        count = rebuild(bundle, index, rows, facts, settings, patiently)
    except (BuildFailed, BundleError, IndexRefused, IndexMissing) as error:
        problem = str(error)
        log.error("the collection cannot be rebuilt, the old one stays", version=asked.version, error=problem)
        patiently(lambda: index.drop(asked.version + SHADOW))
    return RebuildDone(asked.version, asked.at_ms, count, problem, round(1000 * (time.monotonic() - began_s)))


def rebuild(
    bundle: Bundle, index: Index, rows: PendingWrites, facts: Facts, settings: Settings, patiently: Retry
) -> int:
    """Make the collection of a live release anew; its rows. `rows.down` and `facts` are the catalogue.

    Raises BuildFailed when what was made is not right, IndexMissing when there is no collection to be replaced.
    """
    version, batch = bundle.manifest.version, settings.indexer.batch
    mark = patiently(lambda: index.mark_of(version))
    if announced_ms(mark) is None:
        raise BuildFailed(f"the collection of {version} is being made at this moment, or is not announced")
    beside: Any = Beside(index, version)
    own = PendingWrites()
    own.down = rows.down
    own.follow(version)
    for _ in fill(beside, bundle, own, facts, batch=batch, patiently=patiently):
        patiently.check()
    if not patiently(lambda: index.is_alike(version, version + SHADOW)):
        raise BuildFailed(
            "it would be of another form (milvus.index_type), which servers do not expect of this release: the next "
            "release has it"
        )
    verify(beside, bundle, own, expired=set(), least_recall=settings.indexer.least_recall, patiently=patiently)
    for _ in _catch_up(bundle, own, facts, settings):
        patiently.check()
        if write_all(beside, own, facts, [version], batch=batch, patiently=patiently):
            raise BuildFailed(f"Milvus has lost the new collection of {version}")
    patiently(lambda: index.flush(version + SHADOW))
    count = patiently(lambda: index.count(version + SHADOW))
    reached("indexer: rebuilt beside")
    _swap(index, version, mark, patiently)
    return count


def _catch_up(bundle: Bundle, own: PendingWrites, facts: Facts, settings: Settings) -> Iterator[None]:
    """All of `item-vectors` into `own`; yields whenever it is time to write them."""
    manifest, max_bytes = bundle.manifest, settings.kafka.max_message_bytes
    intake = Intake(own, facts, max_bytes, {manifest.version: manifest.dim}, manifest.version, manifest.created_ms)
    epochs = Epochs()
    with TopicFollower(settings.kafka, topics.ITEM_VECTORS) as follower:
        while not follower.caught_up:
            for record in follower.poll(0.5):
                try:
                    if epochs.take(record):
                        sent_ms = max(0, record.timestamp)
                        intake.hear_vector(record.key, record.value, is_written=True, now_ms=0, published_ms=sent_ms)
                except Refused:
                    continue  # reported when it first came
            yield
    yield


def _swap(index: Index, version: str, mark: str, patiently: Retry) -> None:
    patiently(lambda: index.mark(version + SHADOW, mark))
    patiently(lambda: index.replace(version, by=version + SHADOW))
    reached("indexer: rebuilt takes over")
    patiently(lambda: index.drop(version + SHADOW))


class Beside:
    """The index, with the new collection in the place of the version's own; as far as filling, verifying and writing
    need it."""

    def __init__(self, index: Index, version: str) -> None:
        self._index, self._version = index, version

    def __getattr__(self, method: str) -> Any:
        """Every method's first argument is the version."""
        call = getattr(self._index, method)

        def with_name(version: str, *arguments: Any, **options: Any) -> Any:
            assert version == self._version
            return call(version + SHADOW, *arguments, **options)

        return with_name
