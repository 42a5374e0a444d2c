"""Many messages sent to one topic, as fast as the brokers take them or when each is due, and all acknowledged."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from kafka import KafkaProducer
from kafka.errors import KafkaError

from infra.platform.kafka_clients import close_producer, kafka_python_options
from infra.platform.settings import Kafka
from streams.topics import check_topics

REPORT_S = 0.25  # how often progress is called
CONNECT_S = 15.0
FLUSH_S = 120.0
LARGEST = 8  # times kafka.max_message_bytes: a history may be so large

Due = Sequence[float] | None  # when each message is to be sent, in seconds after the first; None: at once


class SendError(RuntimeError):
    """The messages could not be sent, or not all of them were acknowledged; the text says which topic and why."""


class Keyed(NamedTuple):
    """A message as it travels; no value takes back what was said of the key."""

    key: str
    value: bytes | None


@contextmanager
def open_producer(kafka: Kafka, linger_ms: int = 20) -> Iterator[KafkaProducer]:
    """Raises SendError when there is no broker."""
    options = kafka_python_options(kafka)
    try:
        producer = KafkaProducer(
            **options,
            acks="all",
            linger_ms=linger_ms,
            batch_size=128_000,
            max_request_size=LARGEST * kafka.max_message_bytes,
            bootstrap_timeout_ms=round(CONNECT_S * 1000),
            max_block_ms=round(CONNECT_S * 1000),
        )
    except KafkaError as error:
        raise SendError(f"no broker at kafka.bootstrap = {kafka.bootstrap!r}: {error}") from error
    try:
        yield producer
    finally:
        with suppress(KafkaError):  # of what was not taken, which who sent it has said
            close_producer(producer, CONNECT_S)


def require_as_designed(kafka: Kafka, topics: Iterable[str]) -> None:
    """Raises SendError unless these topics (names without prefix) are as the design says."""
    names = tuple(kafka.topic_prefix + topic + ":" for topic in topics)
    problems = [problem for problem in check_topics(kafka) if problem.startswith(names)]
    if problems:
        raise SendError("\n".join(problems))


def send_all(
    producer: KafkaProducer,
    topic: str,
    messages: Iterable[Keyed],
    report: Callable[[int], None] = lambda done: None,
    due_s: Due = None,
) -> int:
    """Send each message to `topic` (with prefix) when it is due and wait until all are acknowledged; how many."""
    failures: list[BaseException] = []
    sent = 0
    began_s = reported_s = time.monotonic()
    try:
        for key, value in messages:
            if failures:
                break
            if due_s is not None:
                time.sleep(max(0.0, began_s + due_s[sent] - time.monotonic()))
            producer.send(topic, key=key.encode(), value=value).add_errback(failures.append)
            sent += 1
            if time.monotonic() - reported_s > REPORT_S:
                reported_s = time.monotonic()
                report(sent)
        if not failures:  # else it would wait for batches that are never sent again
            producer.flush(timeout=FLUSH_S)
    except KafkaError as error:
        failures.append(error)
    if failures:
        why = f"{type(failures[0]).__name__}: {failures[0]}"
        raise SendError(f"{topic}: not all of {sent} messages were taken (nextwatch topics --check): {why}")
    report(sent)
    return sent
