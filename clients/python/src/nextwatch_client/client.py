"""The client for threads: a request goes into a topic, its reply comes back from another.

    with RecommendClient(ConnectionOptions(bootstrap="kafka-1:9092,kafka-2:9092")) as client:
        reply = client.recommend("alice", k=20, filter="duration_s < 600", timeout_s=1.0)
        if reply.error:
            ...  # the request was refused, and this says why
        for item in reply.items:
            ...  # item.item_id, item.expected_watch_s

One client serves a whole process: any number of requests may be pending, from any number of threads.

It reads one partition of the reply topic, chosen at its start and named in each request, so that no client reads every
other's replies; the correlation id says which reply belongs to which request. When a part of the time has gone by
without a reply, the same request is sent again, with the same request id and correlation id (`retries` times at most):
a server answers a request id that it knows with the reply that it gave, and the first reply wins. A caller that tries
again by itself, after a time-out or a restart, gives the `request_id` of its first try for the same effect.

What is fetched is bounded (kafka-python's fetch sizes: 1 MiB, or one batch that is larger), what it unpacks to is not:
kafka-python has no limit for a compressed batch. nextwatch does not compress replies; who may write to the reply topic
is a matter of the brokers' ACLs.
"""

from __future__ import annotations

import logging
import random
import struct
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from nextwatch_client.errors import RequestFailed, RequestTimeout, TopicMissing
from nextwatch_client.messages import Context, RecommendReply, RecommendRequest, decode_reply, encode
from nextwatch_client.options import ConnectionOptions
from nextwatch_client.pending_requests import PendingRequests, new_request, resend_times_s

log = logging.getLogger(__name__)

BUSY_PAUSE_S = 0.003  # between two polls while a reply is awaited
IDLE_PAUSE_S = 0.5  # between two polls while none is: other clients' replies are passed over
PROBE_MS = 1000  # for one record to come that is known to be there
START_S = 10.0  # for the brokers to answer at all
SEND_S = 30.0  # a request that the brokers have not taken by then has failed
CLOSE_S = 5.0  # for the brokers to take what was sent last


