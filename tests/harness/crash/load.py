"""What viewers and editors do while everything dies: watches, searches, signals, requests, takedowns, in an order that
a seed decides, and what the brokers have acknowledged of it.

Among the watches some come twice, some late, some on another partition than their user's, and some cannot be read. Half
are of what the viewer was just shown, and most of these say so by the request's id.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter, deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from kafka import KafkaProducer
from kafka.errors import KafkaError

from infra.platform.kafka_clients import client_options, close_producer, kafka_python_options
from infra.platform.settings import Kafka
from nextwatch_client import RecommendClient, RecommendReply, RequestFailed
from streams.messages import Item, SearchEvent, SignalEvent, WatchEvent, encode
from streams.topics import ITEMS, SEARCH_EVENTS, SIGNALS, WATCH_EVENTS, partition_of
from tests.harness.beside import beside
from tests.harness.requests import Asked
from tests.harness.traffic import DURATION_S, now_ms
from tests.harness.witness import Takedown

PATIENCE_S = 5.0  # the client's own, within which it sends once more; who waits longer asks again under the same id
AGAIN_S = tuple(PATIENCE_S / 2 * number for number in range(1, 100))
DOWN_MS = 8000
MOST_DOWN = 6
MOST_TOGETHER = 9  # watches that come in one moment: then a batch is more than one event
LATE_MS = 2000
ACKNOWLEDGE_S = 240.0
SAYING, SAID_OF = 12, 4  # so few users say something of so few items that they change their minds
KINDS: tuple[Any, ...] = ("like", "dislike", "not_interested", "undo", "share", "save")
WORDS = ("red", "cars", "cats", "how", "to", "cook", "fast")


@dataclass(frozen=True)
class Pace:
    """Per second."""

    watches: float = 20.0
    requests: float = 4.0
    searches: float = 1.0
    takedowns: float = 0.5
    signals: float = 1.0


@dataclass
class Sent:
    """What was told to the brokers: by (topic, what it is known by) the future of its acknowledgement."""

    futures: dict[tuple[str, str], Any] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    takedowns: list[Takedown] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def acknowledged(self, topic: str) -> set[str]:
        return {name for (of, name), future in self.futures.items() if of == topic and future.succeeded()}


class Load:
    """One thread sends at `pace` while the block runs; `items` is the catalogue by id, all of it published first."""

    def __init__(self, kafka: Kafka, seed: int, users: int, items: dict[str, Item], pace: Pace = Pace()) -> None:
        self.sent = Sent()
        self._kafka, self._pace, self._items = kafka, pace, items
        self._users = [f"viewer-{number}" for number in range(users)]
        self._rng = random.Random(seed)
        self._numbers: Counter[str] = Counter()
        self._shown: deque[tuple[str, str, tuple[str, ...]]] = deque(maxlen=50)  # user, request id, items
        self._failed: deque[Asked] = deque()
        self._last: list[WatchEvent] = []
        self._taken_ms: set[tuple[str, int]] = set()  # a user's watches are never at the same time
        self._down: dict[str, list[int]] = {}  # items, and when that was acknowledged, as soon as it is
        self._client = RecommendClient(client_options(kafka))
        self._producer = KafkaProducer(**kafka_python_options(kafka), acks="all", delivery_timeout_ms=240_000)

    def publish_catalogue(self) -> None:
        for item in self._items.values():
            self._send(ITEMS, item.item_id, item.item_id, encode(item))
        self._producer.flush(timeout=ACKNOWLEDGE_S)

    def running(self) -> contextlib.AbstractContextManager[None]:
        return beside(self._run, "load")

    def finish(self, patience_s: float) -> None:
        """Wait until everything is acknowledged and every request has its reply, or nobody waits any more."""
        self._producer.flush(timeout=patience_s)
        deadline = time.monotonic() + patience_s
        while any(each.reply is None for each in self.sent.asked) and time.monotonic() < deadline:
            self._ask_again()
            time.sleep(0.2)
        for item, acknowledged_ms in self._down.items():
            self.sent.takedowns += [Takedown(item, down_ms, float("inf")) for down_ms in acknowledged_ms]

    @property
    def down(self) -> set[str]:
        """The items that are taken down and were not put up again."""
        return set(self._down)

    def close(self) -> None:
        self._client.close()
        with contextlib.suppress(KafkaError):  # what was not delivered was not acknowledged either
            close_producer(self._producer, timeout_s=5)

    def _run(self, stop: threading.Event) -> None:
        kinds = {"watches": self._burst, "requests": self._request, "searches": self._search, "takedowns": self._edit}
        kinds["signals"] = self._signal
        pace = self._pace
        rates = [pace.watches / (1 + MOST_TOGETHER) * 2, pace.requests, pace.searches, pace.takedowns, pace.signals]
        due_s = time.monotonic()
        while not stop.wait(max(0.0, due_s - time.monotonic())):
            self._ask_again()
            (kind,) = self._rng.choices(list(kinds), rates)
            kinds[kind]()
            self.sent.counts[kind] += 1
            due_s += self._rng.expovariate(sum(rates))

    # --- watches -----------------------------------------------------------------------------------------------------

    def _burst(self) -> None:
        for _ in range(self._rng.randint(1, MOST_TOGETHER)):
            self._watch()

    def _watch(self) -> None:
        chance = self._rng.random()
        if chance < 0.03 and self._last:
            self._tell(self._rng.choice(self._last[-50:]))
        elif chance < 0.04:
            user = self._rng.choice(self._users)
            self._send(WATCH_EVENTS, self._name("bad"), user, b'{"event_id": "bad", "user_id"')
        else:
            event = self._next_watch()
            self._last.append(event)
            self._tell(event, astray=chance > 0.98)

    def _next_watch(self) -> WatchEvent:
        rng, request_id = self._rng, None
        user, item = rng.choice(self._users), rng.choice(list(self._items))
        if self._shown and rng.random() < 0.5:
            user, shown_by, items = rng.choice(self._shown)
            item = rng.choice(items)
            request_id = shown_by if rng.random() < 0.7 else None
        event_ms = self._moment(user, late=0.1)
        watch_s = rng.uniform(0, DURATION_S)
        return WatchEvent(self._name("watch"), user, item, event_ms, watch_s, DURATION_S, request_id)

    def _tell(self, event: WatchEvent, *, astray: bool = False) -> None:
        partitions = self._kafka.partitions
        home = partition_of(event.user_id, partitions)
        place = (home + 1) % partitions if astray else home
        self._send(WATCH_EVENTS, event.event_id, event.user_id, encode(event), partition=place)

    # --- the rest ----------------------------------------------------------------------------------------------------

    def _search(self) -> None:
        user, query = self._rng.choice(self._users), " ".join(self._rng.sample(WORDS, 2))
        event = SearchEvent(self._name("search"), user, query, self._moment(user))
        self._send(SEARCH_EVENTS, event.event_id, user, encode(event))

    def _signal(self) -> None:
        rng, about = self._rng, self._rng.choice(list(self._items)[:SAID_OF])
        user, channel = rng.choice(self._users[:SAYING]), self._items[about].channel
        of = {"channel": channel} if channel and rng.random() < 0.2 else {"item_id": about}
        event = SignalEvent(self._name("signal"), user, rng.choice(KINDS), self._moment(user, late=0.3), **of)
        self._send(SIGNALS, event.event_id, user, encode(event))

    def _moment(self, user: str, late: float = 0.0) -> int:
        """A time of an event of the user's own; with this chance it is of a while ago."""
        event_ms = now_ms() - (self._rng.randrange(LATE_MS) if late and self._rng.random() < late else 0)
        while (user, event_ms) in self._taken_ms:
            event_ms -= 1
        self._taken_ms.add((user, event_ms))
        return event_ms

    def _request(self) -> None:
        user = self._rng.choice(self._users)
        asked = Asked(f"{user}/{self._name('request')}")
        self.sent.asked.append(asked)
        self._ask(asked)

    def _ask(self, asked: Asked) -> None:
        def remember(future: Future[RecommendReply]) -> None:
            if isinstance(future.exception(), RequestFailed):
                self._failed.append(asked)
            elif items := future.result().items:
                self._shown.append((asked.user_id, asked.request_id, tuple(each.item_id for each in items)))

        asked.send(self._client, AGAIN_S).future.add_done_callback(remember)

    def _ask_again(self) -> None:
        """What the brokers did not take in time is asked anew, under its own id and at once, as a caller would."""
        while self._failed:
            self.sent.counts["asked anew"] += 1
            self._ask(self._failed.popleft())

    def _edit(self) -> None:
        """Take an item down that was just shown, or put up the one that has been down for long enough."""
        oldest = next(iter(self._down), "")
        if any(now_ms() - down_ms >= DOWN_MS for down_ms in self._down.get(oldest, ())):
            self.sent.takedowns += [Takedown(oldest, down_ms, now_ms()) for down_ms in self._down.pop(oldest)]
            self._send(ITEMS, self._name("up"), oldest, encode(self._items[oldest]))
        elif self._shown and len(self._down) < MOST_DOWN:
            item = self._rng.choice(self._rng.choice(self._shown)[2])
            if item not in self._down:
                value = None if self._rng.random() < 0.5 else encode(Item(item, available=False))
                acknowledged_ms = self._down[item] = []
                self._send(ITEMS, self._name("down"), item, value).add_callback(
                    lambda _: acknowledged_ms.append(now_ms())
                )

    def _send(self, topic: str, name: str, key: str, value: bytes | None, **how: Any) -> Any:
        future = self._producer.send(self._kafka.topic_prefix + topic, value, key=key.encode(), **how)
        self.sent.futures[topic, name] = future
        return future

    def _name(self, kind: str) -> str:
        self._numbers[kind] += 1
        return f"{kind}-{self._numbers[kind]}"
