"""A client for teams in Python: a request goes into a topic, its reply comes back from one.

    from infra.platform.settings import load_settings
    from serving.client.client import RecommendClient

    with RecommendClient(load_settings().kafka) as client:
        reply = client.recommend("alice", k=20, filter="duration_s < 600", timeout_s=1.0)
        if reply.error:
            ...  # the request was refused, and this says why
        for item in reply.items:
            ...  # item.item_id, item.expected_watch_s

One client serves a whole process: any number of requests may be under way, from any number of threads. For asyncio
there is serving/client/async_client.py.

It reads one partition of `recommend-replies`, chosen at its start and named in each request, so that no client reads
every other's replies; the correlation id says which reply belongs to which request. When a part of the time has gone
by without a reply, the same request is sent again, with the same request id and correlation id (`retries` times at
most): a server answers a request id that it knows with the reply that it gave, and the first reply wins. A caller that
tries again by itself, after a time-out or a restart, gives the `request_id` of its first try for the same effect.

    RequestFailed (RuntimeError)   not sent, reply unreadable, client closed: the text says which
    └── RequestTimeout (TimeoutError)   no reply in time: the text says whether the brokers took the request
"""

from __future__ import annotations

import random
import struct
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import structlog
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from infra.platform.kafka_clients import close_producer, kafka_python_options
from infra.platform.settings import Kafka
from serving.client.pending_requests import PendingRequests, request_for, shares
from streams import topics
from streams.kafka.fetching import unpack_for
from streams.kafka.follow import TopicMissing
from streams.messages import Context, RecommendReply, RecommendRequest, Refused, decode, encode

log = structlog.get_logger(__name__)