class RecommendClient:
    """Request and reply over Kafka. Use it as a context manager; may be used from several threads.

    Raises OptionsError, TopicMissing when the topics are not there, and KafkaError when no broker answers.
    """

    def __init__(self, options: ConnectionOptions) -> None:
        self._options = options
        self._connection = options.kafka_python() | {
            "client_id": "nextwatch-client",
            "bootstrap_timeout_ms": round(START_S * 1000),
            "allow_auto_create_topics": False,
            "metrics_enabled": False,
        }
        self._pending = PendingRequests()
        self._closed = threading.Event()
        self._why_closed = "the client is closed"
        self._sent = threading.Event()  # wakes the reader
        self._consumer, self._partition = self._start_reading()
        try:
            self._producer = self._start_sending()
        except BaseException:
            self._consumer.close()
            raise
        self._reader = threading.Thread(target=self._read, name="recommend-replies", daemon=True)
        self._reader.start()

    @property
    def pending(self) -> int:
        """The number of requests that wait for their reply."""
        return len(self._pending)

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
        traceparent: str = "",
    ) -> RecommendReply:
        """Recommend to one user and wait for it; a request that the server refuses has a reply with `error`.
        `traceparent` (W3C Trace Context) names the trace in which the server's log tells of it.

        It is sent again up to `retries` times, `timeout_s` being divided equally. Raises RequestTimeout (a
        TimeoutError) and RequestFailed.
        """
        request = new_request(user_id, k, context, exclude, filter=filter, request_id=request_id, timeout_s=timeout_s)
        sent = self.submit(request, resend_times_s(timeout_s, retries), traceparent)
        return self.result(sent, request, timeout_s)

    def recommend_many(
        self, requests: Iterable[RecommendRequest], *, timeout_s: float = 10.0, retries: int = 0
    ) -> list[RecommendReply]:
        """Return the replies in the order of the requests; `timeout_s` is for all together. Raises as `recommend`."""
        resend_after_s = resend_times_s(timeout_s, retries)
        sent = [(self.submit(request, resend_after_s), request) for request in requests]
        deadline = time.monotonic() + timeout_s
        try:
            return [self.result(future, request, deadline - time.monotonic()) for future, request in sent]
        finally:
            for future, _ in sent:
                future.cancel()

    def submit(
        self, request: RecommendRequest, resend_after_s: Sequence[float] = (), traceparent: str = ""
    ) -> Future[RecommendReply]:
        """Send a request; its reply is the future's result. Cancel the future to wait no longer.

        The same request is sent again when it is not answered after each of `resend_after_s`. Does not block. Raises
        RequestFailed when the client is closed; every other failure is the future's.
        """
        if self._closed.is_set():
            raise RequestFailed(self._why_closed)
        correlation_id, pending = self._pending.add(request, time.monotonic(), resend_after_s, traceparent)
        self._sent.set()
        try:
            sent = self._send(correlation_id, request)
        except KafkaError as error:
            self._fail(correlation_id, error)
        else:
            sent.add_callback(lambda _: self._pending.acknowledge(correlation_id))
            sent.add_errback(partial(self._fail, correlation_id))
        if self._closed.is_set():  # meanwhile, and nobody fails what was added since
            self._pending.fail(correlation_id, RequestFailed(self._why_closed))
        return pending.future

    def result(self, future: Future[RecommendReply], request: RecommendRequest, timeout_s: float) -> RecommendReply:
        """Wait for a submitted request's reply. Raises RequestTimeout."""
        try:
            return future.result(max(0.0, timeout_s))
        except TimeoutError:
            late = self.timeout_of(future, request, timeout_s)
            future.cancel()
            raise late from None

    def timeout_of(self, future: Future[RecommendReply], request: RecommendRequest, waited_s: float) -> RequestTimeout:
        """Return what to raise for a request that is not answered in time, while its future still waits."""
        what = f"no reply to request {request.request_id} within {max(0.0, waited_s):.1f} s"
        if not self._pending.is_acknowledged(future):
            brokers = self._options.bootstrap
            return RequestTimeout(f"{what}, nor have the brokers acknowledged the request: is {brokers} up?")
        topic = self._options.requests
        return RequestTimeout(f"{what}: is a serving worker running (`nextwatch status`), on topic {topic}?")

    def close(self) -> None:
        """Fail whoever still waits, at once, and close the connections."""
        self._closed.set()
        self._sent.set()
        self._pending.fail_all(RequestFailed(self._why_closed))
        try:
            self._producer.close(timeout=CLOSE_S)
        except KafkaError as error:  # brokers that are gone: who waited for them has been told
            log.warning("client closed with requests that the brokers have not taken: %s", error)
            # kafka-python closes nothing while messages are unsent, and those expire after SEND_S
            threading.Thread(target=self._producer.close, args=(2 * SEND_S,), name="closing", daemon=True).start()
        self._reader.join(timeout=10)

    def __enter__(self) -> RecommendClient:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    # --- sending -----------------------------------------------------------------------------------------------------

    def _start_sending(self) -> Any:
        """Return a producer that knows the request topic's partitions: it blocks for nothing else.

        Not idempotent: a server knows a request by its id, and kafka-python's idempotent producer never sends again
        after a message has expired in an outage."""
        producer = KafkaProducer(
            **self._connection,
            acks="all",
            enable_idempotence=False,
            request_timeout_ms=round(SEND_S * 1000),
            delivery_timeout_ms=round(SEND_S * 1000),
            max_block_ms=round(START_S * 1000),
            reconnect_backoff_max_ms=2000,
        )
        try:
            producer.partitions_for(self._options.requests)
        except BaseException:
            producer.close(timeout=0)
            raise
        return producer

    def _send(self, correlation_id: bytes, request: RecommendRequest) -> Any:
        """Send to the user's partition: kafka-python's own choice for a key is the one of Kafka's Java client."""
        headers = [
            ("correlation_id", correlation_id),
            ("reply_topic", self._options.replies.encode()),
            ("reply_partition", struct.pack(">i", self._partition.partition)),
        ]
        if traceparent := self._pending.traceparent_of(correlation_id):
            headers.append(("traceparent", traceparent.encode()))
        key = request.user_id.encode()
        return self._producer.send(self._options.requests, encode(request), key=key, headers=headers)

    def _send_again(self) -> None:
        """Send copies of what is due; one that cannot be sent leaves the first where it is."""
        for correlation_id, request in self._pending.due(time.monotonic()):
            try:
                self._send(correlation_id, request)
            except KafkaError as error:
                log.warning("request %s not sent again: %s", request.request_id, error)

    def _fail(self, correlation_id: bytes, error: BaseException) -> None:
        text = f"the request could not be sent or its reply not read: {error}"
        self._pending.fail(correlation_id, RequestFailed(text))

    # --- reading -----------------------------------------------------------------------------------------------------

    def _start_reading(self) -> tuple[Any, TopicPartition]:
        """Return a consumer that stands at the end of one partition of replies, and that partition. Its position is
        known before the first request."""
        consumer = KafkaConsumer(
            **self._connection, enable_auto_commit=False, auto_offset_reset="latest", reconnect_backoff_max_ms=2000
        )
        try:
            numbers = _partitions_of(consumer, self._options.replies)
            _partitions_of(consumer, self._options.requests)
            partition = TopicPartition(self._options.replies, random.choice(numbers))
            consumer.assign([partition])
            _seek_to_end(consumer, partition)
        except BaseException:
            consumer.close()
            raise
        return consumer, partition

    def _read(self) -> None:
        """Run the reader's thread: give every reply to the future that waits for it, send again what is late."""
        try:
            while not self._closed.is_set():
                records = self._poll()
                for record in records:
                    self._deliver(record)
                self._send_again()
                if not records:
                    self._pause()
        except Exception as error:  # outermost: whoever waits must learn that nobody reads any more
            log.exception("reading replies failed")
            self._why_closed = f"the client has ended, its replies cannot be read: {error}"
            self._closed.set()
            self._pending.fail_all(RequestFailed(self._why_closed))
        finally:
            self._consumer.close()

    def _poll(self) -> list[Any]:
        """Return what has come. A batch that cannot be read is left behind, and what lies behind it is read."""
        try:
            return [record for batch in self._consumer.poll(0).values() for record in batch]
        except Exception as error:  # of many kinds: a checksum, a codec, a header's name that is no UTF-8
            log.warning("a batch of replies cannot be read: %s", error)
            self._pass_over()
            return []

    def _pass_over(self) -> None:
        """Go to the first offset that can be read again. The length of the batch is not told, so it is searched for, in
        steps that double, then by halves."""
        first, end = self._consumer.position(self._partition), self._consumer.end_offsets([self._partition])
        low, high, step = first, first + 1, 1
        while high < end[self._partition] and not self._can_read(high):
            low, high, step = high, high + 2 * step, 2 * step
        high = min(high, end[self._partition])
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._can_read(middle) else (middle, high)
        self._consumer.seek(self._partition, high)

    def _can_read(self, offset: int) -> bool:
        self._consumer.seek(self._partition, offset)
        try:
            self._consumer.poll(PROBE_MS)
        except Exception:  # of many kinds, as above
            return False
        return True

    def _pause(self) -> None:
        """Wait between two polls that brought nothing. kafka-python's own waiting keeps a core busy where a broker
        answers empty fetches at once instead of holding them, as noida does."""
        if self._pending:
            time.sleep(BUSY_PAUSE_S)
        else:
            self._sent.wait(IDLE_PAUSE_S)
        self._sent.clear()

    def _deliver(self, record: Any) -> None:
        correlation_id = next((value for name, value in record.headers if name == "correlation_id"), b"")
        if not self._pending.is_pending(correlation_id):
            return
        try:
            reply = decode_reply(record.value, self._options.max_reply_bytes)
        except ValueError as error:
            self._fail(correlation_id, error)
        else:
            self._pending.reply(correlation_id, reply)


def _partitions_of(consumer: Any, topic: str) -> list[int]:
    numbers = consumer.partitions_for_topic(topic)
    if not numbers:
        raise TopicMissing(f"topic {topic} does not exist; `nextwatch topics --create` makes it")
    return sorted(numbers)


def _seek_to_end(consumer: Any, partition: TopicPartition) -> None:
    consumer.seek(partition, consumer.end_offsets([partition])[partition])
