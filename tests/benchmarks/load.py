"""Load from outside: events through librdkafka, faster than any consumer of ours, and a steady stream of requests."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

from confluent_kafka import Producer

from infra.platform.settings import Kafka
from nextwatch_client import RecommendClient, RecommendReply, RecommendRequest
from tests.harness.beside import beside, paced


def create_load(kafka: Kafka, *, linger_ms: int = 5) -> Producer:
    """A librdkafka producer that partitions as Java's default one does."""
    return Producer(
        {
            "bootstrap.servers": kafka.bootstrap,
            "partitioner": "murmur2_random",
            "linger.ms": linger_ms,
            "acks": "all",
            "queue.buffering.max.messages": 1_000_000,
        }
    )


def send_all(kafka: Kafka, topic: str, messages: Iterable[tuple[bytes, bytes]]) -> None:
    """Send keys and values and wait for the acknowledgements. Raises RuntimeError when one is missing."""
    producer = create_load(kafka)
    failures: list[str] = []

    def acknowledged(error: object, _: object) -> None:
        if error is not None:
            failures.append(str(error))

    for key, value in messages:
        producer.produce(kafka.topic_prefix + topic, key=key, value=value, on_delivery=acknowledged)
        producer.poll(0)
    left = producer.flush(60)
    if left or failures:
        raise RuntimeError(f"{topic}: {left} not acknowledged, {len(failures)} refused {failures[:1]}")


@dataclass
class Asked:
    """What became of a stream of requests. A request without an answer in time is in `failed` only."""

    latencies_ms: list[float] = field(default_factory=list)
    replies: list[RecommendReply] = field(default_factory=list)
    failed: int = 0


@contextlib.contextmanager
def steady_requests(
    client: RecommendClient, next_user: Callable[[], str], per_s: float, patience_s: float = 30.0
) -> Iterator[Asked]:
    """While the block runs, `per_s` requests a second whether or not they are answered (an open loop).

    At the end the outstanding ones are waited for.
    """
    asked, waiting = Asked(), list[Future[RecommendReply]]()

    def send() -> None:
        waiting.append(_ask(client, next_user(), asked, patience_s))

    try:
        with beside(lambda stop: paced(send, per_s, stop), "requests"):
            yield asked
    finally:
        deadline = time.monotonic() + patience_s
        for future in waiting:
            with contextlib.suppress(Exception):  # counted where it is handled
                future.result(max(0.0, deadline - time.monotonic()))
        asked.failed = len(waiting) - len(asked.replies)


def _ask(client: RecommendClient, user_id: str, asked: Asked, patience_s: float) -> Future[RecommendReply]:
    sent_s = time.perf_counter()

    def answered(future: Future[RecommendReply]) -> None:
        if future.cancelled() or future.exception() is not None:
            return
        asked.latencies_ms.append(1000 * (time.perf_counter() - sent_s))
        asked.replies.append(future.result())

    request = RecommendRequest(uuid.uuid4().hex, user_id, deadline_ms=round(1000 * patience_s))
    future = client.submit(request)
    future.add_done_callback(answered)
    return future
