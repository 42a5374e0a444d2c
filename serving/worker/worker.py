"""The serving process: requests in, replies and impressions out, for the users of the partitions that it owns.

One thread answers. It applies what the feeds have read (histories, catalogue, trending, releases, item vectors), takes
over a release that has been loaded, and answers what has arrived, together. While the index searches for one batch, the
one before is ranked and sent. Nothing is answered before every shared topic has been read to the end, so that no item
that was taken down comes back with a restart.

What arrives waits in a bounded queue, oldest first; beyond it in Kafka. A request whose deadline has passed is answered
from the ladder's bottom, which costs little, so a burst is worked off and nobody is left without a reply.

The order of effects of a batch: impressions, replies and dead letters are sent; when all of them are acknowledged, the
offsets are committed (see serving.worker.offset_tracker). A bug that a request shows goes with it to the dead letters,
its client is told, and then the process stops loudly.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from math import nan
from typing import Any

import structlog
import torch
from kafka import OffsetAndMetadata, TopicPartition
from kafka.errors import KafkaError, KafkaTimeoutError, RetriableError

from indexer.collection import Index
from infra.platform import metrics
from infra.platform.fault_points import reached
from infra.platform.health import Health, serve_health
from infra.platform.memory import available_bytes
from infra.platform.settings import Serving, Settings
from infra.platform.tracing import tracer_of
from models.threads import limit_threads
from serving.experiments.experiment_view import ExperimentView
from serving.experiments.rivals import Rivals, RivalSource
from serving.request.parsing import ParsedRequest
from serving.request.pipeline import InFlightBatch, Pipeline
from serving.request.retrieval import Retrieval
from serving.state.feed import Feed
from serving.state.release import Releases
from serving.state.shared_rows import SharedRows
from serving.state.trending_view import TrendingView
from serving.state.views import CatalogueView, HistoryView, StatisticsView, Views
from serving.worker.clock_skew import ClockSkew
from serving.worker.dispatcher import Dispatcher
from serving.worker.outbox import Outbox
from serving.worker.partitions import Partitions
from serving.worker.reply_cache import ReplyCache
from serving.worker.reply_cache_warmup import ReplyCacheWarmup
from serving.worker.reply_topics import ReplyTopics
from serving.worker.request_queue import RequestQueue, place_of
from streams import topics
from streams.bundles.source import source_of
from streams.clock import running_s
from streams.epochs import Epochs
from streams.erased_users import ErasedUsers
from streams.kafka.partition_counts import RAISE_KEY, PartitionsWatch
from streams.kafka.requirements import TopicUnfit
from streams.messages import ServerState, encode

log = structlog.get_logger(__name__)

GROUP = "serving"
SHARED = (
    topics.ITEMS,
    topics.TRENDING,
    topics.RELEASES,
    topics.ITEM_VECTORS,
    topics.ITEM_STATISTICS,
    topics.FORGOTTEN,
)
MOST_APPLIED = 5000  # records applied to the views between two batches
COMMIT_EVERY_S = 0.1
WAIT_S = 0.02  # between two looks at the feeds before the group is joined
REPORT_EVERY_S = 1.0
MIRROR_PARTS = 5  # of the memory, one is the mirror's: of two releases at once, when one replaces the other
CLOSE_S = 10.0
WRITTEN_S = 3.5  # so long a rebalance waits for what is not written, and for its commit: together less than SETTLE_S


def run_serving(settings: Settings, stop: threading.Event) -> None:
    """Answer requests until `stop` is set.

    Raises TopicMissing, ServiceError (the metrics port is taken) and KafkaError (no broker) at the start,
    ForgetSecretWrong, and TopicUnfit where users' states are not, or no more, where it looks for them.
    """
    limit_threads(settings.serving.threads)
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
        kafka, serving = settings.kafka, settings.serving
        self.server_id = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._settings, self._health = settings, health
        statistics = StatisticsView(kafka.partitions, settings.join.half_life_h)
        catalogue = CatalogueView(serving.fresh_h * 3_600_000, titles=serving.titles)
        self._erased = ErasedUsers(settings.forget.secret.get_secret_value())
        self._views = Views(HistoryView(self._erased), catalogue, TrendingView(), statistics)
        self._index = Index(settings.milvus)
        bundles, bfloat16 = source_of(settings), in_bfloat16(serving)
        self._releases = Releases(
            bundles,
            self._index,
            catalogue,
            mirror_items=serving.mirror_items,
            mirror_bytes=available_bytes() // MIRROR_PARTS,
            in_bfloat16=bfloat16,
            shared=SharedRows(settings.shared_dir) if serving.processes > 1 else None,
        )
        self._epochs = Epochs()
        retrieval, days = Retrieval(serving, seed=os.getpid()), settings.history.seen_days
        self._experiments = ExperimentView(serving, settings.selection)
        source = RivalSource(bundles, catalogue, kafka, serving.mirror_items, bfloat16, serving.processes)
        self._rivals = Rivals(source)
        self._pipeline = Pipeline(
            self._views,
            retrieval,
            serving,
            settings.selection,
            self.server_id,
            days,
            plan_of=self._experiments.plan_of,
        )
        self._shared = Feed(kafka, *SHARED)
        self._histories = Feed(kafka, topics.USER_HISTORIES, partitions=())
        self._outbox = Outbox(kafka)
        self._warmup = ReplyCacheWarmup(kafka, serving.repeat_s)
        self._reply_cache: ReplyCache[ParsedRequest] = ReplyCache(serving.repeat_s * 1000, serving.repeats)
        self._partitions = Partitions(kafka, GROUP, self._histories, self._views, self._warmup, self._settle)
        self._consumer = self._partitions.consumer
        self._queue = RequestQueue(self._consumer)
        self._reply_topics = ReplyTopics(self._consumer)
        self._dispatcher = Dispatcher(
            settings,
            self._pipeline,
            self._outbox,
            self._reply_topics,
            self._reply_cache,
            catalogue.unavailable,
            tracer_of(settings.tracing, "serving", self.server_id),
        )
        self._partitions_watch = PartitionsWatch(kafka)
        self._clock_skew, self._lag = ClockSkew(), metrics.Lags()
        self._is_primed = False  # everything shared was read to the end once
        self._in_flight: InFlightBatch | None = None
        self._bug: Exception | None = None
        self._is_closing = False
        self._due: dict[TopicPartition, int] = {}  # acknowledged, not yet committed
        self._commit_at = self._report_at = self._heartbeat_at = 0.0
        self._reported_version: str | None = None  # in the last heartbeat
        self._turn_s = time.monotonic()
        metrics.TURN_AGE.set_function(lambda: time.monotonic() - self._turn_s)

    def step(self) -> None:
        """Apply, take over, read, begin a batch, finish the one before, commit, report."""
        self._turn_s = time.monotonic()
        if self._partitions.take_over(_now_ms()):
            self._drop_lost()
        self._apply()
        if not self._may_join() or not self._see_partitions():
            time.sleep(WAIT_S)
            self._report()
            return
        if not self._read_requests():
            return
        self._apply()
        batch = self._begin()
        self._finish()
        self._in_flight = batch
        if batch is not None and not batch.waits:
            self._finish()
        if self._bug is not None:
            self.leave()
            raise self._bug
        self._commit()
        self._report()

    def leave(self) -> None:
        """Finish the batch in flight and say goodbye; nothing that was answered is answered again by the next owner."""
        try:
            self._outbox.tell(topics.RELEASES, None, key=self._heartbeat_key)
            self._outbox.seal({})
            self._settle()
        except KafkaError as error:  # brokers that are gone before us must not keep us from ending
            log.warning("left without a goodbye: the newest requests may be answered again", error=str(error))
        self._is_closing = True

    def close(self) -> None:
        self._health.ready, self._is_closing = False, True
        metrics.TURN_AGE.set_function(lambda: nan)
        self._pipeline.retrieval.close()
        for part in (self._shared, self._histories, self._releases, self._rivals, self._outbox):
            part.close()
        self._consumer.close(autocommit=False, timeout_ms=int(CLOSE_S * 1000))
        self._index.close()

    def _apply(self) -> None:
        """Bring the views up to what the feeds have read."""
        for chunk in self._shared.take(MOST_APPLIED):
            for record in chunk.records:
                self._apply_shared(record)
            self._views.settle(_now_ms())
            self._is_primed |= chunk.complete
        for chunk in self._histories.take(MOST_APPLIED):
            self._partitions.apply(chunk)
        self._reply_cache.look(running_s() * 1000)
        for recent in self._warmup.take():
            self._reply_cache.remember(recent.key, recent.reply, max(0, _now_ms() - recent.at_ms))
        self._releases.refresh()
        self._releases.compare(self._rivals.beside(self._releases.live, self._experiments.wanted))
        self._experiments.look(self._releases.live)
        if self._is_primed and self._releases.settled:
            self._partitions.resume()

    def _apply_shared(self, record: Any) -> None:
        topic = record.topic.removeprefix(self._settings.kafka.topic_prefix)
        metrics.RECEIVED.labels(topic).inc()
        if topic == topics.ITEMS:
            self._views.read_offsets.read(topic, record.partition, record.offset)
            item_id = self._views.catalogue.apply(record.key, record.value, _now_ms())
            if item_id is not None:
                self._releases.apply_item(item_id)
                self._rivals.apply_item(item_id)
                if self._is_primed and record.timestamp > 0 and item_id in self._views.catalogue.unavailable:
                    metrics.TAKEDOWN.observe(max(0, _now_ms() - record.timestamp) / 1000)
        elif topic == topics.TRENDING:
            self._views.trending.apply(record.key, record.value)
        elif topic == topics.ITEM_STATISTICS:
            self._views.statistics.hear(record)
        elif topic == topics.FORGOTTEN:
            self._erased.hear(record.key, record.value, record.offset)
        elif topic == topics.ITEM_VECTORS:
            if self._epochs.take(record):  # not a row of a trainer that had been replaced
                self._releases.apply_vector(record.key, record.value, record.timestamp)
        else:
            if record.key == RAISE_KEY:
                self._partitions_watch.look_again()
            self._experiments.hear(record.key, record.value)
            self._releases.apply_release(record.value)

    def _may_join(self) -> bool:
        """True when it is time to join the group: who owns its partitions now goes on until we could answer as well."""
        return self._partitions.has_joined or (self._is_primed and self._releases.settled)

    def _see_partitions(self) -> bool:
        """Look where users' states lie, before the group is joined and when partitions are raised; False while no
        broker answers. Raises TopicUnfit, behind the batch in hand."""
        try:
            self._partitions_watch.look()
        except KafkaError as error:
            log.warning("broker unavailable, trying again", error=str(error))
            self._finish()
            return False
        except TopicUnfit:
            self.leave()
            raise
        return True

    def _read_requests(self) -> bool:
        """Fill the queue with what has arrived; False while no broker answers."""
        room = self._settings.serving.queue - len(self._queue)
        if room <= 0:
            return True
        is_idle = not self._queue and self._in_flight is None
        try:
            records = self._partitions.poll(room, wait=is_idle)
        except RetriableError as error:
            log.warning("broker unavailable, trying again", error=str(error))
            self._finish()
            time.sleep(0.5)
            return False
        read_s = time.perf_counter()
        self._compare_clocks(records, read_s)
        self._queue.add(records, read_s)
        self._dispatcher.is_behind = self._queue.waiting() > self._settings.serving.backlog
        return True

    def _compare_clocks(self, records: Iterable[Any], read_s: float) -> None:
        """Look at the stamps of those that were just read and are the newest of their partitions."""
        now_ms = _now_ms()
        for record in records:
            if record.timestamp > 0 and record.offset + 1 >= (self._queue.end_of(place_of(record)) or sys.maxsize):
                self._clock_skew.observe(now_ms - record.timestamp, read_s)
        self._dispatcher.ahead_ms = self._clock_skew.ahead_ms

    def _begin(self) -> InFlightBatch | None:
        """The first half of the next batch. The live release is read here, once."""
        queued = self._queue.take(self._settings.serving.batch)
        if not queued:
            return None
        metrics.BATCH_SIZE.labels("serving").observe(len(queued))
        with metrics.BATCH_TIME.labels("serving_begin").time():
            return self._dispatcher.begin(queued, self._releases.live, _now_ms())

    def _finish(self) -> None:
        """The second half of the batch in flight: everything it causes is sent, then its offsets wait for the
        acknowledgements."""
        batch, self._in_flight = self._in_flight, None
        if batch is None:
            return
        with metrics.BATCH_TIME.labels("serving").time():
            self._bug = self._dispatcher.finish(batch) or self._bug
        self._outbox.seal({place_of(record): record.offset + 1 for record, _ in batch.queued})
        for _, read_s in batch.queued:
            metrics.REQUEST_TIME.observe(time.perf_counter() - read_s)

    def _settle(self) -> None:
        """Answer and commit the batch in flight, and give back what only was read: partitions may be another's next."""
        if self._is_closing:
            return
        self._finish()
        self._queue.give_back()
        try:
            self._outbox.offsets.wait(WRITTEN_S)
        except KafkaTimeoutError as error:
            log.warning("not all is written: the newest requests may be answered again", error=str(error))
        self._due |= self._outbox.offsets.acknowledged()
        due, self._due = self._due, {}
        reached("serving: settled")
        if due:
            self._consumer.commit(_commits(due), timeout_ms=int(WRITTEN_S * 1000))

    def _drop_lost(self) -> None:
        """Leave what is owned no more to its new owner."""
        owned = self._partitions.owned
        self._queue.keep(owned)
        self._outbox.offsets.keep(owned)
        self._due = {tp: offset for tp, offset in self._due.items() if tp.partition in owned}

    def _commit(self) -> None:
        self._due |= self._outbox.offsets.acknowledged()
        self._partitions.hold(self._outbox.offsets.stuck())
        now = time.monotonic()
        if self._due and now - self._commit_at >= COMMIT_EVERY_S:
            reached("serving: before commit")
            self._consumer.commit_async(_commits(self._due))
            self._due, self._commit_at = {}, now

    def _report(self) -> None:
        now = time.monotonic()
        live = self._releases.live
        version = live.version if live else ""
        if version != self._reported_version or now - self._heartbeat_at >= self._settings.serving.heartbeat_s:
            self._reported_version, self._heartbeat_at = version, now
            state = ServerState(self.server_id, version, _now_ms())
            self._outbox.tell(topics.RELEASES, encode(state), key=self._heartbeat_key)
            self._outbox.seal({})
        if now - self._report_at >= REPORT_EVERY_S:
            self._report_at = now
            self._partitions.throttle_polls()
            for topic in self._outbox.drop_gone_topics():
                self._reply_topics.forget(topic)
            self._gauge()

    def _gauge(self) -> None:
        """Show what changes slowly: gauges and health, once a second."""
        live, views = self._releases.live, self._views
        metrics.HISTORIES.set(len(views.histories))
        metrics.CATALOGUE.set(len(views.catalogue))
        metrics.QUEUED.set(len(self._queue))
        metrics.UNWRITTEN.set(self._outbox.offsets.waiting_bytes)
        self._pipeline.drift.show()
        metrics.MIRROR_ITEMS.set(0 if live is None or live.mirror is None else len(live.mirror))
        if live is not None:
            metrics.MODEL_AGE.set(max(0, _now_ms() - live.created_ms) / 1000)
        lags = self._partitions.lags()
        self._lag.show({(topics.RECOMMEND_REQUESTS, partition): lag for partition, lag in lags.items()})
        health = self._health
        health.detail = {
            "server_id": self.server_id,
            "version_served": live.version if live else "",
            "partitions": sorted(self._partitions.open),
            "histories": len(views.histories),
            "release_refused": self._releases.refusal,
            "rival_refused": self._rivals.refusal,
        }
        health.waiting_for = self._waiting_for()
        health.ready = self._partitions.are_open  # last: who reads it finds all of the above

    def _waiting_for(self) -> str:
        if not self._is_primed:
            return "the catalogue, trending and release topics to be read"
        if not self._releases.settled:
            return "the announced release to be loaded"
        return "the histories of the assigned partitions to be read"

    @property
    def _heartbeat_key(self) -> bytes:
        return f"server/{self.server_id}".encode()


def in_bfloat16(serving: Serving) -> bool:
    """True if the ranker computes in 16 bits: by default where the processor has instructions for it, since it would be
    slower elsewhere."""
    able: Mapping[str, Any] = torch.cpu.get_capabilities()
    has_it = bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return serving.ranker_format == "bfloat16" or (serving.ranker_format == "auto" and has_it)


def _commits(offsets: dict[TopicPartition, int]) -> dict[TopicPartition, OffsetAndMetadata]:
    return {tp: OffsetAndMetadata(offset, "", -1) for tp, offset in offsets.items()}


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
