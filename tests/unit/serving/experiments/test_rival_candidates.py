"""A release with candidates of its own beside the live one: when it is compared, and what it learns meanwhile."""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kafka import KafkaProducer
from msgspec import structs

from infra.platform.kafka_clients import kafka_python_options
from infra.platform.settings import Kafka, Settings
from models.release.bundle import Manifest
from serving.experiments import rivals
from serving.experiments.rival_candidates import load_beside
from serving.state.feed import Feed
from serving.state.mirror import bytes_of_item
from serving.state.release import LiveRelease, ReleaseError
from serving.state.views import CatalogueView
from streams import topics
from streams.bundles.source import BundleSource
from streams.epochs import claim
from streams.messages import Item, ItemVector, encode
from tests.unit.serving.experiments.test_rivals import Server, info, is_gone, unserved
from tests.unit.serving.worlds import CREATED_MS, ITEMS, ExactIndex, load, until

PROGRESS_KEY = b""


class Trainer:
    """What the trainer writes to `rival-vectors`."""

    def __init__(self, kafka: Kafka) -> None:
        self._kafka = kafka
        self._producer = KafkaProducer(**kafka_python_options(kafka))
        self.close = self._producer.close

    def send(self, key: bytes, value: bytes | None, at_ms: int | None = None) -> None:
        place = topics.partition_of(key.decode(errors="replace"), self._kafka.partitions)
        topic = self._kafka.topic_prefix + topics.RIVAL_VECTORS
        self._producer.send(topic, value, key=key, partition=place, timestamp_ms=at_ms).get(10)

    def begin(self, version: str) -> None:
        """Say that it has begun to teach this release."""
        self.send(PROGRESS_KEY, encode(ItemVector(version, 0, b"", b"", 0, b"", 1)))

    def teach(self, manifest: Manifest, item_id: str, value: float, epoch: int = 1) -> None:
        vector = np.full(manifest.dim, value, "<f4")
        row = ItemVector(manifest.version, 1, vector.tobytes(), vector[1:].tobytes(), 0, b"", epoch)
        self.send(item_id.encode(), encode(row))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "RETRY_S", 0.02)


@pytest.fixture
def kafka_of_topics(kafka_settings: Settings) -> Kafka:
    topics.create_topics(kafka_settings.kafka)
    return kafka_settings.kafka


@pytest.fixture
def trainer(kafka_of_topics: Kafka) -> Iterator[Trainer]:
    with contextlib.closing(Trainer(kafka_of_topics)) as trainer:
        yield trainer


@pytest.fixture
def server(
    bundles_dir: Path, bundles: Sequence[Manifest], index: ExactIndex, kafka_of_topics: Kafka
) -> Iterator[Server]:
    """The first release is live; the second one is to be compared."""
    server = Server(bundles_dir, index, kafka_of_topics)
    with contextlib.closing(server.releases), contextlib.closing(server.rivals):
        server.go_live(bundles[0].version)
        server.compare(bundles[0].version, bundles[1].version, beside=bundles[1].version)
        yield server


def found(server: Server, version: str) -> list[str]:
    """The items of that release for a vector of ones, best first."""
    mirror = server.live.rivals[version].mirror
    assert mirror is not None
    [(item_ids, _)] = mirror.search(np.ones((1, mirror.dim), np.float32), len(ITEMS))
    return item_ids


def test_it_is_compared_once_the_trainer_teaches_it(server: Server, trainer: Trainer, bundles: Sequence[Manifest]):
    """Else its rows would stand still while the live one's learn."""
    other = bundles[1].version
    until(lambda: bool(server.look()) and "has not begun to teach" in server.rivals.refusal)
    assert server.variants() == {""} and not server.live.rivals and unserved() == 1
    trainer.begin(bundles[0].version)  # of an experiment of before
    trainer.begin(other)
    server.until_served(other)
    assert server.variants() == {"v0", "v1"} and unserved() == 0 and info(other) == 1 and server.rivals.refusal == ""


def test_that_it_was_taught_for_an_experiment_of_before_does_not_count(
    server: Server, trainer: Trainer, bundles: Sequence[Manifest]
):
    other, began_ms = bundles[1].version, time.time_ns() // 1_000_000
    server.compare(bundles[0].version, other, beside=other, stopped_ms=5)
    trainer.send(PROGRESS_KEY, encode(ItemVector(other, 0, b"", b"", 0, b"", 1)), at_ms=began_ms - 3_600_000)
    server.compare(bundles[0].version, other, name="two", beside=other, started_ms=began_ms)
    until(lambda: bool(server.look()) and "has not begun to teach" in server.rivals.refusal)
    assert server.variants() == {""}
    trainer.begin(other)
    server.until_served(other)


