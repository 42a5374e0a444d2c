"""How many watch events a second a history worker handles, at what CPU, beside a no-op and a plain Faust agent.

Histories are full before the first event comes: a history of few watches costs a third of one of 50, and that is not
what a worker meets.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any
from uuid import UUID

from kafka import KafkaConsumer, TopicPartition

from infra.local.broker import Broker, start_broker
from infra.platform.guarded_process import GuardedProcess
from infra.platform.health import fetch_health
from infra.platform.kafka_clients import kafka_python_options
from infra.platform.run_files import fill_in, read_run_files
from infra.platform.settings import Kafka, Settings
from streams.kafka.follow import read_to_end
from streams.messages import TrainingExample, UserHistory, Watch, WatchEvent, decode, encode
from streams.topics import TRAINING_EXAMPLES, USER_HISTORIES, WATCH_EVENTS, create_topics
from tests.benchmarks.load import create_load, send_all
from tests.benchmarks.report import Report
from tests.harness.system import (
    Cluster,
    cli,
    cpu_s,
    process,
    stopping,
    temporary_settings,
    wait_for_health,
    wait_until,
    with_section,
)

PARTITIONS = 4
PATIENCE_S = 120.0
WATCHES = 50  # of each user, beforehand
STEADY_PER_S = 200

Messages = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Lane:
    name: str
    command: Sequence[str]
    group: str
    workers: int = 1
    steady_s: float = 0.0  # so long STEADY_PER_S come, where not all come at once


@dataclass(frozen=True)
class Run:
    events: int
    wall_s: float
    cpu_s: tuple[float, ...]  # by worker
    broker_cpu_s: float

    @property
    def rate(self) -> float:
        return self.events / self.wall_s

    def row(self, what: str, plain: float, noop: float) -> dict[str, Any]:
        return {
            "what": what,
            "events/s": self.rate,
            "of no-op": f"{self.rate / noop:.2f}",
            "of plain": f"{self.rate / plain:.2f}",
            "CPU ms an event": f"{1000 * sum(self.cpu_s) / self.events:.3f}",
            "CPU of each worker": ", ".join(f"{spent_s / self.wall_s:.0%}" for spent_s in self.cpu_s),
            "CPU of the broker": f"{self.broker_cpu_s / self.wall_s:.0%}",
        }


BASELINES = [sys.executable, "-m", "tests.benchmarks.events.baselines"]
LANES = (
    Lane("no-op agent", [*BASELINES, "noop"], "noop"),
    Lane("plain agent", [*BASELINES, "plain"], "plain"),
    Lane("history worker", cli("worker", "history"), "history"),
    Lane("history worker x 2", cli("worker", "history"), "history", workers=2),
    Lane(f"history worker, {STEADY_PER_S}/s", cli("worker", "history"), "history", steady_s=20.0),
)


def measure(report: Report, quick: bool) -> None:
    """Events/s of one and two history workers, a no-op agent and a plainly written one, on the same events."""
    events, users, rounds = (8000, 1000, 1) if quick else (40_000, 5000, 3)
    report.title = f"history: {events:,} watches of {users:,} users, {PARTITIONS} partitions, histories of {WATCHES}"
    now_ms = round(time.time() * 1000)
    histories = make_histories(users, now_ms - 1000 * events)
    messages = make_messages(events, users, now_ms)
    runs: dict[str, list[Run]] = {lane.name: [] for lane in LANES}
    with temporary_settings(kafka={"partitions": PARTITIONS}) as settings, stopping(start_broker(settings)) as broker:
        report.note(f"broker: {broker_name(broker)}; median of {rounds} rounds; a history {size_of(histories):,} bytes")
        for round_ in range(rounds):
            for number, lane in enumerate(LANES):
                own = fill_in(settings, broker.bootstrap, "")
                own = with_section(own, "kafka", topic_prefix=f"r{round_}-{number}-")
                own = own.model_copy(update={"data_dir": settings.data_dir / f"r{round_}-{number}"})
                runs[lane.name].append(measure_lane(lane, own, histories, messages, broker))
    middle = {name: sorted(of_lane, key=lambda run: run.rate)[len(of_lane) // 2] for name, of_lane in runs.items()}
    for name, run in middle.items():
        report.add(**run.row(name, middle["plain agent"].rate, middle["no-op agent"].rate))
    report.bar("history worker / plain agent", middle["history worker"].rate / middle["plain agent"].rate, at_least=2.5)


def make_histories(users: int, before_ms: int) -> Messages:
    """A history of each user, full of completed watches from before."""
    return [
        (f"u{user}".encode(), encode(UserHistory(f"u{user}", tuple(_watches(user, before_ms)), produced_ms=before_ms)))
        for user in range(users)
    ]


def _watches(user: int, before_ms: int) -> Iterator[Watch]:
    rng = Random(user)
    for n in range(WATCHES):
        event_ms, watch_s = before_ms - 60_000 * (WATCHES - n), round(rng.uniform(20.0, 60.0), 3)
        yield Watch(_item_id(rng), event_ms, watch_s, 60.0, True, _event_id(rng), -1)


def make_messages(events: int, users: int, now_ms: int) -> Messages:
    """Completed watches, the users in turn, a second apart up to now."""
    rng = Random(-1)
    return [
        (
            f"u{n % users}".encode(),
            encode(
                WatchEvent(
                    event_id=_event_id(rng),
                    user_id=f"u{n % users}",
                    item_id=_item_id(rng),
                    event_ms=now_ms - 1000 * (events - n),
                    watch_s=round(rng.uniform(20.0, 60.0), 3),
                    duration_s=60.0,
                )
            ),
        )
        for n in range(events)
    ]


def _item_id(rng: Random) -> str:
    return f"video-{rng.randrange(100_000):05}"


def _event_id(rng: Random) -> str:
    return str(UUID(int=rng.getrandbits(128)))


def size_of(histories: Messages) -> int:
    return sum(len(value) for _, value in histories) // len(histories)


def measure_lane(lane: Lane, settings: Settings, histories: Messages, messages: Messages, broker: Broker) -> Run:
    """Start the lane's workers on the histories, send the events once they are ready, and wait until the last effect is
    written."""
    create_topics(settings.kafka)
    send_all(settings.kafka, USER_HISTORIES, histories)
    messages = messages[: round(STEADY_PER_S * lane.steady_s)] if lane.steady_s else messages
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(Cluster(settings.kafka))
        workers = [
            stack.enter_context(process(settings, f"{lane.group}-{n}", lane.command)) for n in range(lane.workers)
        ]
        wait_for_group(settings, lane, workers, cluster)
        written = cluster.total(USER_HISTORIES)
        pids = [worker.pid for worker in workers] + [broker.process.pid]
        cpu_before = [cpu_s(pid) for pid in pids]
        began_s = time.time()
        (send_steadily if lane.steady_s else send_all)(settings.kafka, WATCH_EVENTS, messages)
        wall_s = wait_for_end(settings, lane, len(messages), cluster) - began_s
        *spent_s, broker_s = [cpu_s(pid) - before for pid, before in zip(pids, cpu_before, strict=True)]
        if lane.group != "noop" and cluster.total(USER_HISTORIES) == written:
            raise RuntimeError(f"{lane.name}: no history was written")
    if lane.group != "noop":
        check(settings, {key for key, _ in messages})
    return Run(len(messages), wall_s, tuple(spent_s), broker_s)


def send_steadily(kafka: Kafka, topic: str, messages: Messages) -> None:
    """Send STEADY_PER_S of them a second."""
    producer, began_s = create_load(kafka, linger_ms=1), time.monotonic()
    for number, (key, value) in enumerate(messages):
        time.sleep(max(0.0, began_s + number / STEADY_PER_S - time.monotonic()))
        producer.produce(kafka.topic_prefix + topic, key=key, value=value)
        producer.poll(0)
    if left := producer.flush(30):
        raise RuntimeError(f"{topic}: {left} not acknowledged")


def check(settings: Settings, users: set[bytes]) -> None:
    """Raise RuntimeError unless the histories of these users, and what was learnt from them, are full and of now."""
    newest = {record.key: record.value for record in read_to_end(settings.kafka, USER_HISTORIES)}
    stale = [key for key in users if not _is_full(decode(UserHistory, newest[key]))]
    thin = sum(
        len(decode(TrainingExample, record.value).watches) != WATCHES
        for record in read_to_end(settings.kafka, TRAINING_EXAMPLES)
    )
    if stale or thin:
        raise RuntimeError(f"{len(stale)} of {len(users)} histories are not as they should be, and {thin} examples")


def _is_full(history: UserHistory) -> bool:
    return len(history.watches) == WATCHES and history.watch_offset >= 0 and history.watches[-1].offset >= 0


def wait_for_group(settings: Settings, lane: Lane, workers: Sequence[GuardedProcess], cluster: Cluster) -> None:
    """Return when all workers are ready, as members of a group that has settled."""
    wait_for_health(settings, *workers)
    wait_until(lambda: cluster.is_settled(lane.group, len(workers)), f"{lane.name}: group settled", PATIENCE_S)
    wait_for_health(settings, *workers)


def wait_for_end(settings: Settings, lane: Lane, events: int, cluster: Cluster) -> float:
    """When the last event's last effect was written (Unix time, seconds)."""
    if lane.group == "noop":
        return wait_for_count(settings, events)
    wait_until(lambda: cluster.total(TRAINING_EXAMPLES) >= events, f"{lane.name}: {events} examples", PATIENCE_S)
    until_still(lambda: cluster.total(USER_HISTORIES))
    if (examples := cluster.total(TRAINING_EXAMPLES)) != events:
        raise RuntimeError(f"{lane.name}: {examples} examples of {events} events")
    places = cluster.ends(TRAINING_EXAMPLES) | cluster.ends(USER_HISTORIES)
    with contextlib.closing(KafkaConsumer(**kafka_python_options(settings.kafka))) as consumer:
        return max(last_ms(consumer, place, end) for place, end in places.items() if end) / 1000


def wait_for_count(settings: Settings, events: int) -> float:
    def detail() -> dict[str, Any]:
        return fetch_health(read_run_files(settings.run_dir)[0])

    wait_until(lambda: detail().get("events", 0) >= events, f"{events} events", PATIENCE_S)
    return float(detail()["last_s"])


def last_ms(consumer: KafkaConsumer, place: TopicPartition, end: int) -> int:
    """The time stamp of a partition's last record."""
    consumer.assign([place])
    consumer.seek(place, end - 1)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for records in consumer.poll(timeout_ms=500).values():
            return int(records[-1].timestamp)
    raise TimeoutError(f"no record at {place} {end - 1}")


def broker_name(broker: Broker) -> str:
    return "Apache Kafka" if broker.kind == "kafka" else "noida (KAFKA_HOME is not set)"


def until_still(count: Callable[[], float], still_s: float = 0.5) -> None:
    """Return when a number has not changed for a while: the writes that follow the last example are done."""
    last, since = count(), time.monotonic()
    while time.monotonic() - since < still_s:
        time.sleep(0.05)
        if (now := count()) != last:
            last, since = now, time.monotonic()