PACE_S = 0.001  # between two polls while a reply is awaited
IDLE_S = 0.5  # between two polls while none is: other clients' replies are passed over
START_S = 10.0  # for the brokers to answer at all
MOST_TIMES = 8  # a reply may be larger than a request
SEND_S = 30.0  # a request that the brokers have not taken by then has failed


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
        self._under_way = PendingRequests()
        self._closed = threading.Event()
        self._why_closed = "the client is closed"
        self._sent = threading.Event()  # wakes the reader
        self._requests = kafka.topic_prefix + topics.RECOMMEND_REQUESTS
        self._replies = kafka.topic_prefix + topics.RECOMMEND_REPLIES
        self._consumer, self._partition, self._partitions = self._start_reading()
        try:
            self._producer = self._start_sending()
        except BaseException:
            self._consumer.close()
            raise
        self._reader = threading.Thread(target=self._read, name="recommend-replies", daemon=True)
        self._reader.start()

    def recommend(
        self,
        user_id: str,
        k: int | None = None,
        context: Context | None = None,
        exclude: Iterable[str] = (),
        *,
        filter: str | None = None,
        request_id: str | None = None,
        timeout_s: float = 5.0,
        retries: int = 1,
    ) -> RecommendReply:
        """Recommend to one user and wait for it; a request that the server refuses has a reply with `error`.

        It is sent again up to `retries` times, `timeout_s` being divided equally. Raises RequestTimeout (a
        TimeoutError) and RequestFailed.
        """
        request = request_for(user_id, k, context, exclude, filter=filter, request_id=request_id, timeout_s=timeout_s)
        return self.result(self.submit(request, shares(timeout_s, retries)), request, timeout_s)

    def recommend_many(
        self, requests: Iterable[RecommendRequest], *, timeout_s: float = 10.0, retries: int = 0
    ) -> list[RecommendReply]:
        """The replies to all requests, in their order; `timeout_s` is for all together. Raises as `recommend`."""
        again_after_s = shares(timeout_s, retries)
        sent = [(self.submit(request, again_after_s), request) for request in requests]
        deadline = time.monotonic() + timeout_s
        try:
            return [self.result(future, request, deadline - time.monotonic()) for future, request in sent]
        finally:
            for future, _ in sent:
                future.cancel()

    def submit(self, request: RecommendRequest, again_after_s: Sequence[float] = ()) -> Future[RecommendReply]:
        """Send a request; its reply is the future's result. Cancel the future to wait no longer.

        The same request is sent again when it is not answered after each of `again_after_s`. Does not block. Raises
        RequestFailed when the client is closed; every other failure is the future's.
        """
        if self._closed.is_set():
            raise RequestFailed(self._why_closed)
        correlation, waiting = self._under_way.add(request, time.monotonic(), again_after_s)
        self._sent.set()
        try:
            sent = self._send(correlation, request)
        except KafkaError as error:
            self._fail(correlation, error)
        else:
            sent.add_callback(lambda _: self._under_way.accept(correlation))
            sent.add_errback(partial(self._fail, correlation))
        if self._closed.is_set():  # meanwhile, and nobody fails what was added since
            self._under_way.fail(correlation, RequestFailed(self._why_closed))
        return waiting.future

    def result(self, future: Future[RecommendReply], request: RecommendRequest, timeout_s: float) -> RecommendReply:
        """Wait for a submitted request's reply. Raises RequestTimeout."""
        try:
            return future.result(max(0.0, timeout_s))
        except TimeoutError:
            late = self.late(future, request, timeout_s)
            future.cancel()
            raise late from None

    def late(self, future: Future[RecommendReply], request: RecommendRequest, waited_s: float) -> RequestTimeout:
        """What to raise for a request that is not answered in time, while its future still waits."""
        what = f"no reply to request {request.request_id} within {max(0.0, waited_s):.1f} s"
        if not self._under_way.is_accepted(future):
            return RequestTimeout(
                f"{what}, nor have the brokers acknowledged the request: is {self._kafka.bootstrap} up?"
            )
        return RequestTimeout(f"{what}: is a serving worker running (`nextwatch status`), on topic {self._requests}?")

    def close(self) -> None:
        """Whoever still waits fails at once."""
        self._closed.set()
        self._sent.set()
        self._under_way.fail_all(RequestFailed(self._why_closed))
        try:
            close_producer(self._producer, 5.0)
        except KafkaError as error:  # brokers that are gone: who waited for them has been told
            log.warning("client closed with requests that the brokers have not taken", error=str(error))
        self._reader.join(timeout=10)

    def __enter__(self) -> RecommendClient:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    # --- sending -----------------------------------------------------------------------------------------------------

    def _start_sending(self) -> Any:
        """A producer that knows the request topic's partitions: it blocks for nothing else.

        Not idempotent: a server knows a request by its id, and kafka-python's idempotent producer never sends again
        after a message has expired in an outage."""
        producer = KafkaProducer(
            **kafka_python_options(self._kafka),
            client_id="nextwatch-client",
            bootstrap_timeout_ms=round(START_S * 1000),
            acks="all",
            enable_idempotence=False,
            allow_auto_create_topics=False,
            request_timeout_ms=round(SEND_S * 1000),
            delivery_timeout_ms=round(SEND_S * 1000),
            max_block_ms=round(START_S * 1000),
            metrics_enabled=False,
        )
        try:
            producer.partitions_for(self._requests)
        except BaseException:
            producer.close(timeout=0)
            raise
        return producer

    def _send(self, correlation: bytes, request: RecommendRequest) -> Any:
        headers = [
            ("correlation_id", correlation),
            ("reply_topic", self._replies.encode()),
            ("reply_partition", struct.pack(">i", self._partition)),
        ]
        return self._producer.send(
            self._requests,
            encode(request),
            key=request.user_id.encode(),
            partition=topics.partition_of(request.user_id, self._partitions),
            headers=headers,
        )

    def _send_again(self) -> None:
        """A copy that cannot be sent leaves the first one where it is."""
        for correlation, request in self._under_way.due(time.monotonic()):
            try:
                self._send(correlation, request)
            except KafkaError as error:
                log.warning("request not sent again", request=request.request_id, error=str(error))

    def _fail(self, correlation: bytes, error: BaseException) -> None:
        text = f"the request could not be sent or its reply not read: {error}"
        self._under_way.fail(correlation, RequestFailed(text))

    # --- reading -----------------------------------------------------------------------------------------------------

    def _start_reading(self) -> tuple[Any, int, int]:
        """A consumer that stands at the end of one partition of replies, which partition, and how many there are of
        requests. Its position is known before the first request."""
        consumer = KafkaConsumer(
            **kafka_python_options(self._kafka),
            client_id="nextwatch-client",
            bootstrap_timeout_ms=round(START_S * 1000),
            enable_auto_commit=False,
            auto_offset_reset="latest",
            allow_auto_create_topics=False,
            reconnect_backoff_max_ms=2000,
            metrics_enabled=False,
        )
        try:
            numbers, requests = (_partitions_of(consumer, topic) for topic in (self._replies, self._requests))
            place = TopicPartition(self._replies, random.choice(numbers))
            consumer.assign([place])
            consumer.seek(place, consumer.end_offsets([place])[place])
        except BaseException:
            consumer.close()
            raise
        return unpack_for(consumer, self._kafka), place.partition, len(requests)

    def _read(self) -> None:
        """The reader's thread: every reply to the future that waits for it, and what is late is sent again."""
        try:
            while not self._closed.is_set():
                batches = self._consumer.poll(0)
                for record in (record for batch in batches.values() for record in batch):
                    self._deliver(record)
                self._send_again()
                if not batches:
                    self._pause()
        except Exception as error:  # outermost: whoever waits must learn that nobody reads any more
            log.exception("reading replies failed")
            self._why_closed = f"the client has ended, its replies cannot be read: {error}"
            self._closed.set()
            self._under_way.fail_all(RequestFailed(self._why_closed))
        finally:
            self._consumer.close()

    def _pause(self) -> None:
        """Between two empty looks. kafka-python's own waiting keeps a core busy where a broker answers empty fetches at
        once instead of holding them, as noida does."""
        if self._under_way:
            time.sleep(PACE_S)
        else:
            self._sent.wait(IDLE_S)
        self._sent.clear()

    def _deliver(self, record: Any) -> None:
        correlation = next((value for name, value in record.headers if name == "correlation_id"), b"")
        if not self._under_way.is_waiting(correlation):
            return
        try:
            reply = decode(RecommendReply, record.value, max_bytes=MOST_TIMES * self._kafka.max_message_bytes)
        except Refused as refused:
            self._fail(correlation, refused)
        else:
            self._under_way.reply(correlation, reply)


def _partitions_of(consumer: Any, topic: str) -> list[int]:
    numbers = consumer.partitions_for_topic(topic)
    if not numbers:
        raise TopicMissing(f"topic {topic} does not exist; `nextwatch topics --create` makes it")
    return sorted(numbers)