def test_a_missing_topic_is_waited_for_before_anything_is_read(
    bundles_dir: Path, bundles: Sequence[Manifest], index: ExactIndex, kafka_settings: Settings
):
    server = Server(bundles_dir, index, kafka_settings.kafka)
    with contextlib.closing(server.releases), contextlib.closing(server.rivals):
        server.go_live(bundles[0].version)
        server.compare(bundles[0].version, bundles[1].version, beside=bundles[1].version)
        until(lambda: bool(server.look()) and "nextwatch topics --create" in server.rivals.refusal)
        topics.create_topics(kafka_settings.kafka)
        with contextlib.closing(Trainer(kafka_settings.kafka)) as trainer:
            trainer.begin(bundles[1].version)
        server.until_served(bundles[1].version)


def test_all_of_it_is_its_own(
    server: Server, trainer: Trainer, bundles: Sequence[Manifest], bundles_dir: Path, index: ExactIndex
):
    trainer.begin(bundles[1].version)
    index.collections.pop(bundles[1].version)  # a collection is made of what is announced
    server.until_served(bundles[1].version)
    live, beside = server.live, server.live.with_candidates(bundles[1].version)
    assert beside.version == beside.ranker_version == bundles[1].version and beside.is_beside and not live.is_beside
    assert beside is server.live.with_ranker(bundles[1].version) and live.with_candidates(live.version) is live
    theirs = load(bundles_dir, bundles[1])
    np.testing.assert_equal(beside.ranker.to_arrays(), theirs.ranker.to_arrays())
    np.testing.assert_allclose(beside.model.item_vectors(), theirs.model.item_vectors())
    assert beside.catalogue is not live.catalogue and beside.mirror is not live.mirror


def test_rows_that_the_trainer_publishes_are_its_rows_and_no_others(
    server: Server, trainer: Trainer, bundles: Sequence[Manifest]
):
    first, second, third, *_ = ITEMS
    trainer.teach(bundles[1], first, 50.0)
    trainer.teach(bundles[0], second, 90.0)  # another release's
    trainer.begin(bundles[1].version)
    server.until_served(bundles[1].version)
    assert found(server, bundles[1].version)[0] == first
    trainer.teach(bundles[1], third, 70.0)
    until(lambda: bool(server.look()) and found(server, bundles[1].version)[:2] == [third, first])
    assert server.live.mirror is not None
    assert float(np.abs(server.live.mirror.vectors(server.live.mirror.rows([first, second, third]))).max()) < 40
    trainer.send(third.encode(), None, at_ms=CREATED_MS + 1_000_000)
    until(lambda: bool(server.look()) and third not in found(server, bundles[1].version))


def test_rows_of_a_trainer_that_was_replaced_do_not_count(
    server: Server, trainer: Trainer, bundles: Sequence[Manifest], kafka_of_topics: Kafka
):
    stale = ITEMS[0]
    place = topics.partition_of(stale, kafka_of_topics.partitions)
    key, value = claim(2, "trainer-2")
    topic = kafka_of_topics.topic_prefix + topics.RIVAL_VECTORS
    trainer._producer.send(topic, value, key=key, partition=place).get(10)
    trainer.teach(bundles[1], stale, 50.0, epoch=1)
    trainer.begin(bundles[1].version)
    server.until_served(bundles[1].version)
    assert found(server, bundles[1].version)[0] != stale


def test_what_the_catalogue_says_while_it_is_loaded_and_later_is_so_for_it(
    server: Server, trainer: Trainer, bundles: Sequence[Manifest], monkeypatch: pytest.MonkeyPatch
):
    may_go_on, load_one = threading.Event(), rivals.load_beside

    def slowly(*args: object, **more: object) -> LiveRelease:
        release = load_one(*args, **more)  # type: ignore[arg-type]
        assert may_go_on.wait(10)
        return release

    monkeypatch.setattr(rivals, "load_beside", slowly)
    other = bundles[1].version

    def hear(item: Item) -> None:
        server.catalogue.apply(item.item_id.encode(), encode(item))
        server.releases.apply_item(item.item_id)
        server.rivals.apply_item(item.item_id)

    trainer.begin(other)
    server.look()
    hear(Item(ITEMS[1], duration_s=7.0))
    hear(Item(ITEMS[2], available=False))
    may_go_on.set()
    server.until_served(other)
    catalogue = server.live.rivals[other].catalogue
    assert catalogue.duration_s(catalogue.rows([ITEMS[1]])) == [7.0] and ITEMS[2] not in found(server, other)
    hear(Item(ITEMS[3], available=False))
    server.look()
    assert ITEMS[3] not in found(server, other) and ITEMS[4] in found(server, other)


