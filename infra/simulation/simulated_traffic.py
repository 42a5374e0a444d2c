"""The simulated world's people, live: their self-chosen watches, and their answers to what our system shows them.

A thread that turns the clock of an infra.simulation.world.World, sends what happened to Kafka, asks for
recommendations for people who open the app, and sends the watches that the lists brought about, with the request's id.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import structlog
from kafka import KafkaProducer
from kafka.errors import KafkaError

from infra.platform.kafka_clients import kafka_python_options
from infra.platform.settings import Kafka
from infra.simulation.world import World
from nextwatch_client import RecommendClient, RecommendReply, RecommendRequest
from streams import topics
from streams.messages import Item, SearchEvent, WatchEvent, encode

log = structlog.get_logger(__name__)

STEP_S = 0.1


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Sender:
    """Sends the world's messages where a product would send them.

    Not idempotent: kafka-python's idempotent producer never sends again after a message has expired in an outage."""

    def __init__(self, kafka: Kafka) -> None:
        self._kafka = kafka
        self._producer = KafkaProducer(
            **kafka_python_options(kafka),
            client_id="nextwatch-world",
            acks="all",
            enable_idempotence=False,
            linger_ms=5,
        )

    def send(self, topic: str, messages: Sequence[Item | WatchEvent | SearchEvent]) -> int:
        """Send each under its key; how many."""
        for message in messages:
            key = message.item_id if isinstance(message, Item) else message.user_id
            place = None if isinstance(message, Item) else topics.partition_of(key, self._kafka.partitions)
            name = self._kafka.topic_prefix + topic
            self._producer.send(name, key=key.encode(), value=encode(message), partition=place)
        return len(messages)

    def flush(self) -> None:
        """Return when all is acknowledged."""
        self._producer.flush(timeout=60)

    def close(self) -> None:
        self._producer.close(timeout=10)


class SimulatedTraffic:
    """The world's people; a context manager that plays them until it ends."""

    def __init__(self, world: World, kafka: Kafka, client: RecommendClient, requests_per_s: float) -> None:
        self.watched = self.asked = self.answered = self.failed = 0
        self._world, self._client = world, client
        self._sender = Sender(kafka)
        self.requests_per_s = requests_per_s  # may be changed while it plays
        self._stopping = threading.Event()
        self._lock = threading.Lock()  # the world is one thread's at a time
        self._waiting: list[tuple[str, Future[RecommendReply]]] = []
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)

    def __enter__(self) -> SimulatedTraffic:
        self._thread.start()
        return self

    def watch(self, user_id: str, *item_ids: str) -> list[WatchEvent]:
        """This person watches these videos to their ends now; returns when the events are acknowledged."""
        with self._lock:
            events = [self._world.watch(user_id, item_id, now_ms(), share=1.0) for item_id in item_ids]
            self.watched += self._sender.send(topics.WATCH_EVENTS, events)
        self._sender.flush()
        return events

    def publish(self, channel: str) -> Item:
        """A new video of this channel appears."""
        with self._lock:
            item = self._world.publish(channel, now_ms())
            self._sender.send(topics.ITEMS, [item])
        self._sender.flush()
        return item

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(10)
        self._sender.close()

    def _run(self) -> None:
        self._world.idle_until(now_ms())
        due = 0.0
        while not self._stopping.wait(STEP_S):
            try:
                with self._lock:
                    self._live()
                    due += self.requests_per_s * STEP_S
                    self._open_app(int(due))
                    due -= int(due)
                    self._answer()
            except KafkaError as error:  # the system is stopping or its broker is away: people try again
                log.debug("the simulated people cannot reach the broker", error=str(error))

    def _live(self) -> None:
        happened = self._world.step(now_ms())
        self._sender.send(topics.ITEMS, happened.items)
        self.watched += self._sender.send(topics.WATCH_EVENTS, happened.watches)
        self._sender.send(topics.SEARCH_EVENTS, happened.searches)

    def _open_app(self, people: int) -> None:
        for user_id in self._world.visitors(people):
            request = RecommendRequest(f"world-{now_ms()}-{self.asked}", user_id, k=20, deadline_ms=5000)
            self._waiting.append((user_id, self._client.submit(request)))
            self.asked += 1

    def _answer(self) -> None:
        """Watch what the replies that have come bring people to watch."""
        waiting, self._waiting = self._waiting, []
        for user_id, future in waiting:
            if not future.done():
                self._waiting.append((user_id, future))
            elif future.cancelled() or future.exception() is not None or future.result().error:
                self.failed += 1
            else:
                self.answered += 1
                reply = future.result()
                shown = [item.item_id for item in reply.items]
                self.watched += self._sender.send(
                    topics.WATCH_EVENTS, self._world.respond(user_id, shown, now_ms(), reply.request_id)
                )


def wait_for(what: Callable[[], Any], timeout_s: float, every_s: float = 0.05) -> Any:
    """The first true value of `what()`; its last value when it is never true within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not (value := what()) and time.monotonic() < deadline:
        time.sleep(every_s)
    return value
