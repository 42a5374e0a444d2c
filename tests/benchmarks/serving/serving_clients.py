"""The whole serving worker on kafka-python as it is, and with consumer and producer on confluent-kafka, in turns.

CPU seconds of the worker's process, user and system, over a fixed number of requests; the exact mirror answers, so that
nothing of it is Milvus'. Beside it what decides as much: private attributes that are touched, lines, and what a small
compressed batch that unpacks to far more does to a process that reads it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from statistics import median

from kafka import KafkaProducer
from kafka.admin import NewTopic

import serving.worker.outbox
import serving.worker.partitions
from infra.platform.kafka_clients import client_options, kafka_python_options
from infra.platform.settings import Kafka
from infra.simulation.world import NOTICE
from nextwatch_client import RecommendClient
from streams.topics import open_admin
from tests.benchmarks.ranking.ranking_ground import say
from tests.benchmarks.report import Report, quantile
from tests.benchmarks.serving import on_confluent
from tests.benchmarks.serving.serving_ground import note_of, small_release
from tests.benchmarks.serving.serving_service import SERVE, Ground, ask, ground, publish, served
from tests.harness.system import cpu_s

ITEMS = 10_000
ROUNDS, QUICK_ROUNDS = 3, 2
REQUESTS, QUICK_REQUESTS = {1: 200, 32: 960}, {1: 60, 32: 320}  # of a round
COMMANDS = {"kafka-python": SERVE, "confluent-kafka": [sys.executable, "-m", on_confluent.__name__, "serve"]}
BOMB_MB = 512
READ_S = 60.0

Costs = dict[tuple[str, int], list[tuple[float, float, float]]]  # CPU ms a request, p50 ms, requests/s


def measure(report: Report, quick: bool) -> None:
    """CPU of the worker by request on either client, and what a batch of zeros unpacks to in each."""
    small = small_release(quick)
    report.title = "serving clients: one worker, mirror first, closed loop, in turns"
    report.note(f"{NOTICE}; {note_of(small)}")
    costs: Costs = {}
    with ground(small) as on:
        publish(on, small, ITEMS)
        for _ in range(QUICK_ROUNDS if quick else ROUNDS):
            for client, command in COMMANDS.items():
                one_turn(costs, on, client, command, QUICK_REQUESTS if quick else REQUESTS)
        bombs = {client: read_a_bomb(on.settings.kafka, client) for client in COMMANDS}
    for (client, concurrency), found in costs.items():
        cpu_ms, p50_ms, per_s = (median(column) for column in zip(*found, strict=True))
        row = {"client": client, "concurrency": concurrency, "CPU ms a request": cpu_ms, "p50 ms": p50_ms}
        report.add(**row, **{"requests/s": per_s})
    for client, outcome in bombs.items():
        report.note(f"{client}, a gzip batch of {BOMB_MB} MB of zeros: {outcome}")
    ours = sum(lines_of(module.__file__) for module in (serving.worker.partitions, serving.worker.outbox))
    report.note(f"partitions.py and outbox.py on kafka-python: {ours} lines; on_confluent.py, which adds to the first:")
    report.note(f"{lines_of(on_confluent.__file__)} lines, without bound on unpacking, TLS, SASL and fences at closing")


def one_turn(costs: Costs, on: Ground, client: str, command: list[str], requests: dict[int, int]) -> None:
    users = [viewer.user_id for viewer in on.viewers]
    with (
        served(on, command, first="mirror") as (settings, child),
        RecommendClient(client_options(settings.kafka)) as asking,
    ):
        for concurrency, count in requests.items():
            ask(asking, users[: max(20, concurrency)], concurrency, warm_up=False)
            before_s = cpu_s(child.pid)
            load = ask(asking, [users[at % len(users)] for at in range(count)], concurrency, warm_up=False)
            cpu_ms = 1000 * (cpu_s(child.pid) - before_s) / count
            say(f"{client}, concurrency {concurrency}: {cpu_ms:.2f} ms of CPU a request")
            costs.setdefault((client, concurrency), []).append((cpu_ms, quantile(load.whole_ms, 0.5), load.per_s))


def read_a_bomb(kafka: Kafka, client: str) -> str:
    """The bytes that a process gets that reads one gzip batch of many zeros, and the megabytes that it grows to; our
    bound on unpacking where we have one."""
    topic = f"bomb-{client}"
    with open_admin(kafka) as admin:
        admin.create_topics([NewTopic(topic, 1, 1)])
        admin.wait_for_topics([topic])
    most = 2 * BOMB_MB << 20
    producer = KafkaProducer(**kafka_python_options(kafka), max_request_size=most, compression_type="gzip")
    producer.send(topic, bytes(BOMB_MB << 20)).get(READ_S)
    producer.close()
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name, client, kafka.bootstrap, topic],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()[-1]


def read_first(client: str, bootstrap: str, topic: str) -> None:
    """Read a topic's first record as serving would."""
    kafka = Kafka(bootstrap=bootstrap)
    before_kb, value = peak_kb(), None
    if client == "kafka-python":
        consumer = serving.worker.partitions.create_consumer(kafka, topic)
        consumer.subscribe([topic])
        while value is None:
            value = next((record.value for records in consumer.poll(1000).values() for record in records), None)
    else:
        group = on_confluent.GroupConsumer(kafka, topic).ours
        group.subscribe([topic])
        while value is None:
            message = group.poll(1.0)
            value = None if message is None else message.value() or str(message.error()).encode()
    print(f"{len(value):,} bytes come out of it, and the process grows by {(peak_kb() - before_kb) / 1024:,.0f} MB")


def peak_kb() -> int:
    """The most that this process had in memory; unlike getrusage's, nothing of who started it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def lines_of(path: str | None) -> int:
    return len(Path(path or "").read_text(encoding="utf-8").splitlines())


if __name__ == "__main__":
    read_first(*sys.argv[1:])
