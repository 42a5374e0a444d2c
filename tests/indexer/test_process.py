"""The indexer process against a real broker (each kind) and a real Milvus Lite server."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kafka import KafkaProducer

from indexer.collection import Index
from indexer.handover import WHOLE, announced_ms
from indexer.process import run_indexer
from infra import metrics
from infra.health import fetch_health
from infra.kafka_clients import kafka_python_options
from infra.milvus_server import start_milvus
from infra.run_files import read_run_files
from infra.settings import Milvus, Settings
from models.bundle import Bundle, read_bundle
from streams import topics
from streams.follow import TopicFollower
from streams.messages import (
    BundlePublished,
    DeadLetter,
    IndexReady,
    Item,
    ItemVector,
    Release,
    ServerState,
    decode,
    encode,
)
from tests.conftest import milvus_answers
from tests.serving.worlds import train_small
from tests.system import cli, process, wait_until, with_section

pytestmark = pytest.mark.system

PATIENCE_S = 20.0


class Trained:
    """Small bundles, each trained once for all tests."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._bundles: dict[int, Bundle] = {}

    def __call__(self, seed: int) -> Bundle:
        if seed not in self._bundles:
            version = train_small(self.directory, seed).version
            self._bundles[seed] = read_bundle(self.directory / version)
        return self._bundles[seed]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("bundles"))


class Site:
    """A cluster with topics, a Milvus without collections, and what a test does to them."""

    def __init__(self, settings: Settings, trained: Trained) -> None:
        self._trained = trained
        self.settings = with_section(settings, "indexer", window_s=0.05, batch=16)
        self.index = Index(settings.milvus)
        for version in self.index.versions():
            self.index.drop(version)
        topics.create_topics(settings.kafka)
        self._producer = KafkaProducer(**kafka_python_options(settings.kafka))
        self._running: list[tuple[threading.Thread, threading.Event]] = []
        self.failures: list[BaseException] = []

    def start(self) -> threading.Event:
        """Run an indexer; the returned event stops it."""
        stop = threading.Event()
        thread = threading.Thread(target=self._run, args=(stop,), daemon=True)
        thread.start()
        self._running.append((thread, stop))
        return stop

    def _run(self, stop: threading.Event) -> None:
        try:
            run_indexer(self.settings, stop)
        except RuntimeError as error:
            self.failures.append(error)

    def stop(self) -> None:
        for _, stop in self._running:
            stop.set()
        for thread, _ in self._running:
            thread.join(15)
            assert not thread.is_alive(), "the indexer did not stop"
        self._running.clear()

    def close(self) -> None:
        self.stop()
        self._producer.close()
        self.index.close()

    def send(self, topic: str, key: str, value: bytes | None) -> None:
        name = self.settings.kafka.topic_prefix + topic
        self._producer.send(name, key=key.encode(), value=value).get(10)

    def publish(self, seed: int) -> Bundle:
        """Announce a bundle; each seed is another version, later seeds are newer."""
        bundle = self._trained(seed)
        manifest, directory = bundle.manifest, self.settings.bundles_dir / bundle.manifest.version
        if not directory.exists():
            shutil.copytree(self._trained.directory / manifest.version, directory)
        message = BundlePublished(
            manifest.version, manifest.created_ms, manifest.dim, manifest.items, manifest.schema_hash
        )
        self.send(topics.RELEASES, "bundle", encode(message))
        return bundle

    def touch(self, bundle: Bundle, item_id: str, value: float, step: int = 1, produced_ms: int = 0) -> None:
        vector = np.full(bundle.manifest.dim, value, "<f4").tobytes()
        message = ItemVector(bundle.manifest.version, step, vector, b"", produced_ms)
        self.send(topics.ITEM_VECTORS, item_id, encode(message))

    def take_down(self, item_id: str) -> None:
        self.send(topics.ITEMS, item_id, encode(Item(item_id, available=False)))

    def bring_back(self, item_id: str) -> None:
        self.send(topics.ITEMS, item_id, encode(Item(item_id)))

    def serve(self, server_id: str, bundle: Bundle) -> None:
        state = ServerState(server_id, bundle.manifest.version, 0)
        self.send(topics.RELEASES, f"server/{server_id}", encode(state))

    def read(self, topic: str) -> list[bytes | None]:
        with TopicFollower(self.settings.kafka, topic) as follower:
            records = []
            while not follower.caught_up:
                records += follower.poll(0.2)
        return [record.value for record in records]

    def announcements(self) -> list[IndexReady]:
        release: Any = Release
        messages = [decode(release, value) for value in self.read(topics.RELEASES) if value]
        return [message for message in messages if isinstance(message, IndexReady)]

    def wait_for_announcement(self, bundle: Bundle) -> IndexReady:
        version = bundle.manifest.version
        self.wait(lambda: version in {ready.version for ready in self.announcements()}, f"{version} is announced")
        self.wait(lambda: announced_ms(self.index.mark_of(version)) is not None, f"{version} is marked announced")
        return next(ready for ready in self.announcements() if ready.version == version)

    def value_of(self, bundle: Bundle, item_id: str) -> float | None:
        """The first number of an item's vector in the index; None when it is not there."""
        found = self.index.vectors(bundle.manifest.version, [item_id])
        return float(found[item_id][1][0]) if item_id in found else None

    def wait(self, true: Callable[[], bool], what: str) -> None:
        wait_until(true, what, PATIENCE_S)
        assert not self.failures, self.failures

    def wait_for(self, bundle: Bundle, **values: float | None) -> None:
        """Until the index holds exactly these first numbers for these items (`item_3`)."""
        wanted = {name.replace("_", "-"): value for name, value in values.items()}
        self.wait(lambda: {i: self.value_of(bundle, i) for i in wanted} == wanted, f"the index holds {wanted}")


