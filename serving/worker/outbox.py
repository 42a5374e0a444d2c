"""Replies, impressions, dead letters and forwarded requests on their way to the brokers.

Impressions are waited for a moment before their replies are sent (serving/worker/dispatcher.py); beyond that no batch
pays for the round trip of the one before: the offset tracker says when requests are done, and has sent again what the
brokers gave back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog
from kafka import KafkaProducer, TopicPartition
from kafka.errors import (
    InvalidTimestampError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    UnknownTopicOrPartitionError,
)
from kafka.future import Future

from infra.platform.kafka_clients import close_producer, kafka_python_options
from infra.platform.settings import Kafka
from serving.worker import patches
from serving.worker.offset_tracker import CLIENT, OffsetTracker, Sent, undelivered
from streams import topics

log = structlog.get_logger(__name__)

OURS = (topics.RECOMMEND_REPLIES, topics.IMPRESSIONS, topics.DEAD_LETTERS, topics.RECOMMEND_REQUESTS, topics.RELEASES)
CLOSE_S = 5.0
DELIVERY_MS = 120_000  # then the producer gives a message back
ANSWER_MS = 30_000  # a broker has so long to answer
MEET_MS = 1000  # the answering thread waits so long for the metadata of a client's topic, once


class Outbox:
    """Topics are given without the prefix, except for a client's own reply topic (`send_outside`).

    The producer's `send` stands still for a minute where it does not know a topic, and it asks for a topic that was
    deleted every 100 ms for ever (serving/worker/patches.py). So ours are known from the start, a topic is only sent to
    while it is known, and an outside one that is known no more is forgotten. `of` is the partition of the request that
    has caused a message.
    """

    def __init__(self, kafka: Kafka) -> None:
        self.offsets = OffsetTracker()
        self._prefix = kafka.topic_prefix
        # Not idempotent: a client's topic that refuses a message must not stall what follows, and readers know
        # duplicates by the request id. One for all: an impression is never behind its reply.
        self._producer = KafkaProducer(
            **kafka_python_options(kafka),
            client_id="nextwatch-serving",
            acks="all",
            enable_idempotence=False,
            linger_ms=0,
            delivery_timeout_ms=DELIVERY_MS,
            request_timeout_ms=ANSWER_MS,
            allow_auto_create_topics=False,
            max_request_size=4 * kafka.max_message_bytes,
            reconnect_backoff_max_ms=2000,
            metrics_enabled=False,
        )
        self._outside: set[str] = set()  # topics that clients have named and the producer has been asked for
        self._missed: set[str] = set()  # of them, those that were not known when they were last needed
        for topic in OURS:
            self._producer.partitions_for(self._prefix + topic)

    def send(self, topic: str, value: bytes, *, of: int, **how: Any) -> Sent:
        """Send to one of our own topics, until it is written; `how`: key, headers, partition, timestamp_ms. One whose
        time its topic does not take gets that of the sending: it would be given back for ever."""

        def again(error: BaseException) -> Any:
            if isinstance(error, InvalidTimestampError):
                how.pop("timestamp_ms", None)
            return self._try(topic, value, how)

        sent = Sent(topic, self._try(topic, value, how), len(value), again)
        self.offsets.add(sent, of)
        return sent

    def tell(self, topic: str, value: bytes | None, **how: Any) -> None:
        """Send to one of our own topics what the next message replaces: if it is not written, that is borne."""
        self.offsets.add(Sent(topic, self._try(topic, value, how)))

    def send_outside(self, topic: str, value: bytes, *, of: int, **how: Any) -> Sent | None:
        """Send to a topic that a client has named; a failure is its own loss, logged and counted."""
        try:
            self._meet(topic)
            sent = Sent(CLIENT, self._producer.send(topic, value, **how), len(value))
        except (KafkaError, ValueError) as error:
            undelivered(error)
            return None
        sent.future.add_both(lambda _: sent)  # it is on its way for longer than offsets wait for it
        self.offsets.add(sent, of)
        return sent

    def drop_gone_topics(self) -> set[str]:
        """Have the producer ask no longer for outside topics that are there no more; these topics."""
        known = patches.known_topics(self._producer)
        waiting = patches.topics_waiting(self._producer)  # these replies may still be sent: an answer may have erred
        gone = self._outside - known - waiting
        self._outside -= gone
        self._missed -= gone
        patches.forget_topics(self._producer, gone, known | {self._prefix + topic for topic in OURS})
        return gone

    def seal(self, offsets: Mapping[TopicPartition, int]) -> None:
        """All that these offsets have caused is sent."""
        self.offsets.seal(offsets)

    def close(self) -> None:
        """Give up what is not acknowledged by now: replies to a client's topic that takes nothing."""
        try:
            close_producer(self._producer, CLOSE_S)
        except KafkaTimeoutError as error:
            log.warning("left with replies that could not be delivered", error=str(error))

    def _try(self, topic: str, value: bytes | None, how: Mapping[str, Any]) -> Any:
        """Send to one of our own topics; the future of it. One that is known no more is not waited for. Raises
        MessageSizeTooLargeError."""
        name = self._prefix + topic
        try:
            if name not in patches.known_topics(self._producer):
                patches.ask_for_topic(self._producer, name)
                raise UnknownTopicOrPartitionError(f"{name} is not there")
            return self._producer.send(name, value, **how)
        except MessageSizeTooLargeError:
            raise
        except (KafkaError, ValueError) as error:  # the latter: the topic was made anew with fewer partitions
            return Future().failure(error)

    def _meet(self, topic: str) -> None:
        """Raises KafkaError for a topic that `send` would wait for. One that is new, or was known until now, is waited
        for here; one that was waited for in vain not again until it is known, or was forgotten."""
        self._outside.add(topic)
        if topic not in patches.known_topics(self._producer):
            if topic in self._missed:
                raise UnknownTopicOrPartitionError(f"{topic} is not there")
            self._missed.add(topic)
            patches.wait_for_topic(self._producer, topic, MEET_MS)
        self._missed.discard(topic)
