"""Starts the whole system, or a part of it, as a person would: real services, our processes, each under a guard.

Used by whole-system tests and benchmarks. Everything is stopped when the block ends, newest first, also after an error.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import polars as pl
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition

from infra.local.broker import Broker, start_broker
from infra.local.embedded_service import EmbeddedService
from infra.local.milvus_server import MilvusServer, start_milvus
from infra.local.processes import process_environ
from infra.local.stack import COMMANDS, milvus_answers
from infra.operate.replay import replay
from infra.operate.status import fetch_samples
from infra.platform.guarded_process import GuardedProcess, start_guarded, wait_until_ready
from infra.platform.health import fetch_health
from infra.platform.kafka_clients import kafka_python_options
from infra.platform.run_files import fill_in, read_run_files
from infra.platform.settings import Kafka, Settings
from streams.topics import TOPICS, WATCH_EVENTS, create_topics, partitions_of

S = TypeVar("S", bound=EmbeddedService)

# the shortest session that brokers allow: a killed worker's successor waits so long
SMALL = {"partitions": 2, "session_timeout_s": 6.0}
READY_S = 90.0
TRAIN_S = 900.0
GATEWAY = "gateway"
ALL = tuple(name for name in COMMANDS if name != GATEWAY)  # all that recommends: the gateway is a client of it


def cli(*arguments: str) -> list[str]:
    """Our command line, as a command."""
    return [sys.executable, "-m", "infra.cli", *arguments]


def try_cli(
    settings: Settings, *arguments: str, timeout_s: float = 60.0, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command of ours to its end."""
    environ = process_environ(settings, os.environ)
    return subprocess.run(
        cli(*arguments), env=environ, timeout=timeout_s, input=stdin, capture_output=True, text=True, check=False
    )


def run_cli(settings: Settings, *arguments: str, timeout_s: float = 60.0) -> str:
    """The same; its output. Raises AssertionError with all it said when it fails."""
    done = try_cli(settings, *arguments, timeout_s=timeout_s)
    assert done.returncode == 0, f"{arguments} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def own_settings(
    bootstrap: str, data_dir: Path, milvus_uri: str = "", kafka: Mapping[str, Any] = SMALL, **sections: Any
) -> Settings:
    """Settings of a system of its own on services that run, its topics made."""
    prefix = f"t{uuid.uuid4().hex[:8]}-"
    own = Settings(data_dir=data_dir, kafka=Kafka(topic_prefix=prefix, **kafka), **sections)
    settings = fill_in(own, bootstrap, milvus_uri)
    create_topics(settings.kafka)
    return settings


class Services(NamedTuple):
    """What runs, and the settings that reach it."""

    settings: Settings
    broker: Broker
    milvus: MilvusServer


@contextlib.contextmanager
def stopping(service: S) -> Iterator[S]:
    """Stop it when the block ends, also where it was started again meanwhile."""
    try:
        yield service
    finally:
        service.process.stop()


@contextlib.contextmanager
def services(settings: Settings) -> Iterator[Services]:
    """A broker (Apache Kafka when KAFKA_HOME is set) with our topics, and Milvus Lite."""
    with stopping(start_broker(settings)) as broker, stopping(start_milvus(settings, probe=milvus_answers)) as milvus:
        settings = fill_in(settings, broker.bootstrap, milvus.uri)
        create_topics(settings.kafka)
        yield Services(settings, broker, milvus)


@contextlib.contextmanager
def embedded(settings: Settings) -> Iterator[Settings]:
    """The settings that reach a broker and a Milvus of their own."""
    with services(settings) as running:
        yield running.settings


@contextlib.contextmanager
def running(
    settings: Settings, processes: Sequence[str] = ALL, *, ready: bool = True
) -> Iterator[dict[str, GuardedProcess]]:
    """Our processes by name, started in this order; `ready`: once all of them say so on /health."""
    with contextlib.ExitStack() as stack:
        processes = {name: stack.enter_context(process(settings, name, cli(*COMMANDS[name]))) for name in processes}
        if ready:
            wait_for_health(settings, *processes.values())
        yield processes


@contextlib.contextmanager
def process(
    settings: Settings, name: str, command: Sequence[str], more: Mapping[str, str] = MappingProxyType({})
) -> Iterator[GuardedProcess]:
    """One process of this checkout with exactly these settings; `more` variables for it."""
    here = str(Path(__file__).parents[2])  # for commands that live in tests/
    environ = process_environ(settings, os.environ) | {"NEXTWATCH_GATEWAY__PORT": "0"} | dict(more)
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, environ.get("PYTHONPATH")]))
    started = start_guarded(
        name, command, log=settings.data_dir / "logs" / f"{name}.log", environ=environ, grace_s=20.0
    )
    try:
        yield started
    finally:
        started.stop()


def wait_for_health(settings: Settings, *processes: GuardedProcess, timeout_s: float = READY_S) -> None:
    """Return when every process's /health says ready. Raises ServiceError with the end of the log of one that ends."""

    def is_ready(pid: int) -> bool:
        record = next((each for each in read_run_files(settings.run_dir) if each["pid"] == pid), None)
        return record is not None and bool(fetch_health(record)["ready"])

    for started in processes:
        wait_until_ready(started, lambda pid=started.pid: is_ready(pid), timeout_s)  # type: ignore[misc]