@pytest.fixture
def site(settings: Settings, trained: Trained) -> Iterator[Site]:
    site = Site(settings, trained)
    yield site
    site.close()


def first_number(bundle: Bundle, item_id: str) -> float:
    """Of the item's vector in the bundle."""
    return float(bundle.model.item_vectors()[bundle.model.item_ids.index(item_id), 0])


def assert_same(index: Index, bundle: Bundle, but: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    found = index.vectors(bundle.manifest.version, bundle.model.item_ids)
    for item_id, vector in zip(bundle.model.item_ids, bundle.model.item_vectors(), strict=True):
        if item_id not in but:
            np.testing.assert_array_equal(found[item_id][1], vector)


def test_the_first_bundle_is_indexed_and_announced_when_it_comes(site: Site) -> None:
    site.start()
    site.wait(lambda: bool(read_run_files(site.settings.run_dir)), "the indexer runs")
    bundle = site.publish(1)
    ready = site.wait_for_announcement(bundle)
    assert ready.collection == f"items_{bundle.manifest.version}"
    assert ready.items == bundle.manifest.items == site.index.count(bundle.manifest.version)
    assert_same(site.index, bundle)
    user = np.ones((1, bundle.manifest.dim), np.float32)
    [(item_ids, _)] = site.index.search(bundle.manifest.version, user, 10)
    best = np.argsort(-(bundle.model.item_vectors() @ user[0]))[:10]
    assert item_ids == [bundle.model.item_ids[row] for row in best]


def test_a_touched_row_replaces_the_bundles_and_the_newest_step_wins(site: Site) -> None:
    site.start()
    bundle = site.publish(1)
    site.wait_for_announcement(bundle)
    upserted, seen = metrics.UPSERTED._value.get(), delays_seen()
    for step in (1, 2, 3):
        site.touch(bundle, "item-3", value=step, step=step, produced_ms=int(time.time() * 1000))
    site.touch(bundle, "brand-new", value=9, step=3)
    site.wait_for(bundle, item_3=3.0, brand_new=9.0)
    assert_same(site.index, bundle, but={"item-3"})
    assert metrics.UPSERTED._value.get() - upserted >= 2
    assert delays_seen() > seen


def test_rows_that_lay_in_the_topic_before_the_release_was_indexed_are_in_it_when_it_is_announced(site: Site) -> None:
    bundle = site.publish(1)
    site.touch(bundle, "item-3", value=3)
    site.touch(bundle, "brand-new", value=9)
    site.start()
    ready = site.wait_for_announcement(bundle)
    assert site.value_of(bundle, "item-3") == 3.0
    assert ready.items == bundle.manifest.items + 1


def test_an_item_taken_down_is_gone_also_when_a_stale_vector_comes_and_its_return_brings_the_newest(site: Site) -> None:
    site.start()
    bundle = site.publish(1)
    site.wait_for_announcement(bundle)
    kept = site.value_of(bundle, "item-4")
    site.take_down("item-3")
    site.take_down("item-4")
    site.wait_for(bundle, item_3=None, item_4=None)
    site.touch(bundle, "item-3", value=7)
    site.touch(bundle, "item-5", value=8)
    site.wait_for(bundle, item_5=8.0, item_3=None)
    site.bring_back("item-3")
    site.bring_back("item-4")
    site.wait_for(bundle, item_3=7.0, item_4=kept)


def test_an_item_that_was_down_before_a_release_is_not_in_it_until_it_returns(site: Site) -> None:
    site.send(topics.ITEMS, "item-3", None)
    bundle = site.publish(1)
    site.start()
    ready = site.wait_for_announcement(bundle)
    assert ready.items == bundle.manifest.items - 1
    assert site.value_of(bundle, "item-3") is None
    site.bring_back("item-3")
    site.wait_for(bundle, item_3=first_number(bundle, "item-3"))


def test_a_restart_goes_on_where_it_was_and_knows_what_is_down(site: Site) -> None:
    site.start()
    bundle = site.publish(1)
    site.wait_for_announcement(bundle)
    site.touch(bundle, "item-3", value=3, step=1)
    site.touch(bundle, "item-4", value=4, step=1)
    site.wait_for(bundle, item_3=3.0, item_4=4.0)
    site.take_down("item-3")
    site.take_down("item-6")
    site.wait_for(bundle, item_3=None, item_6=None)
    site.stop()
    site.take_down("item-5")
    site.touch(bundle, "item-4", value=44, step=2)
    site.start()
    site.wait_for(bundle, item_3=None, item_4=44.0, item_5=None)
    for item_id in ("item-3", "item-5", "item-6"):
        site.bring_back(item_id)
    site.wait_for(bundle, item_3=3.0, item_5=first_number(bundle, "item-5"), item_6=first_number(bundle, "item-6"))
    assert len(site.announcements()) == 1


def test_the_spare_is_kept_and_what_no_living_server_serves_is_dropped(site: Site) -> None:
    site.settings = with_section(site.settings, "indexer", server_timeout_s=1.0)
    site.start()
    bundles = []
    for seed in (1, 2, 3):
        bundles.append(site.publish(seed))
        site.wait_for_announcement(bundles[-1])
        if seed == 1:
            site.serve("slow", bundles[0])
    versions = [bundle.manifest.version for bundle in bundles]
    time.sleep(2.5)  # longer than server_timeout_s; nobody else was heard, so nobody is dead
    assert site.index.versions() == versions
    site.serve("other", bundles[2])
    time.sleep(1.5)
    site.serve("other", bundles[2])
    site.wait(lambda: site.index.versions() == versions[1:], "the first collection is dropped")


def test_live_rows_go_on_while_the_next_release_is_built(site: Site) -> None:
    site.start()
    first = site.publish(1)
    site.wait_for_announcement(first)
    second = site.publish(2)
    site.touch(first, "item-3", value=3)
    site.touch(second, "item-4", value=4)
    site.wait_for(first, item_3=3.0)
    site.wait_for_announcement(second)
    site.wait_for(second, item_4=4.0)
    assert_same(site.index, second, but={"item-4"})


def test_a_half_full_collection_is_dropped_and_made_again(site: Site) -> None:
    bundle = site.publish(1)
    version = bundle.manifest.version
    site.index.create(version, bundle.manifest.dim)
    site.index.upsert(version, ["leftover"], np.ones((1, bundle.manifest.dim), np.float32), [5])
    site.start()
    site.wait_for_announcement(bundle)
    assert site.value_of(bundle, "leftover") is None
    assert_same(site.index, bundle)


class Crash(RuntimeError):
    """Stands for a process that ends here."""


@pytest.mark.parametrize("last_call", ["second upsert", "mark whole", "mark announced", "before mark whole"])
def test_a_crash_at_any_point_of_a_build_leads_to_the_same_index(
    site: Site, monkeypatch: pytest.MonkeyPatch, last_call: str
) -> None:
    calls: list[str] = []

    def crash_in(name: str, when: Callable[..., bool], after: bool) -> None:
        original = getattr(Index, name)

        def call(self: Index, *arguments: Any) -> Any:
            calls.append(name)
            if not when(*arguments):
                return original(self, *arguments)
            if after:
                original(self, *arguments)
            raise Crash(last_call)

        monkeypatch.setattr(Index, name, call)

    bundle = site.publish(1)
    site.touch(bundle, "item-3", value=3)
    match last_call:
        case "second upsert":
            crash_in("upsert", lambda *_: calls.count("upsert") == 2, after=True)
        case "mark whole":
            crash_in("mark", lambda _, mark: mark == WHOLE, after=True)
        case "before mark whole":
            crash_in("mark", lambda _, mark: mark == WHOLE, after=False)
        case "mark announced":
            crash_in("mark", lambda _, mark: mark != WHOLE, after=False)
    site.start()
    wait_until(lambda: bool(site.failures), "the crash", PATIENCE_S)
    assert isinstance(site.failures.pop(), Crash)
    monkeypatch.undo()
    site.start()
    site.wait_for_announcement(bundle)
    site.wait_for(bundle, item_3=3.0)
    assert_same(site.index, bundle, but={"item-3"})
    assert site.index.count(bundle.manifest.version) == bundle.manifest.items


def test_bad_messages_go_to_the_dead_letters_once_and_the_others_go_on(site: Site) -> None:
    bundle = site.publish(1)
    site.start()
    site.wait_for_announcement(bundle)
    site.send(topics.ITEM_VECTORS, "item-1", b"\xc1")
    site.touch(bundle, "item-2", value=float("nan"))
    site.send(topics.ITEMS, "item-1", b'{"item_id": 5}')
    site.send(topics.RELEASES, "bundle", b"{}")
    site.touch(bundle, "item-3", value=3)
    site.wait_for(bundle, item_3=3.0)
    site.wait(lambda: len(site.read(topics.DEAD_LETTERS)) == 4, "dead letters")
    letters = [decode(DeadLetter, value) for value in site.read(topics.DEAD_LETTERS)]
    assert {(letter.topic, letter.code) for letter in letters} == {
        (topics.ITEM_VECTORS, "malformed"),
        (topics.ITEM_VECTORS, "invalid"),
        (topics.ITEMS, "invalid"),
        (topics.RELEASES, "invalid"),
    }
    site.stop()
    site.start()
    site.touch(bundle, "item-3", value=4)
    site.wait_for(bundle, item_3=4.0)
    assert len(site.read(topics.DEAD_LETTERS)) == 4


def test_a_bundle_that_cannot_be_read_does_not_stop_the_live_one(site: Site) -> None:
    site.start()
    bundle = site.publish(1)
    site.wait_for_announcement(bundle)
    site.send(topics.RELEASES, "bundle", encode(BundlePublished("20300101_000000_abcdef", 0, 9, 1, "x")))
    site.touch(bundle, "item-3", value=3)
    site.wait_for(bundle, item_3=3.0)
    newer = site.publish(2)
    site.wait_for_announcement(newer)


def test_only_one_of_two_indexers_writes_and_the_other_takes_over(site: Site) -> None:
    first_stop = site.start()
    bundle = site.publish(1)
    site.wait_for_announcement(bundle)
    site.start()
    site.wait(lambda: len(read_run_files(site.settings.run_dir)) == 2, "the second one runs")
    site.touch(bundle, "item-3", value=3)
    site.wait_for(bundle, item_3=3.0)
    first_stop.set()
    site.touch(bundle, "item-3", value=4)
    site.wait_for(bundle, item_3=4.0)
    assert len(site.announcements()) == 1


def test_rows_wait_in_order_while_milvus_is_away(kafka_settings: Settings, trained: Trained) -> None:
    own = start_milvus(kafka_settings, probe=milvus_answers)
    site = Site(kafka_settings.model_copy(update={"milvus": Milvus(uri=own.uri, timeout_s=2)}), trained)
    try:
        site.start()
        bundle = site.publish(1)
        site.wait_for_announcement(bundle)
        own.child.kill()
        for step in (1, 2, 3):
            site.touch(bundle, "item-3", value=step, step=step)
        site.take_down("item-4")
        [record] = read_run_files(site.settings.run_dir)
        site.wait(lambda: not fetch_health(record)["ready"], "/health says not ready")
        assert "Milvus" in fetch_health(record)["reasons"][0]
        assert metrics.INDEX_RETRIES.labels("milvus")._value.get() > 0
        own.restart()
        wait_until(site.index.is_ready, "Milvus answers again", PATIENCE_S)
        site.wait_for(bundle, item_3=3.0, item_4=None)
        site.wait(lambda: fetch_health(record)["ready"], "/health says ready")
    finally:
        site.close()
        own.child.stop()


def delays_seen() -> float:
    return float(metrics.EVENT_TO_VECTOR._sum.get())


def test_a_killed_indexer_loses_no_row(site: Site) -> None:
    site.settings = with_section(site.settings, "kafka", session_timeout_s=6.0)
    bundle = site.publish(1)
    with process(site.settings, "indexer", cli("indexer")) as child:
        site.wait_for_announcement(bundle)
        for number in range(60):
            site.touch(bundle, f"new-{number}", value=number, step=number)
            if number == 30:
                child.kill()
    items = [f"new-{number}" for number in range(60)]
    with process(site.settings, "indexer-again", cli("indexer")):
        site.wait(lambda: len(site.index.vectors(bundle.manifest.version, items)) == 60, "all rows")
    assert [site.value_of(bundle, item_id) for item_id in items] == list(range(60))


@pytest.mark.parametrize("fault", ["a row is lost", "a row is foreign", "a vector is another"])
def test_a_collection_that_does_not_hold_its_bundle_is_never_announced(
    site: Site, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    original, faulty, bundle = Index.upsert, 2, site.publish(1)

    def upsert(self: Index, version: str, item_ids: list[str], vectors: np.ndarray, steps: list[int]) -> None:
        nonlocal faulty
        if faulty and item_ids[0] == bundle.model.item_ids[0]:
            faulty -= 1
            if fault == "a row is lost":
                item_ids, vectors, steps = item_ids[1:], vectors[1:], steps[1:]
            elif fault == "a row is foreign":
                item_ids, vectors, steps = [*item_ids, "foreign"], vectors[[*range(len(vectors)), 0]], [*steps, 0]
            else:
                vectors = vectors + 1
        original(self, version, item_ids, vectors, steps)

    monkeypatch.setattr(Index, "upsert", upsert)
    monkeypatch.setattr("indexer.releasing.RETRY_S", 0.2)
    site.start()
    site.wait_for_announcement(bundle)
    assert faulty == 0
    assert len(site.announcements()) == 1
    assert_same(site.index, bundle)
