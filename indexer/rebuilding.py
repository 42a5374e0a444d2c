"""The live release's collection made anew, from its bundle, `item-vectors` and the catalogue, beside the one that is
there.

It is asked for on `releases` (`nextwatch rebuild index`), since one process writes to Milvus: the indexer. It does
nothing else meanwhile, so nothing changes under it: what arrives waits in Kafka, servers search the old collection, and
a mirror stays fresh. The new one is filled, verified as every new release's is, and caught up with all rows; then it
takes the old one's name. The order of effects:

1. the new collection, under a name of its own, is whole;
2. the old one is marked as such: whoever starts now makes the collection anew, as a lost one is;
3. the old one gives its name up, the new one takes it (in between servers are on the next step of their ladder);
4. the new one is marked announced, as the old one was, and the old one is dropped;
5. the request is answered.

A crash before 2 leaves a collection that nobody needs, which is dropped; a request without an answer is done again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import structlog

from indexer.collection import Index
from indexer.errors import IndexMissing, IndexRefused
from indexer.facts import Facts
from indexer.filling import BuildFailed, fill
from indexer.handover import announced_ms
from indexer.intake import Intake
from indexer.patience import Patience
from indexer.rows import Rows
from indexer.verifying import verify
from indexer.writing import write_all
from infra.fault_points import reached
from infra.settings import Settings
from models.bundle import Bundle, BundleError, read_bundle
from streams import topics
from streams.epochs import Epochs
from streams.follow import TopicFollower
from streams.messages import RebuildAsked, RebuildDone, Refused

log = structlog.get_logger(__name__)

BESIDE, OLD = "__rebuilt", "__old"  # after the version, in the names of collections
REBUILDING = "rebuilding"  # the mark of one that is to be replaced


class Requests:
    """What was asked for on `releases`, and what was answered."""

    def __init__(self) -> None:
        self._asked: RebuildAsked | None = None
        self._answered_ms = 0

    def hear(self, message: RebuildAsked | RebuildDone) -> None:
        if isinstance(message, RebuildAsked):
            self._asked = message
        else:
            self._answered_ms = max(message.asked_ms, self._answered_ms)

    @property
    def open(self) -> RebuildAsked | None:
        """The newest request, when it is not answered."""
        asked = self._asked
        return asked if asked is not None and asked.at_ms > self._answered_ms else None


def answer(
    asked: RebuildAsked, live: str, index: Index, rows: Rows, facts: Facts, settings: Settings, patiently: Patience
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
        patiently(lambda: index.drop(asked.version + BESIDE))
    return RebuildDone(asked.version, asked.at_ms, count, problem, round(1000 * (time.monotonic() - began_s)))


def rebuild(bundle: Bundle, index: Index, rows: Rows, facts: Facts, settings: Settings, patiently: Patience) -> int:
    """Make the collection of a live release anew; its rows. `rows.down` and `facts` are the catalogue.

    Raises BuildFailed when what was made is not right, IndexMissing when there is no collection to be replaced.
    """
    version, batch = bundle.manifest.version, settings.indexer.batch
    mark = patiently(lambda: index.mark_of(version))
    if announced_ms(mark) is None:
        raise BuildFailed(f"the collection of {version} is being made at this moment, or is not announced")
    beside: Any = Beside(index, version)
    own = Rows()
    own.down = rows.down
    own.follow(version)
    for _ in fill(beside, bundle, own, facts, batch=batch, patiently=patiently):
        patiently.check()
    if not patiently(lambda: index.is_alike(version, version + BESIDE)):
        raise BuildFailed(
            "it would be of another form (milvus.index_type), which servers do not expect of this release: the next "
            "release has it"
        )
    verify(beside, bundle, own, expired=set(), least_recall=settings.indexer.least_recall, patiently=patiently)
    for _ in _catch_up(bundle, own, facts, settings):
        patiently.check()
        if write_all(beside, own, facts, [version], batch=batch, patiently=patiently):
            raise BuildFailed(f"Milvus has lost the new collection of {version}")
    patiently(lambda: index.flush(version + BESIDE))
    count = patiently(lambda: index.count(version + BESIDE))
    reached("indexer: rebuilt beside")
    _swap(index, version, mark, patiently)
    return count


def _catch_up(bundle: Bundle, own: Rows, facts: Facts, settings: Settings) -> Iterator[None]:
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


def _swap(index: Index, version: str, mark: str, patiently: Patience) -> None:
    patiently(lambda: index.drop(version + OLD))
    patiently(lambda: index.mark(version, REBUILDING))
    patiently(lambda: _rename(index, version, version + OLD))
    reached("indexer: old name given up")
    patiently(lambda: _rename(index, version + BESIDE, version))
    patiently(lambda: index.load(version))
    patiently(lambda: index.mark(version, mark))
    reached("indexer: rebuilt marked")
    patiently(lambda: index.drop(version + OLD))


def _rename(index: Index, version: str, other: str) -> None:
    """An acknowledgement may have been lost."""
    if version in index.versions():
        index.rename(version, other)


class Beside:
    """The index, with the new collection in the place of the version's own; as far as filling, verifying and writing
    need it."""

    def __init__(self, index: Index, version: str) -> None:
        self._index, self._version = index, version

    def versions(self) -> Sequence[str]:
        return [version.removesuffix(BESIDE) for version in self._index.versions() if version != self._version]

    def __getattr__(self, method: str) -> Any:
        """Every other method, whose first argument is the version."""
        call = getattr(self._index, method)

        def with_name(version: str, *arguments: Any, **options: Any) -> Any:
            assert version == self._version
            return call(version + BESIDE, *arguments, **options)

        return with_name
