"""The embedded Kafka broker: Apache Kafka where KAFKA_HOME is set, else the stand-in of the `noida-db` wheel.

Apache Kafka runs as one KRaft node from `KAFKA_HOME/libs/*.jar` and keeps what it has acknowledged over a crash. noida
needs no Java and starts at once, but keeps its messages in memory and loses them when it is killed: it is for trying
things out. Both listen on the loopback interface only, under a guard, in a locked directory of their own.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import logging
import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from infra.local.embedded_service import EmbeddedService
from infra.platform.guarded_process import ServiceError, log_tail
from infra.platform.port_locks import LOOPBACK, free_port, is_listening
from infra.platform.settings import Settings

JAVA = 17  # what Kafka 4 brokers need
FORMAT_S = 60.0


class Broker(EmbeddedService):
    """A running broker; its data is in `<data_dir>/kafka` or `<data_dir>/noida`."""

    name, port_setting, grace_s = "broker", "embedded.kafka_port", 20.0  # a clean stop writes out what is in memory

    def __init__(self, settings: Settings, environ: Mapping[str, str] = os.environ) -> None:
        self.kind = kind = "kafka" if environ.get("KAFKA_HOME") else "noida"
        super().__init__(settings, kind, settings.embedded.kafka_port, environ)

    @property
    def bootstrap(self) -> str:
        return self.address

    def command(self, port: int) -> list[str]:
        make = _kafka_command if self.kind == "kafka" else _noida_command
        return make(self.directory, port, self.settings, self.environ)

    def answers(self) -> bool:
        return answers(self.bootstrap)


def start_broker(settings: Settings, *, environ: Mapping[str, str] = os.environ) -> Broker:
    """Start the embedded broker and wait until it answers a real request. Raises ServiceError."""
    return Broker(settings, environ).when_ready()


def answers(bootstrap: str) -> bool:
    """True when the broker at `host:port` answers a metadata request."""
    if not is_listening(bootstrap):
        return False
    from kafka import KafkaAdminClient
    from kafka.errors import KafkaError

    with _quiet("kafka"):
        try:
            admin = KafkaAdminClient(bootstrap_servers=[bootstrap], request_timeout_ms=5000, bootstrap_timeout_ms=2000)
        except KafkaError:
            return False
        try:
            admin.list_topics()
        except KafkaError:
            return False
        finally:
            admin.close()
    return True


def _noida_command(directory: Path, port: int, settings: Settings, environ: Mapping[str, str]) -> list[str]:
    """The wheel's binary itself: its Python wrapper would not pass signals on."""
    wheel = importlib.util.find_spec("noida_db")
    binary = Path(wheel.origin).with_name("noida-db") if wheel and wheel.origin else None
    if binary is None or not binary.is_file():
        raise ServiceError(
            "no broker to start: `pip install nextwatch[embedded]` for a small one to try things out, set KAFKA_HOME "
            "to a Kafka 4 download for the real one, or set kafka.bootstrap to a broker that runs already"
        )
    if not os.access(binary, os.X_OK):  # some installers drop the bit
        binary.chmod(0o755)
    return [str(binary), "start", "--data-dir", str(directory), "--only", "kafka", "--kafka-port", str(port)]


def _kafka_command(directory: Path, port: int, settings: Settings, environ: Mapping[str, str]) -> list[str]:
    """The command that runs Kafka; formats its storage first if that is new."""
    controller = free_port(0, "embedded.kafka_port")
    text = server_properties(directory / "data", port, controller, settings.kafka.max_message_bytes)
    return node_command(directory, text, new_cluster_id(), environ, settings.embedded.kafka_heap)


def node_command(directory: Path, properties: str, cluster_id: str, environ: Mapping[str, str], heap: str) -> list[str]:
    """The command that runs one node with these properties, its data in `directory`/data; formats that first if it is
    new. Raises ServiceError."""
    libs = Path(environ["KAFKA_HOME"]) / "libs"
    if not any(libs.glob("kafka_*.jar")):
        raise ServiceError(
            f"KAFKA_HOME is {libs.parent}, but {libs} holds no kafka_*.jar: point it to a Kafka 4 download"
        )
    java = [*_java(environ, heap), "-cp", f"{libs}/*"]
    path = directory / "server.properties"
    path.write_text(properties, encoding="utf-8")
    if not (directory / "data" / "meta.properties").exists():
        _format([*java, "kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(path)], directory)
    return [*java, "kafka.Kafka", str(path)]


def server_properties(data: Path, port: int, controller_port: int, max_message_bytes: int) -> str:
    """Kafka's own settings: one node, loopback, topics only as `nextwatch topics --create` makes them, small."""
    return "\n".join(
        f"{name}={value}"
        for name, value in {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@{LOOPBACK}:{controller_port}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://{LOOPBACK}:{port},CONTROLLER://{LOOPBACK}:{controller_port}",
            "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{port}",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "log.dirs": data,
            "auto.create.topics.enable": "false",
            "num.partitions": 1,
            "offsets.topic.num.partitions": 4,
            "offsets.topic.replication.factor": 1,
            "transaction.state.log.num.partitions": 4,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "group.initial.rebalance.delay.ms": 0,
            "message.max.bytes": max(1_048_588, max_message_bytes + 65_536),  # our limit is on the value alone
            "broker.session.timeout.ms": 4000,  # a crashed one is let in again only when its old session is over
            "broker.heartbeat.interval.ms": 1000,
            "log.cleaner.dedupe.buffer.size": 16_777_216,
            "num.network.threads": 2,
            "num.io.threads": 4,
        }.items()
    )


def _java(environ: Mapping[str, str], heap: str) -> list[str]:
    """The Java command with its options. Raises ServiceError when there is none or it is too old."""
    home = environ.get("JAVA_HOME")
    java = f"{home}/bin/java" if home else shutil.which("java", path=environ.get("PATH", os.defpath))
    where = f"JAVA_HOME={home}" if home else "PATH"
    try:
        if java is None:
            raise FileNotFoundError
        found = subprocess.run([java, "-version"], capture_output=True, timeout=30, check=True, text=True)
    except (OSError, subprocess.SubprocessError):
        raise ServiceError(
            f"KAFKA_HOME is set, but there is no Java that runs ({where}): install Java {JAVA} or later and set "
            "JAVA_HOME, or unset KAFKA_HOME"
        ) from None
    version = re.search(r'version "(\d+)', found.stderr + found.stdout)
    if version is None or int(version[1]) < JAVA:
        text = (found.stderr + found.stdout).partition("\n")[0]
        raise ServiceError(f"Kafka needs Java {JAVA} or later, {java} says {text}: set JAVA_HOME to a newer one")
    return [
        java,
        f"-Xmx{heap}",
        "-XX:+UseSerialGC",  # it shares few cores with everything: a quick compiler and one collecting thread are less
        "-XX:TieredStopAtLevel=1",
        "-XX:+ExitOnOutOfMemoryError",  # a broker that crashes is started again, one that lingers is not
        "-Djava.awt.headless=true",
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
        "-Dorg.slf4j.simpleLogger.showDateTime=true",
    ]


def _format(command: list[str], directory: Path) -> None:
    output = directory / "format.log"
    with output.open("wb") as file:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, timeout=FORMAT_S, check=False
        )
    if done.returncode:
        raise ServiceError(f"Kafka's storage in {directory} cannot be formatted; {log_tail(output)}")


def new_cluster_id() -> str:
    """22 characters as Kafka writes a UUID; not with a dash in front, which would look like an option."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A")


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """While a service starts, a client's complaints about it say nothing."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
