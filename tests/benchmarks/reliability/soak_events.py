"""What happens to a service in a soak: an operator swaps, restarts and loses its parts, an editor takes items down."""

from __future__ import annotations

import contextlib
import itertools
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from infra.operate.roll_back import RollBackRefused, roll_back
from streams.messages import Item, encode
from streams.topics import ITEM_VECTORS
from tests.harness.service import Service
from tests.harness.system import wait_until
from tests.harness.traffic import Traffic, now_ms
from tests.harness.witness import Takedown, Witness

SETTLED_S = 5.0  # after something has happened, until times count as healthy again
HEALTHY, AWAY = "healthy", "Milvus away"
RETRY_S = 60.0


@dataclass
class Spans:
    """What was going on, from when until when, by the monotonic clock."""

    found: list[tuple[str, float, float]] = field(default_factory=list)

    @contextlib.contextmanager
    def during(self, what: str) -> Iterator[None]:
        began_s = time.monotonic()
        try:
            yield
        finally:
            self.found.append((what, began_s, time.monotonic()))

    def at(self, now_s: float) -> str:
        """The shortest of what was going on then; where nothing was, of what had just been."""
        going_on = [
            (now_s >= until_s, until_s - since_s, what)
            for what, since_s, until_s in self.found
            if since_s <= now_s < until_s + SETTLED_S
        ]
        return min(going_on, default=(False, 0.0, HEALTHY))[2]


class Operator:
    """What an operator does, and what an operator fears."""

    def __init__(self, service: Service, servers: Sequence[str], away_s: float) -> None:
        self.spans = Spans()
        self.swaps_s: dict[str, list[float]] = defaultdict(list)  # until all servers answered from it
        self._service, self._servers, self._away_s = service, itertools.cycle(servers), away_s
        self._newest = 0

    def do(self, what: str) -> None:
        match what:
            case "swap":
                self._swap(lambda: None)
            case "swap without Milvus":
                self._swap(self._lose_milvus)
            case "roll back":
                with self._timed(what):
                    self._service.wait_served(self._roll_back())
            case "Milvus killed":
                self._lose_milvus()
            case "server restarted":
                with self.spans.during(what):
                    name = next(self._servers)
                    self._service.processes[name].stop()
                    self._start(name)
            case "server killed":
                with self.spans.during(what):
                    name = next(self._servers)
                    self._service.processes[name].kill()
                    time.sleep(self._away_s)
                    self._start(name)

    def _swap(self, meanwhile: Callable[[], None]) -> None:
        self._newest += 1
        with self._timed("swap"):
            version = self._service.publish(self._newest)
            meanwhile()
            self._service.wait_served(version)

    @contextlib.contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began_s = time.monotonic()
        with self.spans.during("swap"):
            yield
        self.swaps_s[what].append(time.monotonic() - began_s)

    def _roll_back(self) -> str:
        """To the spare; refused for as long as another release is being announced."""
        gone_back: list[str] = []

        def is_done() -> bool:
            with contextlib.suppress(RollBackRefused):
                gone_back.append(roll_back(self._service.settings, wait_s=0.0).version)
            return bool(gone_back)

        wait_until(is_done, "a roll-back", RETRY_S, every_s=0.5)
        return gone_back[0]

    def _lose_milvus(self) -> None:
        time.sleep(0.5)
        with self.spans.during(AWAY):
            self._service.milvus.process.kill()
            time.sleep(self._away_s)
        with self.spans.during("Milvus coming back"):
            self._service.restart_milvus()

    def _start(self, name: str) -> None:
        self._service.start(name, "serving")
        self._service.wait_ready(name)


class Editor:
    """Takes items down that were just shown, puts them up again, and rewrites rows as they are."""

    DOWN_S = 8.0
    MOST_DOWN = 8

    def __init__(self, service: Service, witness: Witness, seed: int = 1) -> None:
        self.done: list[Takedown] = []
        self._service, self._witness = service, witness
        self._traffic = Traffic(service.settings.kafka)
        self._rng = random.Random(seed)
        self._down: dict[str, tuple[float, int]] = {}  # items; when, by the monotonic clock and in ms

    def step(self) -> None:
        """One takedown or return, and some rows."""
        now_s = time.monotonic()
        oldest = next(iter(self._down), None)
        if oldest is not None and now_s - self._down[oldest][0] >= self.DOWN_S:
            self._put_up(oldest)
        elif len(self._down) < self.MOST_DOWN and self._rng.random() < 0.2:
            self._take_down(now_s)
        releases = self._service.releases
        for _ in range(2):
            number = self._rng.randrange(len(releases.bundles))
            item = self._rng.choice(releases.bundles[number].model.item_ids)
            self._traffic.send_later(ITEM_VECTORS, item, encode(self._service.row(number, item)))

    def close(self) -> None:
        for item in list(self._down):
            self._put_up(item)
        self._traffic.close()

    def _take_down(self, now_s: float) -> None:
        item = self._rng.choice(self._witness.last_items or [""])
        if not item or item in self._down:
            return
        if self._rng.random() < 0.5:
            self._traffic.take_down(item)
        else:
            self._traffic.publish(Item(item, available=False))
        self._down[item] = now_s, now_ms()

    def _put_up(self, item: str) -> None:
        _, down_ms = self._down.pop(item)
        self.done.append(Takedown(item, down_ms, now_ms()))
        self._traffic.publish(self._service.releases.items[item])
