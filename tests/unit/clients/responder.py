"""A server that answers with nothing but the request's own words, for the tests of the clients."""

from __future__ import annotations

import contextlib
import struct
import threading
from collections.abc import Callable, Iterator

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from infra.platform.kafka_clients import kafka_python_options
from infra.platform.settings import Kafka
from streams.messages import RecommendReply, RecommendRequest, decode, encode
from streams.topics import RECOMMEND_REPLIES, RECOMMEND_REQUESTS
from tests.harness.beside import beside

Seen = list[tuple[bytes, RecommendRequest]]  # correlation id and request, in the order of arrival
Answer = Callable[[RecommendRequest, int], list[bytes]]  # the values to reply with to its n-th copy (1: the first)


def echo(request: RecommendRequest, copy: int) -> list[bytes]:
    return [encode(RecommendReply(request.request_id, version=f"copy {copy}"))]


@contextlib.contextmanager
def responding(kafka: Kafka, answer: Answer = echo) -> Iterator[Seen]:
    """Answers every request from now on; what has been seen of them."""
    ready, seen = threading.Event(), Seen()
    with beside(lambda stop: _respond(kafka, answer, seen, ready, stop), "responder"):
        assert ready.wait(20), "the responder does not start"
        yield seen


def _respond(kafka: Kafka, answer: Answer, seen: Seen, ready: threading.Event, stop: threading.Event) -> None:
    topic = kafka.topic_prefix + RECOMMEND_REQUESTS
    with (
        contextlib.closing(KafkaConsumer(**kafka_python_options(kafka), enable_auto_commit=False)) as consumer,
        contextlib.closing(KafkaProducer(**kafka_python_options(kafka), acks="all")) as producer,
    ):
        places = [TopicPartition(topic, number) for number in range(kafka.partitions)]
        consumer.assign(places)
        for place, end in consumer.end_offsets(places).items():
            consumer.seek(place, end)
        ready.set()
        while not stop.is_set():
            for record in (record for batch in consumer.poll(0).values() for record in batch):
                headers, request = dict(record.headers), decode(RecommendRequest, record.value)
                seen.append((headers["correlation_id"], request))
                copy = sum(correlation == headers["correlation_id"] for correlation, _ in seen)
                for value in answer(request, copy):
                    producer.send(
                        kafka.topic_prefix + RECOMMEND_REPLIES,
                        value,
                        partition=struct.unpack(">i", place)[0] if (place := headers.get("reply_partition")) else None,
                        headers=[("correlation_id", headers["correlation_id"])],
                    )
            stop.wait(0.002)
