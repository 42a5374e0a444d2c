"""Private parts of kafka-python that all its clients of ours use, this package's and the servers'.

tests/unit/clients/test_patches.py tells when they are no longer needed.
"""

from __future__ import annotations

import random
import time
from typing import Any

from kafka.errors import KafkaConnectionError, KafkaError
from kafka.net.compat import KafkaNetClient

LOOK_S = 0.5
SILENT_S = 2.0  # longer than a broker holds a fetch for which there is nothing
FIRST_S = 5.0  # so long the first broker that is asked may take, where there are others
ASKED_AT_ONCE = 2  # brokers


class Connections(KafkaNetClient):  # type: ignore[misc]
    """What a consumer, producer or admin client of kafka-python speaks through (its setting `kafka_client`), that
    leaves brokers which answer nothing and are no longer in the cluster's list.

    Why: a broker that stands still, or whose machine is gone, closes no connection. What it was asked waits for
    `request_timeout_ms`, half a minute, and meanwhile nobody looks for the new leaders of its partitions. A shorter
    time-out would not do: a healthy broker is silent, too, while it waits for a lost follower, and what it is sent
    again is written twice. So the others are asked, as long as one broker is silent or refuses connections. And a
    client that starts waits for the one address that it has drawn.
    Upstream: dpkp/kafka-python#1517, #1520; kafka/net/connection.py, `_request_timed_out`; kafka/cluster.py, `ttl`;
    kafka/net/manager.py, `_do_bootstrap`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._net.call_soon_threadsafe(LostBrokers(self._manager).look)


class LostBrokers:
    """Looks after the connections of one client, in the client's own loop."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._asked: set[Any] = set()  # brokers that have not answered yet

    def look(self) -> None:
        manager = self._manager
        if manager.closed:
            return
        manager._net.call_later(LOOK_S, self.look)
        self._leave_first()
        brokers = [broker.node_id for broker in manager.cluster.brokers()]
        if any(map(is_silent, manager._conns.values())) or any(map(manager.connection_delay, brokers)):
            able = [node_id for node_id in brokers if self._is_able(node_id)]
            for node_id in random.sample(able, min(len(able), ASKED_AT_ONCE)):
                self._ask(node_id)

    def _leave_first(self) -> None:
        """Have another address drawn, where there is one."""
        cluster = self._manager.cluster
        for conn in list(self._manager._conns.values()):
            if cluster.is_bootstrap(conn.node_id) and len(cluster.bootstrap_brokers()) > 1 and owes(conn, FIRST_S):
                conn.close(KafkaConnectionError(f"silent for {FIRST_S:g} s"))

    def _is_able(self, node_id: Any) -> bool:
        conn = self._manager._conns.get(node_id)
        is_free = conn is None or not (is_silent(conn) or conn.paused)
        return is_free and node_id not in self._asked and not self._manager.connection_delay(node_id)

    def _ask(self, node_id: Any) -> None:
        cluster, about = self._manager.cluster, self._about()
        try:
            answer = self._manager.send(cluster.metadata_request(), node_id)
        except KafkaError:  # it does not let us in: who wants something of it is told
            return
        self._asked.add(node_id)
        answer.add_both(lambda _: self._asked.discard(node_id))
        answer.add_callback(lambda metadata: self._hear(metadata) if about == self._about() else None)

    def _about(self) -> tuple[bool, frozenset[str]]:
        """The topics that the client wants to know of: an answer about others must not take the place of one."""
        cluster = self._manager.cluster
        return cluster.need_all_topic_metadata, frozenset(cluster._topics)

    def _hear(self, metadata: Any) -> None:
        self._manager.cluster.update_metadata(metadata)
        for conn in list(self._manager._conns.values()):
            if is_silent(conn) and self._is_lost(conn.node_id):
                conn.close(KafkaConnectionError("silent, and no longer a broker of the cluster"))

    def _is_lost(self, node_id: Any) -> bool:
        """A coordinator has a second name; a bootstrap address may be none of the cluster's own."""
        cluster = self._manager.cluster
        broker = cluster.broker_metadata(node_id)
        places = {(each.host, each.port) for each in cluster.brokers()}
        return not cluster.is_bootstrap(node_id) and (broker is None or (broker.host, broker.port) not in places)


def is_silent(conn: Any) -> bool:
    """Return whether a broker owes an answer for long, or is not connected yet."""
    return not conn.connected or owes(conn, SILENT_S)


def owes(conn: Any, since_s: float) -> bool:
    """Return whether a broker has owed an answer for so long."""
    waiting = conn.in_flight_requests
    return bool(waiting and time.monotonic() - waiting[0][2] >= since_s)
