"""The serving process: requests in, replies and impressions out, for the users of the partitions that it owns.

One thread answers. It applies what the feeds have read (histories, catalogue, trending, releases, item vectors), takes
over a release that has been loaded, and answers what has arrived, together. Nothing is answered before all that every
partition shares has been read to the end, so that no item that was taken down comes back with a restart.

The order of effects of a batch: replies, impressions and dead letters are sent; when all of them are acknowledged, the
offsets are committed (see serving.ledger). A bug that a request shows goes with it to the dead letters, its client is
told, and then the process stops loudly.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Sequence
from functools import partial
from typing import Any

import structlog
import torch
from kafka import OffsetAndMetadata, TopicPartition
from kafka.errors import KafkaError, RetriableError

from indexer.collection import Index
from infra import metrics
from infra.health import Health, serve_health
from infra.settings import Settings
from serving.breaker import Breaker
from serving.desk import Desk
from serving.feed import Feed
from serving.outbox import Outbox
from serving.partitions import Partitions
from serving.pipeline import Views, answer
from serving.ranking import Pace
from serving.release import Releases
from serving.reply_topics import ReplyTopics
from serving.views import CatalogueView, HistoryView, StatisticsView, TrendingView
from streams import topics
from streams.messages import ServerState, encode

log = structlog.get_logger(__name__)

GROUP = "serving"
SHARED = (topics.ITEMS, topics.TRENDING, topics.RELEASES, topics.ITEM_VECTORS, topics.ITEM_STATISTICS)
RECORDED = (topics.ITEMS, topics.ITEM_STATISTICS)  # of them an impression says how far they had been read
MOST_APPLIED = 5000  # records applied to the views between two batches
COMMIT_EVERY_S = 0.1
REPORT_EVERY_S = 1.0
CLOSE_S = 10.0


def run_serving(settings: Settings, stop: threading.Event) -> None:
    """Answer requests until `stop` is set.

    Raises TopicMissing, ServiceError (the metrics port is taken) and KafkaError (no broker) at the start.
    """
    torch.set_num_threads(settings.serving.threads)
    health = Health("serving", waiting_for="Kafka")
    with serve_health(health, settings, started_ms=_now_ms()):
        worker = Worker(settings, health)
        try:
            while not stop.is_set():
                worker.step()
            worker.leave()
        finally:
            worker.close()


class Worker:
    """The answering thread's state; `step` is one round of its loop."""

    def __init__(self, settings: Settings, health: Health) -> None:
        kafka = settings.kafka
        self.server_id = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._settings, self._health = settings, health
        statistics = StatisticsView(kafka.partitions, settings.join.half_life_h)
        self._views = Views(HistoryView(), CatalogueView(), TrendingView(), statistics)
        self._index = Index(settings.milvus)
        self._releases = Releases(settings.bundles_dir, self._index, self._views.catalogue)
        self._breaker, self._pace = Breaker(), Pace()
        self._shared = Feed(kafka, *SHARED)
        self._histories = Feed(kafka, topics.USER_HISTORIES, partitions=())
        self._outbox = Outbox(kafka)
        self._partitions = Partitions(kafka, GROUP, self._histories, self._views.histories, self._views.marks)
        self._consumer = self._partitions.consumer
        self._desk = Desk(settings, self._outbox, ReplyTopics(self._consumer), self.server_id)
        self._is_primed = False  # everything shared was read to the end once
        self._answered: dict[TopicPartition, int] = {}  # the offset after the last request that was handled
        self._due: dict[TopicPartition, int] = {}  # acknowledged, not yet committed
        self._commit_at = self._report_at = self._heartbeat_at = 0.0
        self._told: str | None = None  # the version of the last heartbeat

    def step(self) -> None:
        """Apply, take over, answer, commit, report."""
        if self._partitions.take_over():
            self._forget_lost()
        self._apply()
        try:
            records = self._partitions.poll(self._settings.serving.batch)
        except RetriableError as error:
            log.warning("broker unavailable, trying again", error=str(error))
            time.sleep(0.5)
            return
        if records:
            started = time.perf_counter()
            self._apply()
            self._handle(records, started)
        self._commit()
        self._report()

    def leave(self) -> None:
        """Finish what is under way and say goodbye; nothing that was answered is answered again by the next owner."""
        try:
            self._outbox.send(topics.RELEASES, None, key=self._heartbeat_key)
            self._outbox.seal({})
            self._outbox.flush(CLOSE_S)
            self._due |= self._outbox.ledger.acknowledged()
            if self._due:
                self._consumer.commit(_commits(self._due), timeout_ms=int(CLOSE_S * 1000))
        except KafkaError as error:  # brokers that are gone before us must not keep us from ending
            log.warning("left without a goodbye: the newest requests may be answered again", error=str(error))

    def close(self) -> None:
        self._health.ready = False
        for part in (self._shared, self._histories, self._releases, self._outbox):
            part.close()
        self._consumer.close(autocommit=False, timeout_ms=int(CLOSE_S * 1000))
        self._index.close()

    def _apply(self) -> None:
        """Bring the views up to what the feeds have read."""
        for chunk in self._shared.take(MOST_APPLIED):
            for record in chunk.records:
                self._apply_shared(record)
            self._is_primed |= chunk.complete
        for chunk in self._histories.take(MOST_APPLIED):
            self._partitions.apply(chunk)
        self._releases.refresh()
        if self._is_primed and self._releases.settled:
            self._partitions.resume()

    def _apply_shared(self, record: Any) -> None:
        topic = record.topic.removeprefix(self._settings.kafka.topic_prefix)
        metrics.RECEIVED.labels(topic).inc()
        if topic in RECORDED:
            self._views.marks.read(topic, record.partition, record.offset)
        if topic == topics.ITEMS:
            item_id = self._views.catalogue.apply(record.key, record.value)
            if item_id is not None:
                self._releases.apply_item(item_id)
        elif topic == topics.TRENDING:
            self._views.trending.apply(record.key, record.value)
        elif topic == topics.ITEM_STATISTICS:
            self._views.statistics.apply(record.key, record.value)
        elif topic == topics.ITEM_VECTORS:
            self._releases.apply_vector(record.key, record.value)
        else:
            self._releases.apply_release(record.value)

    def _handle(self, records: Sequence[Any], started: float) -> None:
        """One batch: everything it causes is sent, then its offsets wait for the acknowledgements."""
        new = [record for record in records if record.offset >= self._answered.get(_place(record), 0)]
        if not new:
            return
        now_ms = _now_ms()
        metrics.BATCH_SIZE.labels("serving").observe(len(new))
        with metrics.BATCH_TIME.labels("serving").time():
            bug = self._desk.handle(new, self._answer(now_ms), now_ms)
        next_offsets = {_place(record): record.offset + 1 for record in new}
        self._answered |= next_offsets
        self._outbox.seal(next_offsets)
        for _ in new:
            metrics.REQUEST_TIME.observe(time.perf_counter() - started)
        if bug is not None:
            self.leave()
            raise bug

    def _answer(self, now_ms: int) -> Any:
        """The pipeline for one batch. The live release is read here, once."""
        return partial(
            answer,
            live=self._releases.live,
            views=self._views,
            breaker=self._breaker,
            pace=self._pace,
            now_ms=now_ms,
            settings=self._settings.serving,
            served_by=self.server_id,
        )

    def _forget_lost(self) -> None:
        owned = self._partitions.owned
        self._outbox.ledger.forget(owned)
        self._answered = {tp: offset for tp, offset in self._answered.items() if tp.partition in owned}
        self._due = {tp: offset for tp, offset in self._due.items() if tp.partition in owned}

    def _commit(self) -> None:
        self._due |= self._outbox.ledger.acknowledged()
        now = time.monotonic()
        if self._due and now - self._commit_at >= COMMIT_EVERY_S:
            self._consumer.commit_async(_commits(self._due))
            self._due, self._commit_at = {}, now

    def _report(self) -> None:
        now = time.monotonic()
        live = self._releases.live
        version = live.version if live else ""
        if version != self._told or now - self._heartbeat_at >= self._settings.serving.heartbeat_s:
            self._told, self._heartbeat_at = version, now
            state = ServerState(self.server_id, version, _now_ms())
            self._outbox.send(topics.RELEASES, encode(state), key=self._heartbeat_key)
            self._outbox.seal({})
        if now - self._report_at >= REPORT_EVERY_S:
            self._report_at = now
            self._partitions.pace()
            self._gauge()

    def _gauge(self) -> None:
        """What changes slowly: gauges and health, once a second."""
        live, views = self._releases.live, self._views
        metrics.HISTORIES.set(len(views.histories))
        metrics.CATALOGUE.set(len(views.catalogue))
        if live is not None:
            metrics.MODEL_AGE.set(max(0, _now_ms() - live.created_ms) / 1000)
        for partition, lag in self._partitions.lags().items():
            metrics.LAG.labels(topics.RECOMMEND_REQUESTS, str(partition)).set(lag)
        health = self._health
        health.ready = self._partitions.are_open
        health.waiting_for = self._waiting_for()
        health.detail = {
            "server_id": self.server_id,
            "version_served": live.version if live else "",
            "partitions": sorted(self._partitions.open),
            "histories": len(views.histories),
        }

    def _waiting_for(self) -> str:
        if not self._is_primed:
            return "the catalogue, trending and release topics to be read"
        if not self._releases.settled:
            return "the announced release to be loaded"
        return "the histories of the assigned partitions to be read"

    @property
    def _heartbeat_key(self) -> bytes:
        return f"server/{self.server_id}".encode()


def _place(record: Any) -> TopicPartition:
    return TopicPartition(record.topic, record.partition)


def _commits(offsets: dict[TopicPartition, int]) -> dict[TopicPartition, OffsetAndMetadata]:
    return {tp: OffsetAndMetadata(offset, "", -1) for tp, offset in offsets.items()}


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
