"""What kafka-python does by itself when a broker is lost: where a test fails, the patch may be needed no longer."""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer
from kafka.cluster import ClusterMetadata
from kafka.future import Future

from nextwatch_client import ConnectionOptions
from nextwatch_client.patches import FIRST_S, SILENT_S, LostBrokers

LONG_S = SILENT_S + 1


def connection(node_id: Any, waits_s: float | None = None, connected: bool = True) -> SimpleNamespace:
    """One that has waited so long for an answer; None: for nothing."""
    waiting = [] if waits_s is None else [(1, Future(), time.monotonic() - waits_s, 0.0, None)]
    conn = SimpleNamespace(node_id=node_id, connected=connected, paused=set(), in_flight_requests=waiting, closed=[])
    conn.close = conn.closed.append
    return conn


def metadata(*node_ids: int) -> Any:
    brokers = [(number, f"kafka-{number}", 9092, None) for number in node_ids]
    return SimpleNamespace(brokers=brokers, topics=[], cluster_id="c", controller_id=node_ids[0], API_VERSION=8)


class Manager(SimpleNamespace):
    """The connections of a client in a cluster of three; `asked` are the brokers of which metadata was asked."""

    def __init__(self, *conns: SimpleNamespace, down: Iterable[int] = (), servers: str = "kafka:9092") -> None:
        cluster = ClusterMetadata(bootstrap_servers=servers)
        cluster.update_metadata(metadata(1, 2, 3))
        cluster._coordinator_brokers["coordinator-3"] = SimpleNamespace(host="kafka-3", port=9092)
        super().__init__(cluster=cluster, closed=False, asked={}, _conns={conn.node_id: conn for conn in conns})
        self._net, self._down = SimpleNamespace(call_later=lambda *_: None), set(down)

    def connection_delay(self, node_id: Any) -> float:
        return 1.0 if node_id in self._down else 0.0

    def send(self, request: Any, node_id: Any) -> Future:
        return self.asked.setdefault(node_id, Future())


def test_a_silent_broker_that_the_others_no_longer_name_is_left():
    lost, coordinator = connection(3, LONG_S), connection("coordinator-3", LONG_S)
    manager = Manager(lost, coordinator, connection(1, 0.1))
    LostBrokers(manager).look()
    assert set(manager.asked) == {1, 2}, "both others, also one that is not connected; never the silent one"
    manager.asked[2].success(metadata(1, 2))
    assert lost.closed and coordinator.closed
    assert [broker.node_id for broker in manager.cluster.brokers()] == [1, 2]


def test_a_silent_broker_that_is_still_there_is_waited_for():
    """It waits for a lost follower, and what is sent to it again is written twice."""
    slow = connection(3, LONG_S)
    manager = Manager(slow, connection(1))
    LostBrokers(manager).look()
    manager.asked[1].success(metadata(1, 2, 3))
    assert not slow.closed


def test_a_broker_that_is_gone_and_owes_nothing_is_left_alone():
    idle, lost = connection(2, 0.1), connection(3, LONG_S)
    manager = Manager(idle, lost)
    LostBrokers(manager).look()
    manager.asked[1].success(metadata(1))
    assert lost.closed and not idle.closed


def test_nobody_is_asked_while_all_answer():
    manager = Manager(connection(1, 0.1), connection(2), connection(3, SILENT_S / 2))
    LostBrokers(manager).look()
    assert not manager.asked


@pytest.mark.parametrize("conns", [[], [connection(3, connected=False)]], ids=["refuses", "does not accept"])
def test_the_others_are_asked_while_a_broker_takes_no_connection(conns: list[SimpleNamespace]):
    manager = Manager(*conns, down=[] if conns else [3])
    LostBrokers(manager).look()
    assert set(manager.asked) == {1, 2}


def test_who_has_not_answered_is_not_asked_again():
    manager = Manager(connection(3, LONG_S))
    lost = LostBrokers(manager)
    lost.look()
    unanswered, manager.asked = manager.asked, {}
    lost.look()
    assert not manager.asked
    unanswered[1].success(metadata(1, 2, 3))
    lost.look()
    assert set(manager.asked) == {1}


def test_an_answer_about_other_topics_than_are_wanted_by_now_is_not_taken():
    manager = Manager(connection(3, LONG_S))
    LostBrokers(manager).look()
    manager.cluster._topics.add("new")
    manager.asked[1].success(metadata(1, 2))
    assert len(manager.cluster.brokers()) == 3


@pytest.mark.parametrize(("servers", "is_left"), [("a:1,b:1", True), ("a:1", False)], ids=["two", "the only one"])
def test_a_client_that_starts_draws_another_address_when_one_is_silent(servers: str, is_left: bool):
    first = connection("bootstrap-0", FIRST_S + 1)
    manager = Manager(first, servers=servers)
    LostBrokers(manager).look()
    assert bool(first.closed) == is_left


def test_all_clients_of_kafka_python_are_looked_after(monkeypatch: pytest.MonkeyPatch):
    looked_at: list[Any] = []
    monkeypatch.setattr(LostBrokers, "look", lambda self: looked_at.append(self._manager))
    options = ConnectionOptions(bootstrap="127.0.0.1:1").kafka_python() | {"api_version": (2, 8)}
    clients = KafkaProducer(**options), KafkaConsumer(**options)
    deadline_s = time.monotonic() + 5
    while len(looked_at) < 2 and time.monotonic() < deadline_s:
        time.sleep(0.01)
    for client in clients:
        client.close()
    assert set(looked_at) == {clients[0]._sender._client._manager, clients[1]._manager}


def test_kafka_python_has_no_setting_for_it():
    """KIP-899 and KIP-1102 are what Java's clients have begun with."""
    assert not [name for name in KafkaConsumer.DEFAULT_CONFIG | KafkaProducer.DEFAULT_CONFIG if "recovery" in name]
