"""A client for teams in Python: a request goes into a topic, its reply comes back from one.

It reads one partition of `recommend-replies`, chosen at its start and named in each request, so that no client reads
every other's replies; the correlation id says which reply belongs to which request, and any number may be under way.
"""

from __future__ import annotations

import random
import struct
import threading
import time
import uuid
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any

import structlog
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from infra.kafka_clients import kafka_python_options
from infra.settings import Kafka
from streams import topics
from streams.follow import TopicMissing
from streams.messages import Context, RecommendReply, RecommendRequest, Refused, decode, encode

log = structlog.get_logger(__name__)

PACE_S = 0.001  # between two polls while a reply is awaited
IDLE_S = 0.5  # between two polls while none is: other clients' replies are passed over


class RequestFailed(RuntimeError):
    """A request has no reply: it could not be sent, its reply could not be read, or (RequestTimeout) none came."""


class RequestTimeout(RequestFailed, TimeoutError):
    """No reply came in time."""


class RecommendClient:
    """Request and reply over Kafka. Use it as a context manager; may be used from several threads.

    Raises TopicMissing when the topics are not there, and KafkaError when no broker answers.
    """

    def __init__(self, kafka: Kafka) -> None:
        self._kafka = kafka
        self._waiting: dict[bytes, Future[RecommendReply]] = {}  # by correlation id
        self._closed = threading.Event()
        self._sent = threading.Event()  # wakes the reader
        self._replies = kafka.topic_prefix + topics.RECOMMEND_REPLIES
        self._consumer, self._partition = self._start_reading()
        self._producer = KafkaProducer(
            **kafka_python_options(kafka),
            client_id="nextwatch-client",
            acks="all",
            allow_auto_create_topics=False,
            delivery_timeout_ms=30_000,
            max_block_ms=10_000,
            metrics_enabled=False,
        )
        self._reader = threading.Thread(target=self._read, name="recommend-replies", daemon=True)
        self._reader.start()

    def recommend(
        self,
        user_id: str,
        k: int | None = None,
        context: Context | None = None,
        exclude: Iterable[str] = (),
        *,
        timeout_s: float = 5.0,
    ) -> RecommendReply:
        """Recommend to one user and wait for it; a request that the server refuses has a reply with `error`.

        Raises RequestTimeout (a TimeoutError) and RequestFailed.
        """
        request = RecommendRequest(
            request_id=uuid.uuid4().hex,
            user_id=user_id,
            k=k,
            context=context,
            exclude=tuple(exclude),
            deadline_ms=max(1, int(timeout_s * 1000)),
        )
        return self.result(self.submit(request), request, timeout_s)

    def recommend_many(self, requests: Iterable[RecommendRequest], *, timeout_s: float = 10.0) -> list[RecommendReply]:
        """The replies to all requests, in their order; `timeout_s` is for all together. Raises as `recommend`."""
        sent = [(self.submit(request), request) for request in requests]
        deadline = time.monotonic() + timeout_s
        try:
            return [self.result(future, request, deadline - time.monotonic()) for future, request in sent]
        finally:
            for future, _ in sent:
                future.cancel()

    def submit(self, request: RecommendRequest) -> Future[RecommendReply]:
        """Send a request; its reply is the future's result. Cancel the future to wait no longer."""
        if self._closed.is_set():
            raise RequestFailed("the client is closed")
        correlation = uuid.uuid4().bytes
        future: Future[RecommendReply] = Future()
        future.add_done_callback(lambda _: self._waiting.pop(correlation, None))
        self._waiting[correlation] = future
        self._sent.set()
        headers = [
            ("correlation_id", correlation),
            ("reply_topic", self._replies.encode()),
            ("reply_partition", struct.pack(">i", self._partition)),
        ]
        try:
            sent = self._producer.send(
                self._kafka.topic_prefix + topics.RECOMMEND_REQUESTS,
                encode(request),
                key=request.user_id.encode(),
                partition=topics.partition_of(request.user_id, self._kafka.partitions),
                headers=headers,
            )
        except KafkaError as error:
            _fail(future, error)
        else:
            sent.add_errback(lambda error: _fail(future, error))
        return future

    def result(self, future: Future[RecommendReply], request: RecommendRequest, timeout_s: float) -> RecommendReply:
        """Wait for a submitted request's reply. Raises RequestTimeout."""
        try:
            return future.result(max(0.0, timeout_s))
        except TimeoutError:
            future.cancel()
            raise RequestTimeout(
                f"no reply to request {request.request_id} within {timeout_s:.1f} s: is a serving worker running "
                f"(`nextwatch status`), on topic {self._kafka.topic_prefix}{topics.RECOMMEND_REQUESTS}?"
            ) from None

    def close(self) -> None:
        self._closed.set()
        self._sent.set()
        self._producer.close(timeout=5)
        self._reader.join(timeout=10)

    def __enter__(self) -> RecommendClient:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _start_reading(self) -> tuple[Any, int]:
        """A consumer that stands at the end of one partition; its position is known before the first request."""
        consumer = KafkaConsumer(
            **kafka_python_options(self._kafka),
            client_id="nextwatch-client",
            enable_auto_commit=False,
            auto_offset_reset="latest",
            allow_auto_create_topics=False,
            reconnect_backoff_max_ms=2000,
            metrics_enabled=False,
        )
        try:
            numbers = consumer.partitions_for_topic(self._replies)
            if not numbers:
                raise TopicMissing(f"topic {self._replies} does not exist; `nextwatch topics --create` makes it")
            place = TopicPartition(self._replies, random.choice(sorted(numbers)))
            consumer.assign([place])
            consumer.seek(place, consumer.end_offsets([place])[place])
        except BaseException:
            consumer.close()
            raise
        return consumer, place.partition

    def _read(self) -> None:
        """The reader's thread: every reply to the future that waits for it."""
        try:
            while not self._closed.is_set():
                batches = self._consumer.poll(0)
                for record in (record for batch in batches.values() for record in batch):
                    self._deliver(record)
                if not batches:
                    self._pause()
        except Exception as error:  # outermost: whoever waits must learn that nobody reads any more
            log.exception("reading replies failed")
            self._closed.set()
            for future in list(self._waiting.values()):
                _fail(future, error)
        finally:
            self._consumer.close()

    def _pause(self) -> None:
        """Between two empty looks. kafka-python's own waiting keeps a core busy where a broker answers empty fetches at
        once instead of holding them, as noida does."""
        if self._waiting:
            time.sleep(PACE_S)
        else:
            self._sent.wait(IDLE_S)
        self._sent.clear()

    def _deliver(self, record: Any) -> None:
        correlation = next((value for name, value in record.headers if name == "correlation_id"), b"")
        future = self._waiting.get(correlation)
        if future is None:
            return
        try:
            reply = decode(RecommendReply, record.value, max_bytes=len(record.value or b""))
        except Refused as refused:
            _fail(future, refused)
        else:
            if future.set_running_or_notify_cancel():
                future.set_result(reply)


def _fail(future: Future[RecommendReply], error: BaseException) -> None:
    """Only the first outcome of a future counts."""
    if not future.done() and future.set_running_or_notify_cancel():
        future.set_exception(RequestFailed(f"the request could not be sent or its reply not read: {error}"))
