"""The broker round trip: answers each request at once with a reply of the usual size, and does nothing else.

`python -m tests.benchmarks.events.echo`, on the topics of its own `kafka.topic_prefix`.
"""

from __future__ import annotations

import contextlib
import signal
import struct
import sys
import time
from collections.abc import Iterator

from kafka import KafkaConsumer, KafkaProducer

from infra.platform.health import Health, serve_health
from infra.platform.kafka_clients import kafka_python_options
from infra.platform.settings import Settings, load_settings
from streams.messages import Recommended, RecommendReply, encode
from streams.topics import RECOMMEND_REPLIES, RECOMMEND_REQUESTS, create_topics
from tests.harness.system import process, wait_for_health, with_section

ITEMS = tuple(Recommended(f"v{n:06d}", n, "two_tower", 3.141592, 27.182818) for n in range(20))


@contextlib.contextmanager
def echoing(settings: Settings) -> Iterator[Settings]:
    """Run it, on topics of its own beside those of `settings`."""
    echo = with_section(settings, "kafka", topic_prefix="echo-")
    create_topics(echo.kafka)
    with process(echo, "echo", [sys.executable, "-m", "tests.benchmarks.events.echo"]) as started:
        wait_for_health(echo, started)
        yield echo


def main() -> None:
    settings = load_settings()
    kafka, prefix = settings.kafka, settings.kafka.topic_prefix
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    consumer = KafkaConsumer(
        prefix + RECOMMEND_REQUESTS,
        **kafka_python_options(kafka),
        group_id=f"{prefix}echo",
        auto_offset_reset="earliest",
    )
    producer = KafkaProducer(**kafka_python_options(kafka), acks="all")
    health = Health("echo")
    with serve_health(health, settings, started_ms=round(time.time() * 1000)):
        while True:
            for records in consumer.poll(50).values():
                for record in records:
                    headers = dict(record.headers)
                    (partition,) = struct.unpack(">i", headers["reply_partition"])
                    producer.send(
                        prefix + RECOMMEND_REPLIES,
                        encode(RecommendReply("echo", ITEMS)),
                        partition=partition,
                        headers=[("correlation_id", headers["correlation_id"])],
                    )
            health.ready = bool(consumer.assignment())


if __name__ == "__main__":
    main()