def release(settings: Settings, log: pl.DataFrame, items: pl.DataFrame) -> dict[str, Any]:
    """Train a release with `nextwatch train` and wait until a server answers from it; the command's report."""
    with tempfile.TemporaryDirectory(prefix="nextwatch-log-") as directory:
        paths = Path(directory) / "log.parquet", Path(directory) / "items.parquet"
        log.write_parquet(paths[0])
        items.write_parquet(paths[1])
        arguments = ("train", str(paths[0]), "--items", str(paths[1]), "--wait-s", str(READY_S), "--json")
        report: dict[str, Any] = json.loads(run_cli(settings, *arguments, timeout_s=TRAIN_S))
    return report


@contextlib.contextmanager
def running_release(
    log: pl.DataFrame, items: pl.DataFrame, **sections: dict[str, Any]
) -> Iterator[tuple[Settings, str]]:
    """The whole system with services of its own, answering from a release of this log, histories replayed; settings
    that reach it, and the release's version."""
    with temporary_settings(**sections) as own, embedded(own) as settings, running(settings) as processes:
        replay(log, settings, items=items)
        with Cluster(settings.kafka) as cluster:
            wait_until(lambda: cluster.behind("history", WATCH_EVENTS) == 0, "histories", 120)
        version = release(settings, log, items)["version"]
        wait_for_health(settings, *processes.values())
        yield settings, version


class Cluster:
    """What the broker tells of topics and groups, from outside."""

    def __init__(self, kafka: Kafka) -> None:
        self._kafka = kafka
        self._admin = KafkaAdminClient(**kafka_python_options(kafka))
        self._consumer = KafkaConsumer(**kafka_python_options(kafka))
        self._partitions = {topic.name: partitions_of(topic, kafka) for topic in TOPICS}

    def ends(self, topic: str) -> dict[TopicPartition, int]:
        """The offset after the last record of each partition."""
        name = self._kafka.topic_prefix + topic
        places = [TopicPartition(name, number) for number in range(self._partitions[topic])]
        return dict(self._consumer.end_offsets(places))

    def total(self, topic: str) -> int:
        """How many records were ever written to a topic."""
        return sum(self.ends(topic).values())

    def behind(self, group: str, topic: str) -> int:
        """How many records of a topic the group (its name without `nextwatch-`) has not committed."""
        return self.not_committed(f"nextwatch-{group}", topic)

    def not_committed(self, group: str, topic: str) -> int:
        """The same of a group by its whole name (without the prefix)."""
        ends, name = self.ends(topic), self._kafka.topic_prefix + group
        committed = self._admin.list_group_offsets({name: list(ends)})[name]
        return sum(end - max(0, committed[place].offset if place in committed else 0) for place, end in ends.items())

    def is_settled(self, group: str, members: int) -> bool:
        """Whether a group has this many members and all of them their partitions."""
        name = f"{self._kafka.topic_prefix}nextwatch-{group}"
        state = self._admin.describe_groups([name])[name]
        return state["group_state"] == "Stable" and len(state["members"]) == members

    def close(self) -> None:
        self._admin.close()
        self._consumer.close()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def read_metrics(settings: Settings, name: str) -> dict[str, float]:
    """The page /metrics of the process of that name, sample by sample (`name{label="value",...}`)."""
    found = next(each for each in read_run_files(settings.run_dir) if each["name"] == name)
    with urllib.request.urlopen(f"http://{found['host']}:{found['port']}/metrics", timeout=5) as reply:
        lines = reply.read().decode().splitlines()
    pairs = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
    return {sample: float(value) for sample, _, value in pairs}


def wait_for_work(settings: Settings, stage: str, workers: int) -> None:
    """Return when so many workers run, and each has handled something."""
    handled = "nextwatch_batch_messages_count", (("stage", stage),)

    def all_at_work() -> bool:
        pages = [fetch_samples(record) for record in read_run_files(settings.run_dir)]
        return len(pages) == workers and all(page.get(handled, 0) > 0 for page in pages)

    wait_until(all_at_work, f"{workers} workers at work", 60)


@contextlib.contextmanager
def temporary_settings(**sections: dict[str, Any]) -> Iterator[Settings]:
    """Settings with a data directory of their own, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="nextwatch-") as directory:
        settings = Settings(data_dir=Path(directory))
        for name, values in sections.items():
            settings = with_section(settings, name, **values)
        yield settings


def with_section(settings: Settings, section: str, **values: Any) -> Settings:
    return settings.model_copy(update={section: getattr(settings, section).model_copy(update=values)})


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used so far; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_until(true: Callable[[], bool], what: str, timeout_s: float, every_s: float = 0.05) -> None:
    """Return when `true()`; raises TimeoutError that names `what`."""
    deadline = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not after {timeout_s:g} s")
        time.sleep(every_s)