def test_when_its_rows_cannot_be_read_all_are_served_by_the_live_one_until_they_can(
    server: Server, trainer: Trainer, bundles: Sequence[Manifest], monkeypatch: pytest.MonkeyPatch
):
    other, take = bundles[1].version, Feed.take
    trainer.begin(other)
    server.until_served(other)
    before = server.live.rivals[other]

    def fail(feed: Feed, most: int) -> list[object]:
        raise ConnectionError("the reader died")

    monkeypatch.setattr(Feed, "take", fail)
    server.look()
    assert server.variants() == {""} and not server.live.rivals and "the reader died" in server.rivals.refusal
    monkeypatch.setattr(Feed, "take", take)
    server.until_served(other)
    assert server.live.rivals[other] is not before and server.variants() == {"v0", "v1"}


def test_with_the_experiment_it_goes(server: Server, trainer: Trainer, bundles: Sequence[Manifest]):
    other = bundles[1].version
    trainer.begin(other)
    server.until_served(other)
    gone = weakref.ref(server.live.rivals[other].model)
    server.compare(server.live.version, other, beside=other, stopped_ms=5)
    server.look()
    assert not server.live.rivals and server.variants() == {""} and unserved() == 0
    until(lambda: not any(thread.name.startswith("feed-rival") for thread in threading.enumerate()))
    until(lambda: is_gone(gone))


def test_an_experiment_of_a_release_that_has_gone_live_is_not_served(
    server: Server, trainer: Trainer, bundles: Sequence[Manifest]
):
    """The control would have to stand beside it, with candidates of its own."""
    trainer.begin(bundles[1].version)
    server.until_served(bundles[1].version)
    server.go_live(bundles[1].version)
    until(lambda: bool(server.look()) and "one such release at a time" in server.rivals.refusal)
    assert server.variants() == {""} and not server.live.rivals


Refuse = Callable[[LiveRelease], LiveRelease]


def of_another_cap(live: LiveRelease) -> LiveRelease:
    assert live.manifest is not None and live.manifest.ranker is not None
    ranker = structs.replace(live.manifest.ranker, cap_s=90.5)
    return replace(live, manifest=structs.replace(live.manifest, ranker=ranker))


@pytest.mark.parametrize(
    ("most", "live_is", "why"),
    [
        (38, replace, r"39 items, serving\.mirror_items allows 38: raise it"),
        (0, replace, r"39 items, serving\.mirror_items allows 0: raise it"),
        (None, of_another_cap, r"which is live, 90\.5 s"),
    ],
    ids=["too many items", "no mirrors", "another cap"],
)
def test_what_cannot_be_served_beside_the_live_one_is_refused(
    most: int | None, live_is: Refuse, why: str, live: LiveRelease, bundles: Sequence[Manifest], bundles_dir: Path
):
    with pytest.raises(ReleaseError, match=why):
        load_beside(BundleSource(bundles_dir), bundles[1].version, live_is(live), CatalogueView(), mirror_items=most)


def test_what_does_not_fit_into_memory_is_refused(
    live: LiveRelease, bundles: Sequence[Manifest], bundles_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    room = 39 * 3 * (bytes_of_item(bundles[1].dim) + 4 * bundles[1].dim + 200)
    monkeypatch.setattr("serving.experiments.rival_candidates.free_bytes", lambda: room)
    load_beside(BundleSource(bundles_dir), bundles[1].version, live, CatalogueView())
    with pytest.raises(ReleaseError, match="19 fit into a third of what is free: give the server more memory"):
        load_beside(BundleSource(bundles_dir), bundles[1].version, live, CatalogueView(), processes=2)


def test_a_ranker_of_the_live_ones_candidates_is_compared_beside_it(
    server: Server, trainer: Trainer, bundles: Sequence[Manifest], rival: Manifest
):
    trainer.begin(bundles[1].version)
    server.compare(bundles[0].version, bundles[1].version, beside=bundles[1].version, stopped_ms=5)
    server.compare(bundles[0].version, bundles[1].version, rival.version, name="three", beside=bundles[1].version)
    server.until_served(bundles[1].version, rival.version)
    assert server.variants() == {"v0", "v1", "v2"}
    assert server.live.with_candidates(rival.version) is server.live
    assert server.live.with_ranker(rival.version).model is server.live.model
