"""The process `nextwatch ingest`: reads a team's topics as a consumer group, writes ours.

A round: a batch of what has arrived is mapped, all that it has become is sent, with the dead letters, and acknowledged;
then its offsets are committed, without waiting for the answer. So a crash sends a batch again, or the few that came
after it, and skips nothing, and an event that is sent again has the same id. While the brokers are away the round
stands still.

A partition whose next record cannot be read yet, for want of its schema, is paused there and looked at again, while
the others go on.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import structlog
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from infra.platform import metrics
from infra.platform.fault_points import reached
from infra.platform.health import Health, serve_health
from infra.platform.port_locks import is_listening
from infra.platform.settings import Settings, SettingsError
from streams.ingest.batch import THEIRS, Outgoing, Place, Reader, Taken, readers_of, take
from streams.ingest.clients import create_consumer, create_producer, raw_of
from streams.kafka.follow import require_topics
from streams.kafka.intake import Raw
from streams.kafka.requirements import require_settings
from streams.topics import DEAD_LETTERS, ITEMS, SEARCH_EVENTS, SIGNALS, WATCH_EVENTS

log = structlog.get_logger(__name__)

OURS = (WATCH_EVENTS, SEARCH_EVENTS, SIGNALS, ITEMS, DEAD_LETTERS)
RETRY_S = 2.0  # until a partition that waits for its schema is looked at again
LOOK_S = 2.0  # between two looks for the brokers, and at the lags
FLUSH_S = 0.5
ANSWER_S = 10.0  # for the brokers to say where a partition begins and ends
KAFKA_PORT = 9092  # where none is said
LEAVE_S = 10.0  # a stop waits so long for the brokers at each step: the batch in hand, the last commit, the group


class NotTaken(RuntimeError):
    """The brokers refuse a message of ours for good; nothing of its batch is committed."""


class Stopped(Exception):
    """We are to stop, and the brokers do not acknowledge what is sent."""


def run_ingest(settings: Settings, stop: threading.Event) -> None:
    """Ingest until `stop` is set. Raises SettingsError for a mapping that cannot be used, TopicMissing, TopicUnfit,
    KafkaError when no broker answers, NotTaken, ServiceError when the metrics port is taken."""
    if not settings.ingest.topics:
        raise SettingsError("ingest.topics is empty: which topics are to become ours? (docs/your-topics.md)")
    readers = readers_of(settings)
    require_topics(settings.kafka, OURS)
    require_settings(settings, OURS)
    health = Health("ingest", waiting_for="its group")
    with serve_health(health, settings, started_ms=_now_ms()):
        loop = IngestLoop(settings, health, readers, stop)
        try:
            while not stop.is_set():
                loop.turn()
        except Stopped:
            log.warning("left with records that the brokers have not taken: they are read again")
        finally:
            loop.close()


class IngestLoop:
    """The loop's state; `turn` is one round."""

    def __init__(
        self, settings: Settings, health: Health, readers: Mapping[str, Reader], stop: threading.Event
    ) -> None:
        self._settings, self._health, self._readers, self._stop = settings, health, readers, stop
        self._prefix = settings.kafka.topic_prefix
        self.handled = 0  # records that are sent, passed over, or among the dead letters
        self._ends: dict[Place, int] = {}  # of what is sent and is to be committed
        self._is_committing = False  # the brokers have not answered the last commit yet
        self._next: dict[Place, int] = {}  # the next record of each partition
        self._stuck: dict[Place, str] = {}  # what a partition waits for
        self._paused: set[Place] = set()  # those of them that are not read before `_retry_s`
        self._retry_s = self._look_s = 0.0  # when to do so next, by the monotonic clock
        self._problems: dict[str, str] = {}  # of a topic that cannot be read
        self._failures: list[KafkaError] = []
        self._has_joined, self._are_brokers_there = False, True
        self._looked_at = 0  # `handled` at the last look
        self._lags = metrics.Lags()
        self._producer, self._consumer = create_producer(settings.kafka), create_consumer(settings, self._committed)
        told = {"on_assign": self._assigned, "on_revoke": self._revoked, "on_lost": self._lost}
        self._consumer.subscribe(sorted(readers), **told)

    def turn(self) -> None:
        """One round. Raises NotTaken, and Stopped."""
        self._resume()
        ingest = self._settings.ingest
        batch = list(self._records(self._consumer.consume(ingest.batch, ingest.wait_s)))
        if batch:
            self._handle(batch)
        self._commit()
        if batch:
            reached("ingest: batch done")
        self._look()

    def close(self) -> None:
        self._lags.show({})
        self._commit_for_a_while()
        self._next.clear()  # else they were committed again where they are given up
        closing = threading.Thread(target=self._consumer.close, daemon=True)  # librdkafka's has no limit
        closing.start()
        closing.join(LEAVE_S)
        if closing.is_alive():
            log.warning("left without a word from the brokers: the group finds out by itself")
        self._producer.purge()

    def _records(self, messages: Iterable[Any]) -> Iterator[Raw]:
        for message in messages:
            error, topic = message.error(), message.topic() or ""
            if error is None:
                self._problems.pop(topic, None)
                yield raw_of(message)
            else:
                log.warning("a topic cannot be read", topic=topic, error=error.str())
                self._problems[topic] = f"topic {topic}: {error.str()}"

    def _handle(self, batch: list[Raw]) -> None:
        """Map, send, hold what has to wait."""
        with metrics.BATCH_TIME.labels("ingest").time():
            taken = take(batch, self._readers, self._settings, now_ms=_now_ms())
            self._send(taken.outgoing)
            reached("ingest: events sent")
        metrics.BATCH_SIZE.labels("ingest").observe(len(batch))
        self._ends |= taken.ends
        self._next |= taken.ends
        self._hold(taken)
        self.handled += taken.received.total()
        _count(taken)

    # --- writing -----------------------------------------------------------------------------------------------------

    def _send(self, outgoing: Iterable[Outgoing]) -> None:
        """Send all; return when all is acknowledged. Raises NotTaken, and Stopped."""
        for each in outgoing:
            self._produce(each)
        leave_s = None
        while self._producer.flush(FLUSH_S) and not self._failures:
            self._look()
            if self._stop.is_set():
                leave_s = leave_s or time.monotonic() + LEAVE_S
                if time.monotonic() > leave_s:
                    raise Stopped
        if self._failures:
            raise NotTaken(f"the brokers do not take what we send: {self._failures[0].str()} (nothing is committed)")

    def _produce(self, each: Outgoing) -> None:
        place = {} if each.partition is None else {"partition": each.partition}
        while True:
            try:
                self._producer.produce(
                    self._prefix + each.topic, value=each.value, key=each.key, on_delivery=self._delivered, **place
                )
                return
            except BufferError:  # it holds as much as it may: wait for some of it to be acknowledged
                if self._stop.is_set():
                    raise Stopped from None
                self._producer.poll(FLUSH_S)

    def _delivered(self, error: KafkaError | None, message: Any) -> None:
        if error is not None:
            self._failures.append(error)

    def _commit(self) -> None:
        """Ask for what is sent to be committed; one question at a time."""
        if self._ends and not self._is_committing:
            self._consumer.commit(offsets=self._take_ends(), asynchronous=True)
            self._is_committing = True

    def _committed(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        """Called in `consume`. What was not committed is asked for again, unless it is another's by now."""
        self._is_committing = False
        if error is not None:
            log.warning("offsets are not committed yet", error=error.str())
            for each in partitions:
                if (each.topic, each.partition) in self._next:
                    self._ends.setdefault((each.topic, each.partition), each.offset)

    def _commit_all(self) -> None:
        """Ask for a commit before partitions are given up. librdkafka joins again behind its answer, and we stand still
        for no broker that says nothing. What is not committed, the next owner reads again."""
        if self._next:
            self._ends = self._next | self._ends
            with suppress(KafkaException):
                self._consumer.commit(offsets=self._take_ends(), asynchronous=True)

    def _commit_for_a_while(self) -> None:
        """The last commit. A broker that is there and says nothing is not waited for without end."""
        self._ends, end_s = self._next | self._ends, time.monotonic() + LEAVE_S
        with suppress(KafkaException, Stopped):
            while self._are_brokers_there and (self._ends or self._is_committing) and time.monotonic() < end_s:
                self._commit()
                self._consumer.poll(FLUSH_S / 10)  # what arrives is the next owner's

    def _take_ends(self) -> list[TopicPartition]:
        ends, self._ends = self._ends, {}
        return [TopicPartition(*place, end) for place, end in ends.items()]

    # --- partitions --------------------------------------------------------------------------------------------------

    def _hold(self, taken: Taken) -> None:
        """Keep the partitions that have to wait where they are."""
        for place in taken.ends:
            self._stuck.pop(place, None)
        for place, (offset, why) in taken.stuck.items():
            if self._stuck.get(place) != why:
                log.warning("a record has to wait", topic=place[0], partition=place[1], offset=offset, waits_for=why)
            self._stuck[place], self._next[place] = why, offset
            self._paused.add(place)
            self._retry_s = time.monotonic() + RETRY_S
            here = TopicPartition(*place, offset)
            self._consumer.pause([here])
            self._consumer.seek(here)

    def _resume(self) -> None:
        """Look again at the records that have waited for a while."""
        if self._paused and time.monotonic() >= self._retry_s:
            self._consumer.resume([TopicPartition(*place) for place in self._paused])
            self._paused.clear()

    def _assigned(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        metrics.REBALANCES.inc()
        self._has_joined = True
        for topic in {"", *(each.topic for each in partitions)}:  # "": of an error that names none
            self._problems.pop(topic, None)
        if self._settings.ingest.start == "latest":
            self._begin_at_the_end(partitions)
        log.info("partitions assigned", partitions=[f"{each.topic}/{each.partition}" for each in partitions])

    def _begin_at_the_end(self, partitions: list[TopicPartition]) -> None:
        """Settle once where a partition begins of which nothing was read yet, also where nothing comes for long: what
        comes while nobody reads is then not skipped. Raises Stopped."""
        while True:
            try:
                self._consumer.assign([self._beginning(each) for each in self._committed_of(partitions)])
                return
            except KafkaException as error:
                log.warning("where to begin is not known yet", error=error.args[0].str())
            self._look()
            if self._stop.wait(FLUSH_S):
                raise Stopped

    def _committed_of(self, partitions: list[TopicPartition]) -> list[TopicPartition]:
        found: list[TopicPartition] = self._consumer.committed(partitions, ANSWER_S)
        for each in found:
            if each.error is not None:
                raise KafkaException(each.error)
        return found

    def _beginning(self, committed: TopicPartition) -> TopicPartition:
        """What is not committed yet is, with the next round."""
        if committed.offset < 0:
            place = committed.topic, committed.partition
            end = self._consumer.get_watermark_offsets(committed, ANSWER_S)[1]
            self._next[place] = self._ends[place] = committed.offset = end
        return committed

    def _revoked(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        """Called between rounds, so all that was read is sent."""
        self._commit_all()
        self._lost(consumer, partitions)

    def _lost(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        """They may be another's already, who reads again what is not committed."""
        places = {(each.topic, each.partition) for each in partitions}
        if paused := places & self._paused:  # else they would still be so when they come back to us
            self._consumer.resume([TopicPartition(*place) for place in paused])
        self._paused -= places
        for place in places:
            self._problems.pop(place[0], None)
            for held in (self._ends, self._next, self._stuck):
                held.pop(place, None)  # type: ignore[attr-defined]

    # --- telling -----------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Say now and then whether all is well, and how much is not handled yet."""
        if time.monotonic() >= self._look_s:
            self._look_s = time.monotonic() + LOOK_S
            has_moved, self._looked_at = self.handled != self._looked_at, self.handled
            addresses = addresses_of(self._settings.kafka.bootstrap)
            self._are_brokers_there = has_moved or any(is_listening(address) for address in addresses)
            lags = {(THEIRS + topic, partition): self._lag((topic, partition)) for topic, partition in self._next}
            self._lags.show(lags)
            self._health.detail["lag"] = sum(lags.values())
        waits_for = [] if self._are_brokers_there else ["the brokers"]
        waits_for += [] if self._has_joined else ["its group"]
        waits_for += [*dict.fromkeys(self._stuck.values()), *self._problems.values()]
        self._health.ready, self._health.waiting_for = not waits_for, "; ".join(waits_for)

    def _lag(self, place: Place) -> int:
        end = self._consumer.get_watermark_offsets(TopicPartition(*place), cached=True)[1]
        return max(0, int(end) - self._next[place])


def addresses_of(bootstrap: str) -> list[str]:
    """Each broker as `host:port`, however librdkafka may be told of it."""
    named = filter(None, (each.strip() for each in bootstrap.split(",")))
    return [each if re.search(r":\d+$", each) else f"{each}:{KAFKA_PORT}" for each in named]


def _count(taken: Taken) -> None:
    for topic, count in taken.received.items():
        metrics.RECEIVED.labels(THEIRS + topic).inc(count)
    for topic, count in taken.passed_over.items():
        metrics.INGEST_PASSED_OVER.labels(THEIRS + topic).inc(count)
    for (topic, code), count in taken.refused.items():
        metrics.REJECTED.labels(THEIRS + topic, code).inc(count)
    for topic, count in taken.sent().items():
        metrics.SENT.labels(topic).inc(count)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
