"""Three Apache Kafka brokers on this machine, from KAFKA_HOME, each of them a controller too.

Topics have three copies and take a message that two of them have (`min.insync.replicas`). What is asked of one broker
is asked over a connection to that one: a client that chooses by itself may choose the one that stands still.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError
from kafka.protocol.admin import DescribeQuorumRequest
from kafka.protocol.metadata import MetadataRequest

from infra.local.broker import answers, new_cluster_id, node_command, server_properties
from infra.platform.guarded_process import GuardedProcess, start_guarded
from infra.platform.port_locks import LOOPBACK, free_port
from tests.harness.system import wait_until

SESSION_S = 9.0  # Kafka's own `broker.session.timeout.ms`: so long a broker that is silent leads on
HEAP = "384m"
ASKED = 1  # who is asked about the cluster, where no other is named
READY_S = 90.0
ASK_S = 1.0  # for one that may stand still
PATIENCE_S = 20.0  # for one that lives
GRACE_S = 30.0
MAX_MESSAGE_BYTES = 1_000_000
PREFERRED = 0  # election: of the first in a partition's list


@dataclass
class Node:
    number: int
    port: int
    controller_port: int
    directory: Path
    process: GuardedProcess | None = None

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self.port}"


class Brokers:
    """Use it as a context manager: they run, and answer, in the block."""

    def __init__(self, directory: Path, *, session_s: float = SESSION_S, count: int = 3) -> None:
        self.session_s = session_s
        self.nodes = {
            number: Node(number, free_port(0, "a broker"), free_port(0, "a controller"), directory / f"kafka-{number}")
            for number in range(1, count + 1)
        }
        self._cluster_id, self._environ = new_cluster_id(), dict(os.environ)
        self._admins: dict[int, KafkaAdminClient] = {}

    @property
    def bootstrap(self) -> str:
        return ",".join(node.address for node in self.nodes.values())

    # --- what is done to them ----------------------------------------------------------------------------------------

    def start(self, number: int) -> None:
        """Start one, with its data as it was; does not wait until it answers."""
        node = self.nodes[number]
        node.directory.mkdir(parents=True, exist_ok=True)
        command = node_command(node.directory, self._properties(node), self._cluster_id, self._environ, HEAP)
        log = node.directory / "broker.log"
        node.process = start_guarded(f"kafka-{number}", command, log=log, environ=self._environ, grace_s=GRACE_S)

    def kill(self, number: int) -> None:
        """SIGKILL: a crash."""
        self._process(number).kill()

    def stop(self, number: int) -> None:
        """SIGTERM: it hands over what it leads."""
        self._process(number).stop()

    @contextlib.contextmanager
    def standing_still(self, number: int) -> Iterator[None]:
        """SIGSTOP: within the block it takes connections, and answers nothing."""
        pid = self._process(number).pid
        os.killpg(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(pid, signal.SIGCONT)

    def wait_whole(self, timeout_s: float = READY_S) -> None:
        """Return when all brokers have all copies of everything."""
        wait_until(self.are_whole, "all copies in sync", timeout_s, every_s=0.2)

    # --- what they say -----------------------------------------------------------------------------------------------

    def leader(self, topic: str, partition: int = 0) -> int:
        return int(self._partitions(ASKED, PATIENCE_S)[topic, partition].leader_id)

    def copies(self, topic: str) -> dict[int, set[int]]:
        """By partition, who is to have a copy."""
        known = self._partitions(ASKED, PATIENCE_S).items()
        return {number: set(each.replica_nodes) for (name, number), each in known if name == topic}

    def controller(self) -> int:
        """The one that leads the quorum."""
        log = DescribeQuorumRequest.TopicData
        partition = log.PartitionData(partition_index=0)
        request = DescribeQuorumRequest(topics=[log(topic_name="__cluster_metadata", partitions=[partition])])
        return int(self._ask(ASKED, request, PATIENCE_S).topics[0].partitions[0].leader_id)

    def answers(self, number: int) -> bool:
        return answers(self.nodes[number].address)

    def is_ready(self) -> bool:
        return self.are_whole()

    def are_whole(self) -> bool:
        return all(self._sees_copies(number, self.nodes) for number in self.nodes)

    def go_on_without(self, lost: int) -> bool:
        """True when the others lead all partitions and wait for the lost one no more: then every message is taken."""
        others = self.nodes.keys() - {lost}
        return all(self._sees_copies(number, others) for number in others)

    def _sees_copies(self, number: int, wanted: Collection[int]) -> bool:
        try:
            partitions = self._partitions(number, ASK_S).values()
        except KafkaError:
            return False
        return bool(partitions) and all(
            set(each.isr_nodes) == set(wanted) and each.leader_id in wanted for each in partitions
        )

    def _partitions(self, number: int, wait_s: float) -> dict[tuple[str, int], Any]:
        """All partitions as this broker knows them."""
        request = MetadataRequest(
            topics=MetadataRequest.ALL_TOPICS,
            allow_auto_topic_creation=False,
            include_cluster_authorized_operations=False,
            include_topic_authorized_operations=False,
        )
        found = self._ask(number, request, wait_s).topics
        return {(topic.name, each.partition_index): each for topic in found for each in topic.partitions}

    def _ask(self, number: int, request: Any, wait_s: float) -> Any:
        manager = self._admin(number)._manager

        async def ask() -> Any:  # the address, also while the cluster does not name this broker
            return await manager.wait_for(manager.send(request, "bootstrap-0"), round(1000 * wait_s))

        return manager.run(ask)

    def _admin(self, number: int) -> KafkaAdminClient:
        if number not in self._admins:
            self._admins[number] = KafkaAdminClient(
                bootstrap_servers=[self.nodes[number].address], reconnect_backoff_max_ms=200
            )
        return self._admins[number]

    # --- processes ---------------------------------------------------------------------------------------------------

    def __enter__(self) -> Brokers:
        try:
            for number in self.nodes:
                self._format_as_first(number)
                self.start(number)
            for node in self.nodes.values():
                wait_until(lambda node=node: answers(node.address), f"broker {node.number}", READY_S, every_s=0.2)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """All at once, and hard: a quorum that goes away has nobody to hand over to."""
        for admin in self._admins.values():
            admin.close()
        for node in self.nodes.values():
            if node.process is not None:
                node.process.kill()

    def _format_as_first(self, number: int) -> None:
        """Spare a node the formatting, which takes a Java of its own: the first has done it."""
        first, own = self.nodes[1].directory / "data", self.nodes[number].directory / "data"
        if own == first or own.exists():
            return
        own.mkdir(parents=True)
        (own / "bootstrap.checkpoint").write_bytes((first / "bootstrap.checkpoint").read_bytes())
        lines = [line.partition("=") for line in (first / "meta.properties").read_text().splitlines()]
        known = {name: value for name, _, value in lines if value}
        mine = known | {"node.id": str(number), "directory.id": new_cluster_id()}
        (own / "meta.properties").write_text("".join(f"{name}={value}\n" for name, value in mine.items()))

    def _process(self, number: int) -> GuardedProcess:
        process = self.nodes[number].process
        assert process is not None
        return process

    def _properties(self, node: Node) -> str:
        count = len(self.nodes)
        fewest = max(1, count - 1)
        voters = ",".join(f"{each.number}@{LOOPBACK}:{each.controller_port}" for each in self.nodes.values())
        ours: Mapping[str, object] = {  # what stands last holds
            "node.id": node.number,
            "controller.quorum.voters": voters,
            "default.replication.factor": count,
            "min.insync.replicas": fewest,
            "offsets.topic.replication.factor": count,
            "transaction.state.log.replication.factor": count,
            "transaction.state.log.min.isr": fewest,
            "broker.session.timeout.ms": round(1000 * self.session_s),
            "broker.heartbeat.interval.ms": round(1000 * self.session_s / 4.5),
        }
        alone = server_properties(node.directory / "data", node.port, node.controller_port, MAX_MESSAGE_BYTES)
        return "\n".join([alone, *(f"{name}={value}" for name, value in ours.items())])


def able_after(brokers: Brokers, lost: int, timeout_s: float = READY_S) -> float:
    """When (`time.monotonic`) the others have gone on without the lost one."""
    wait_until(lambda: brokers.go_on_without(lost), f"the cluster goes on without {lost}", timeout_s, every_s=0.1)
    return time.monotonic()


def move_leader(brokers: Brokers, topic: str, partition: int, timeout_s: float = READY_S) -> None:
    """Have another broker lead this partition; the one that led it lives."""
    place, before = TopicPartition(topic, partition), brokers.leader(topic, partition)
    others = [number for number in brokers.nodes if number != before]
    with contextlib.closing(KafkaAdminClient(bootstrap_servers=brokers.bootstrap.split(","))) as admin:

        def has_moved() -> bool:
            with contextlib.suppress(KafkaError):  # the new order of the copies is not known yet
                admin.elect_leaders(PREFERRED, {topic: [partition]})
            return brokers.leader(topic, partition) == others[0]

        admin.alter_partition_reassignments({place: [*others, before]})
        wait_until(has_moved, f"another leader of {place}", timeout_s, every_s=0.2)


def spread_leaders(brokers: Brokers, topic: str) -> None:
    """Have the first of each partition's copies lead it, as at the beginning: a slow machine may have moved leaders."""
    with (
        contextlib.closing(KafkaAdminClient(bootstrap_servers=brokers.bootstrap.split(","))) as admin,
        contextlib.suppress(KafkaError),
    ):
        admin.elect_leaders(PREFERRED, [topic])


def insist_on(brokers: Brokers, topics: Sequence[str], copies: int) -> None:
    """Let these topics take only what so many copies have."""
    config = {"min.insync.replicas": str(copies)}
    admin = KafkaAdminClient(bootstrap_servers=brokers.bootstrap.split(","))
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, configs=config) for name in topics])
    admin.close()
