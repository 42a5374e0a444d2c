"""History workers and servers on three brokers, and people who watch and ask meanwhile.

A person asks with the client's own patience, and when it has ended, again under the same request id, as the client's
pages say, until a longer patience has ended too. There is no release and no Milvus: what is looked at is the way
through Kafka, and trending answers.
"""

from __future__ import annotations

import contextlib
import itertools
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from infra.local.stack import COMMANDS
from infra.platform.guarded_process import GuardedProcess
from infra.platform.kafka_clients import client_options
from infra.platform.settings import Kafka, Milvus, Settings
from nextwatch_client import RecommendClient, RequestFailed
from streams import topics
from streams.messages import Impression, Item, Trending, decode, encode
from tests.harness.beside import beside, paced
from tests.harness.cluster.brokers import Brokers
from tests.harness.crash.replay import read_all
from tests.harness.outages import Watching, in_histories, start_again
from tests.harness.system import cli, process, wait_for_health
from tests.harness.traffic import Histories, Traffic, now_ms

ITEMS = [f"v{number}" for number in range(50)]
PARTITIONS = 3
CLIENTS = 3  # each reads one partition of the replies
PATIENCE_S = 5.0  # the client's own
WAIT_S = 120.0  # until a person gives up
MOST_WAITING = 2500


@dataclass
class Request:
    """One that a person has made; `answered_s` NaN: nobody has answered."""

    request_id: str
    asked_s: float
    answered_s: float = float("nan")

    @property
    def is_answered(self) -> bool:
        return self.answered_s == self.answered_s

    @property
    def silence_s(self) -> float:
        return self.answered_s - self.asked_s

    def beyond_s(self, able_s: float) -> float:
        """How much of its silence was not the cluster's own, which could answer from `able_s` on."""
        return self.answered_s - max(self.asked_s, able_s)


class People:
    """They ask in turn, each of another user, by one of several clients; each gives up after `wait_s`."""

    def __init__(self, kafka: Kafka, wait_s: float) -> None:
        self.requests: list[Request] = []
        self._wait_s = wait_s
        self._clients = [RecommendClient(client_options(kafka)) for _ in range(CLIENTS)]
        self._pool = ThreadPoolExecutor(max_workers=MOST_WAITING)
        self._tag, self._numbers = uuid.uuid4().hex[:6], itertools.count()

    def ask(self) -> None:
        number = next(self._numbers)
        request = Request(f"{self._tag}-{number}", time.monotonic())
        self.requests.append(request)
        self._pool.submit(self._ask_patiently, request, f"asker-{number % 40}", self._clients[number % CLIENTS])

    def close(self) -> None:
        """Wait for all of them."""
        self._pool.shutdown()
        for client in self._clients:
            client.close()

    def _ask_patiently(self, request: Request, user: str, client: RecommendClient) -> None:
        while time.monotonic() < request.asked_s + self._wait_s:
            with contextlib.suppress(RequestFailed):
                client.recommend(user, k=5, request_id=request.request_id, timeout_s=PATIENCE_S)
                request.answered_s = time.monotonic()
                return


@dataclass
class ClusterSystem:
    """What runs. `start` is given a command's name, and a number where there are several of it."""

    settings: Settings
    brokers: Brokers
    stack: contextlib.ExitStack
    histories: Histories
    processes: dict[str, GuardedProcess] = field(default_factory=dict)
    acknowledged: dict[str, tuple[str, str]] = field(default_factory=dict)

    def start(self, name: str) -> None:
        command = cli(*COMMANDS[name.partition("-")[0]])
        self.processes[name] = self.stack.enter_context(process(self.settings, name, command))

    def topic(self, name: str) -> str:
        return self.settings.kafka.topic_prefix + name

    @contextlib.contextmanager
    def load(
        self, watches_per_s: float, requests_per_s: float, wait_s: float = WAIT_S
    ) -> Iterator[tuple[Watching, People]]:
        """People watch and ask; at the end all watches are acknowledged and all requests answered, or given up after
        `wait_s` each."""
        with (
            contextlib.closing(Watching(self.settings.kafka, ITEMS)) as watching,
            contextlib.closing(People(self.settings.kafka, wait_s)) as people,
            beside(lambda stop: paced(watching.watch, watches_per_s, stop), "watches"),
            beside(lambda stop: paced(people.ask, requests_per_s, stop), "requests"),
        ):
            yield watching, people
        self.acknowledged |= watching.acknowledged

    def lost_and_doubled(self, wait_s: float = 30.0) -> tuple[int, int]:
        """Acknowledged watches that are in no history, and those that are in one twice, when all had time to come."""
        deadline = time.monotonic() + wait_s
        while any(found := in_histories(self.histories, self.acknowledged)) and time.monotonic() < deadline:
            time.sleep(0.5)
        return found

    def impressions(self, requests: Sequence[Request]) -> Counter[str]:
        """How many impressions there are of each of these requests."""
        shown = [decode(Impression, each.value) for each in read_all(self.settings, topics.IMPRESSIONS)]
        ids = {request.request_id for request in requests}
        return Counter(each.request_id for each in shown if each.request_id in ids)


@contextlib.contextmanager
def running_cluster(
    data_dir: Path, session_s: float, processes: Sequence[str] = ("history", "serving")
) -> Iterator[ClusterSystem]:
    """Three brokers, and these processes, ready; those that have stepped aside are started again."""
    with contextlib.ExitStack() as stack:
        brokers = stack.enter_context(Brokers(data_dir, session_s=session_s))
        settings = Settings(
            data_dir=data_dir,
            kafka=Kafka(bootstrap=brokers.bootstrap, topic_prefix="on-three-", partitions=PARTITIONS),
            milvus=Milvus(uri="http://127.0.0.1:9"),
        )
        topics.create_topics(settings.kafka)
        with contextlib.closing(Traffic(settings.kafka)) as traffic:
            tell_items(traffic)
        histories = stack.enter_context(contextlib.closing(Histories(settings.kafka)))
        system = ClusterSystem(settings, brokers, stack, histories)
        for name in processes:
            system.start(name)
        wait_for_health(settings, *system.processes.values())
        brokers.wait_whole()
        with beside(lambda stop: start_again(system, stop), "supervisor"):
            yield system


def tell_items(traffic: Traffic) -> None:
    """A catalogue, and what is watched now."""
    for item in ITEMS:
        traffic.send_later(topics.ITEMS, item, encode(Item(item, duration_s=60.0)))
    counts = tuple((item, float(len(ITEMS) - at)) for at, item in enumerate(ITEMS))
    traffic.send_later(topics.TRENDING, "global/0", encode(Trending("global", 0, now_ms(), 3600.0, counts)))
    traffic.flush()
