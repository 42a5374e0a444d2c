"""How many watch events a second a history worker handles, beside a no-op and a plain Faust agent in the same run."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kafka import KafkaConsumer, TopicPartition

from infra.local.broker import Broker, start_broker
from infra.platform.guarded_process import GuardedProcess
from infra.platform.health import fetch_health
from infra.platform.kafka_clients import kafka_python_options
from infra.platform.run_files import fill_in, read_run_files
from infra.platform.settings import Settings
from streams.messages import WatchEvent, encode
from streams.topics import TRAINING_EXAMPLES, USER_HISTORIES, WATCH_EVENTS, create_topics
from tests.benchmarks.load import send_all
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

Messages = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Lane:
    name: str
    command: Sequence[str]
    group: str
    workers: int = 1


@dataclass(frozen=True)
class Run:
    rate: float
    shares: tuple[float, ...]  # of one CPU, by worker
    broker_share: float

    def row(self, what: str, plain: float, noop: float) -> dict[str, Any]:
        return {
            "what": what,
            "events/s": self.rate,
            "of no-op": f"{self.rate / noop:.2f}",
            "of plain": f"{self.rate / plain:.2f}",
            "CPU of each worker": ", ".join(f"{share:.0%}" for share in self.shares),
            "CPU of the broker": f"{self.broker_share:.0%}",
        }


BASELINES = [sys.executable, "-m", "tests.benchmarks.events.baselines"]
LANES = (
    Lane("no-op agent", [*BASELINES, "noop"], "noop"),
    Lane("plain agent", [*BASELINES, "plain"], "plain"),
    Lane("history worker", cli("worker", "history"), "history"),
    Lane("history worker x 2", cli("worker", "history"), "history", workers=2),
)


def measure(report: Report, quick: bool) -> None:
    """Events/s of one and two history workers, a no-op agent and a plainly written one, on the same events."""
    events, users, rounds = (8000, 1000, 1) if quick else (40_000, 5000, 3)
    report.title = f"history: {events:,} watches of {users:,} users, {PARTITIONS} partitions, histories of 50"
    messages = make_messages(events, users, round(time.time() * 1000))
    runs: dict[str, list[Run]] = {lane.name: [] for lane in LANES}
    with temporary_settings(kafka={"partitions": PARTITIONS}) as settings, stopping(start_broker(settings)) as broker:
        report.note(f"broker: {broker_name(broker)}; median of {rounds} rounds")
        for round_ in range(rounds):
            for number, lane in enumerate(LANES):
                own = fill_in(settings, broker.bootstrap, "")
                own = with_section(own, "kafka", topic_prefix=f"r{round_}-{number}-")
                own = own.model_copy(update={"data_dir": settings.data_dir / f"r{round_}-{number}"})
                runs[lane.name].append(measure_lane(lane, own, messages, broker))
    middle = {name: sorted(of_lane, key=lambda run: run.rate)[len(of_lane) // 2] for name, of_lane in runs.items()}
    for name, run in middle.items():
        report.add(**run.row(name, middle["plain agent"].rate, middle["no-op agent"].rate))
    report.bar("history worker / plain agent", middle["history worker"].rate / middle["plain agent"].rate, at_least=2.5)


def make_messages(events: int, users: int, now_ms: int) -> Messages:
    """Completed watches, the users in turn, a second apart up to now."""
    return [
        (
            f"u{n % users}".encode(),
            encode(
                WatchEvent(
                    event_id=f"e{n}",
                    user_id=f"u{n % users}",
                    item_id=f"i{n * 7919 % 10_007}",
                    event_ms=now_ms - 1000 * (events - n),
                    watch_s=30.0,
                    duration_s=60.0,
                )
            ),
        )
        for n in range(events)
    ]


def measure_lane(lane: Lane, settings: Settings, messages: Messages, broker: Broker) -> Run:
    """Start the lane's workers, send the events once they are ready, and wait until the last effect is written."""
    create_topics(settings.kafka)
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(Cluster(settings.kafka))
        workers = [
            stack.enter_context(process(settings, f"{lane.group}-{n}", lane.command)) for n in range(lane.workers)
        ]
        wait_for_group(settings, lane, workers, cluster)
        pids = [worker.pid for worker in workers] + [broker.process.pid]
        cpu_before = [cpu_s(pid) for pid in pids]
        began_s = time.time()
        send_all(settings.kafka, WATCH_EVENTS, messages)
        wall_s = wait_for_end(settings, lane, len(messages), cluster) - began_s
        *shares, broker_share = [(cpu_s(pid) - before) / wall_s for pid, before in zip(pids, cpu_before, strict=True)]
    return Run(len(messages) / wall_s, tuple(shares), broker_share)


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
