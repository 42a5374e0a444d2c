"""The HTTP gateway as a process, and a load of watches that is posted to it whatever it answers."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx

from infra.platform.guarded_process import GuardedProcess
from infra.platform.health import fetch_health
from infra.platform.run_files import read_run_files
from infra.platform.settings import Settings
from streams.messages import WatchEvent, decode
from streams.topics import WATCH_EVENTS
from tests.harness.beside import beside
from tests.harness.crash.replay import read_all
from tests.harness.system import GATEWAY, cli, process, wait_for_health
from tests.harness.traffic import now_ms

PATIENCE_S = 60.0


@dataclass(frozen=True)
class RunningGateway:
    settings: Settings
    process: GuardedProcess
    address: str  # http://host:port

    def client(self, timeout_s: float = PATIENCE_S) -> httpx.Client:
        return httpx.Client(base_url=self.address, timeout=timeout_s, trust_env=False)

    @property
    def is_ready(self) -> bool:
        with self.client() as http:
            return http.get("/health").status_code == 200


@contextlib.contextmanager
def running_gateway(settings: Settings) -> Iterator[RunningGateway]:
    """`nextwatch gateway` on a free port, ready."""
    with process(settings, GATEWAY, cli(GATEWAY)) as started:
        wait_for_health(settings, started)
        record = next(each for each in read_run_files(settings.run_dir) if each["pid"] == started.pid)
        yield RunningGateway(settings, started, fetch_health(record, settings.metrics)["gateway"])


@dataclass
class Posting:
    """Watches that are posted; `acknowledged` by event id: when each was."""

    acknowledged: dict[str, float] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)
    tag: str = field(default_factory=lambda: uuid.uuid4().hex[:6])

    def post(self, http: httpx.Client, number: int, items: Sequence[str]) -> None:
        """Post one watch once, and note what became of it."""
        event = f"{self.tag}-{number}"
        body = {"event_id": event, "user_id": f"p{number % 40}", "item_id": items[number % len(items)]}
        content = json.dumps(body | {"event_ms": now_ms(), "watch_s": 60.0, "duration_s": 60.0})
        try:
            status = http.post("/watches", content=content).status_code
        except httpx.HTTPError:
            status = 0
        self.statuses[status] += 1
        if status == 202:
            self.acknowledged[event] = time.monotonic()

    def lost(self, settings: Settings) -> list[str]:
        """Acknowledged watches that are not in the topic."""
        raws = (record.value for record in read_all(settings, WATCH_EVENTS))
        there = {decode(WatchEvent, raw).event_id for raw in raws}
        return sorted(self.acknowledged.keys() - there)


@contextlib.contextmanager
def posting(gateway: RunningGateway, items: Sequence[str], per_s: float, at_once: int = 8) -> Iterator[Posting]:
    """While the block runs, `per_s` watches a second as long as the gateway answers at once, none of them twice."""
    load = Posting()

    def post(first: int, http: httpx.Client, stop: object) -> None:
        number = first
        while not stop.wait(at_once / per_s):  # type: ignore[attr-defined]
            load.post(http, number, items)
            number += at_once

    def work(stop: object) -> None:
        with gateway.client() as http, ThreadPoolExecutor(at_once) as pool:
            for done in [pool.submit(post, first, http, stop) for first in range(at_once)]:
                done.result()

    with beside(work, "posting"):
        yield load
