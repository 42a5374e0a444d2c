"""The HTTP gateway beside the Kafka client, in turns on one system; and an outage of the broker under posted watches.

Both ask the same server for the same users. The gateway asks through the client itself, so what it costs is HTTP.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory

from infra.local.broker import start_broker
from infra.platform.kafka_clients import client_options
from infra.platform.settings import Gateway, Kafka, Settings
from infra.simulation.world import NOTICE
from nextwatch_client import RecommendClient, RecommendRequest
from streams.topics import create_topics
from tests.benchmarks.report import Report, percentiles, say
from tests.harness.gateways import RunningGateway, posting, running_gateway
from tests.harness.service import Size, running_service
from tests.harness.system import cpu_s, fill_in, stopping, wait_until
from tests.harness.traffic import now_ms

SIZE, QUICK_SIZE = Size(users=300, items=2000, watches=20_000, dim=32), Size()
CONCURRENCIES = (1, 16)
ROUNDS, QUICK_ROUNDS = 4, 2
REQUESTS, QUICK_REQUESTS = 400, 100  # of a round, at each concurrency
AWAY_S, QUICK_AWAY_S = 30.0, 6.0
WATCHES_PER_S = 40.0
MANY = 1000  # watches of one body
LEAST_SHARE = 0.8


@dataclass
class Found:
    """What one way of asking came to."""

    ms: list[float] = field(default_factory=list)
    wall_s: float = 0.0

    @property
    def per_s(self) -> float:
        return len(self.ms) / self.wall_s


class Connections:
    """Kept-alive connections to a gateway, one for each request that is in flight."""

    def __init__(self, gateway: RunningGateway, count: int) -> None:
        self._free: SimpleQueue[http.client.HTTPConnection] = SimpleQueue()
        for _ in range(count):
            self._free.put(http.client.HTTPConnection(gateway.address.removeprefix("http://"), timeout=60))

    def ask(self, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
        """Return status and body."""
        connection = self._free.get()
        try:
            connection.request(method, path, body)
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            self._free.put(connection)

    def close(self) -> None:
        while not self._free.empty():
            self._free.get().close()


def measure(report: Report, quick: bool) -> None:
    """Requests over HTTP and over Kafka in turns, watches posted, and a broker that is away for 30 s."""
    report.title = "HTTP gateway: requests beside the Kafka client's, watches, an outage of the broker"
    report.note(NOTICE)
    with TemporaryDirectory(prefix="nextwatch-") as directory:
        add_requests(report, Path(directory), quick=quick)
    with TemporaryDirectory(prefix="nextwatch-") as directory:
        add_watches_and_outage(report, Path(directory), QUICK_AWAY_S if quick else AWAY_S)


def add_requests(report: Report, data_dir: Path, *, quick: bool) -> None:
    rounds, count = (QUICK_ROUNDS, QUICK_REQUESTS) if quick else (ROUNDS, REQUESTS)
    with (
        running_service(data_dir, 1, QUICK_SIZE if quick else SIZE) as service,
        running_gateway(service.settings) as gateway,
        RecommendClient(client_options(service.settings.kafka)) as client,
    ):
        users = list(itertools.islice(itertools.cycle(service.releases.histories), count))
        for concurrency in CONCURRENCIES:
            over_http, over_kafka, spent_s = Found(), Found(), 0.0
            with contextlib.closing(Connections(gateway, concurrency)) as connections:
                ask_http(connections, users[:50], concurrency)  # warm
                ask_kafka(client, users[:50], concurrency)
                for number in range(rounds):
                    before_s = cpu_s(gateway.process.pid)
                    for way in (0, 1) if number % 2 == 0 else (1, 0):
                        if way == 0:
                            add(over_http, ask_http(connections, users, concurrency))
                        else:
                            add(over_kafka, ask_kafka(client, users, concurrency))
                    spent_s += cpu_s(gateway.process.pid) - before_s
            for name, found in (("HTTP", over_http), ("Kafka client", over_kafka)):
                report.add(requests=name, concurrency=concurrency, **{"a second": found.per_s}, **percentiles(found.ms))
            report.bar(
                f"requests/s over HTTP over the client's, concurrency {concurrency}",
                over_http.per_s / over_kafka.per_s,
                at_least=LEAST_SHARE,
            )
            report.note(f"concurrency {concurrency}: {1000 * spent_s / len(over_http.ms):.1f} ms of CPU a request")


def add(found: Found, more: Found) -> None:
    found.ms += more.ms
    found.wall_s += more.wall_s


def ask_http(connections: Connections, users: Sequence[str], concurrency: int) -> Found:
    def one(user: str) -> bool:
        status, body = connections.ask("GET", f"/recommend/{user}")
        return status == 200 and b'"item_id"' in body

    return timed(one, users, concurrency)


def ask_kafka(client: RecommendClient, users: Sequence[str], concurrency: int) -> Found:
    def one(user: str) -> bool:
        request = RecommendRequest(uuid.uuid4().hex, user)
        reply = client.result(client.submit(request), request, 30.0)
        return reply.error is None and bool(reply.items)

    return timed(one, users, concurrency)


def timed(one: Callable[[str], bool], users: Sequence[str], concurrency: int) -> Found:
    """Ask for all users, so many at a time. Raises RuntimeError when one has no list."""

    def clocked(user: str) -> float:
        began_s = time.perf_counter()
        if not one(user):
            raise RuntimeError("a request was not answered")
        return 1000 * (time.perf_counter() - began_s)

    began_s = time.perf_counter()
    with ThreadPoolExecutor(concurrency) as pool:
        ms = list(pool.map(clocked, users))
    return Found(ms, time.perf_counter() - began_s)


def add_watches_and_outage(report: Report, data_dir: Path, away_s: float) -> None:
    own = Settings(data_dir=data_dir, kafka=Kafka(partitions=2), gateway=Gateway(port=0))
    with stopping(start_broker(own)) as broker:
        settings = fill_in(own, broker.bootstrap, "http://127.0.0.1:1")
        create_topics(settings.kafka)
        with running_gateway(settings) as gateway:
            for at_once, bodies in ((1, 300), (MANY, 10)):
                found = post(gateway, [body_of(number, at_once) for number in range(bodies)], concurrency=4)
                name = f"watches, {at_once} a body"
                report.add(requests=name, concurrency=4, **{"a second": at_once * found.per_s}, **percentiles(found.ms))
            say(f"the broker is away for {away_s:g} s")
            with posting(gateway, ["v"], WATCHES_PER_S) as load:
                time.sleep(3.0)
                broker.process.kill()
                time.sleep(away_s)
                broker.restart()
                back_s = time.monotonic()
                wait_until(lambda: max(load.acknowledged.values()) > back_s + 3.0, "acknowledged again", 120)
            first_s = min(at - back_s for at in load.acknowledged.values() if at > back_s)
            lost = load.lost(settings)
            report.note(
                f"broker away for {away_s:g} s: {len(load.acknowledged):,} watches acknowledged, {load.statuses[503]} "
                f"told to come again, the first one acknowledged {first_s:.1f} s after its return"
            )
            report.bar("acknowledged watches that are lost", len(lost), at_most=0)


def post(gateway: RunningGateway, bodies: Sequence[str], concurrency: int) -> Found:
    with contextlib.closing(Connections(gateway, concurrency)) as connections:
        return timed(lambda body: connections.ask("POST", "/watches", body)[0] == 202, bodies, concurrency)


def body_of(number: int, at_once: int) -> str:
    events = [
        {"event_id": f"b{at_once}-{number}-{at}", "user_id": f"u{at % 97}", "item_id": "v", "event_ms": now_ms()}
        for at in range(at_once)
    ]
    return json.dumps([event | {"watch_s": 60.0, "duration_s": 60.0} for event in events])
