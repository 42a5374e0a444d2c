"""A cluster with topics, a Milvus, an indexer in a thread, and what a test does to them."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import threading
from collections.abc import Callable, Iterator, Set
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kafka import KafkaProducer

from indexer.collection import Index
from indexer.errors import IndexFailure, IndexUnavailable
from indexer.process import run_indexer
from indexer.rollout import announced_ms
from infra.platform.kafka_clients import kafka_python_options
from infra.platform.settings import Milvus, Settings
from models.release.bundle import Bundle, read_bundle
from streams import topics
from streams.epochs import claim
from streams.kafka.follow import TopicFollower
from streams.messages import BundlePublished, IndexReady, Item, ItemVector, Release, ServerState, decode, encode
from tests.harness.beside import beside
from tests.harness.system import wait_until, with_section
from tests.unit.serving.worlds import train_small

PATIENCE_S = 60.0


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

    def use_milvus(self, **values: Any) -> None:
        """Change settings of the section `milvus`; before `start`."""
        self.settings = with_section(self.settings, "milvus", **values)
        self.index = Index(self.settings.milvus)

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

    def send(self, topic: str, key: str | bytes, value: bytes | None, *, wait: bool = True, **how: Any) -> None:
        name = self.settings.kafka.topic_prefix + topic
        sent = self._producer.send(name, key=key if isinstance(key, bytes) else key.encode(), value=value, **how)
        if wait:
            sent.get(10)

    def flush(self) -> None:
        """Return when all that was sent is acknowledged."""
        self._producer.flush(10)

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

    def touch(
        self,
        bundle: Bundle,
        item_id: str,
        value: float,
        step: int = 1,
        produced_ms: int = 0,
        *,
        epoch: int = 0,
        wait: bool = True,
    ) -> None:
        vector = np.full(bundle.manifest.dim, value, "<f4").tobytes()
        message = ItemVector(bundle.manifest.version, step, vector, b"", produced_ms, epoch=epoch)
        self.send(topics.ITEM_VECTORS, item_id, encode(message), wait=wait)

    def claim(self, epoch: int) -> None:
        """As a trainer that takes over."""
        for partition in range(self.settings.kafka.partitions):
            self.send(topics.ITEM_VECTORS, *claim(epoch, f"trainer-{epoch}"), partition=partition)

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

    def live(self) -> Bundle:
        """Run an indexer and publish a first bundle; returns when it is announced."""
        self.start()
        bundle = self.publish(1)
        self.wait_for_announcement(bundle)
        return bundle

    def value_of(self, bundle: Bundle, item_id: str) -> float | None:
        """The first number of an item's vector in the index; None when it is not there."""
        found = self.index.vectors(bundle.manifest.version, [item_id])
        return float(found[item_id][1][0]) if item_id in found else None

    def wait(self, true: Callable[[], bool], what: str) -> None:
        wait_until(lambda: bool(self.failures) or true(), what, PATIENCE_S)
        assert not self.failures, self.failures

    def wait_for(self, bundle: Bundle, **values: float | None) -> None:
        """Until the index holds exactly these first numbers for these items (`item_3`)."""
        wanted = {name.replace("_", "-"): value for name, value in values.items()}

        def holds() -> bool:
            with contextlib.suppress(IndexUnavailable):  # a Milvus that was restarted is reached again in a while
                return {i: self.value_of(bundle, i) for i in wanted} == wanted
            return False

        self.wait(holds, f"the index holds {wanted}")


class Crash(RuntimeError):
    """Stands for a process that ends here."""


def crash_in(
    monkeypatch: pytest.MonkeyPatch, name: str, when: Callable[..., bool], *, nth: int = 1, after: bool = False
) -> None:
    """End the process in the `nth` call of this method of Index for which `when` is true, before or `after` it."""
    original, left = getattr(Index, name), itertools.count(nth - 1, -1)

    def call(self: Index, *arguments: Any, **options: Any) -> Any:
        is_last = when(self, *arguments) and next(left) == 0
        answer = None if is_last and not after else original(self, *arguments, **options)
        if is_last:
            raise Crash(name)
        return answer

    monkeypatch.setattr(Index, name, call)


class Searcher:
    """A server that searches a version all the time, while a block runs: how many items it finds at each search, and
    what went wrong."""

    def __init__(self, milvus: Milvus, version: str, query: np.ndarray) -> None:
        self._index, self._version, self._query = Index(milvus), version, query
        self.found: list[int] = []
        self.failures: list[IndexFailure] = []

    @contextlib.contextmanager
    def searching(self) -> Iterator[Searcher]:
        with contextlib.closing(self._index), beside(self._search, "searcher"):
            yield self

    def _search(self, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                [(ids, _)] = self._index.search(self._version, self._query, 100)
                self.found.append(len(ids))
            except IndexFailure as failure:
                self.failures.append(failure)


def first_number(bundle: Bundle, item_id: str) -> float:
    """Of the item's vector in the bundle."""
    return float(bundle.model.item_vectors()[bundle.model.item_ids.index(item_id), 0])


def assert_same(index: Index, bundle: Bundle, but: Set[str] = frozenset()) -> None:
    found = index.vectors(bundle.manifest.version, bundle.model.item_ids)
    for item_id, vector in zip(bundle.model.item_ids, bundle.model.item_vectors(), strict=True):
        if item_id not in but:
            np.testing.assert_array_equal(found[item_id][1], vector)
